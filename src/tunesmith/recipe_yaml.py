"""A recipe file as data, strictly: what YAML would read in a surprising way is refused, with its place and what to write instead.

Read are block and flow maps and lists, quoted text, and plain scalars: true, false, null, decimal integers, decimal floats (`1e-4` is
one, against YAML 1.1) and text. Nothing is ever constructed from a tag. Every fault is a `Refusal` at `file:line:column`, both from 1.
"""

from __future__ import annotations

import copy
import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike, fspath
from typing import Any

import yaml
from yaml.reader import Reader

from tunesmith.errors import Refusal

MAX_BYTES, MAX_DEPTH, MAX_DIGITS = 1 << 20, 32, 20  # a recipe is a page; 20 digits hold any 64-bit seed

_WORDS = {"true": True, "false": False, "null": None}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_UNSEEN = re.compile(rf"[\t\x85\u2028\u2029]|{Reader.NON_PRINTABLE.pattern}")
_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*")

# Plain scalars that readers disagree about: pattern, what it is, what to write. {0} is the scalar, {1} without underscores and leading 0.
_SURPRISES = [
    (re.compile(pattern), what, f"write {fix} if it is text")
    for pattern, what, fix in (
        ("", "there is no value here", "null (and a space after the colon), or '' in quotes"),
        ("(?i:null)|None|~", "`{0}` is not how a recipe spells nothing", "null, or '{0}' in quotes"),
        ("(?i:yes|on|true)", "`{0}` is not how a recipe spells a truth value", "true, or '{0}' in quotes"),
        ("(?i:no|off|false)", "`{0}` is not how a recipe spells a truth value", "false, or '{0}' in quotes"),
        (r"[-+]?0[0-9_]+(\.[0-9]*)?([eE][-+]?[0-9]+)?", "the number `{0}` begins with 0", "{1}, or '{0}' in quotes"),
        ("[-+]?0[xXoObB][0-9a-fA-F_]+", "`{0}` is not a decimal number", "it in decimal, or '{0}' in quotes"),
        (r"[-+]?[0-9][0-9.]*_[0-9_.]*", "the number `{0}` has an underscore", "{1}, or '{0}' in quotes"),
        (r"[-+]?[0-9]+(:[0-9]+)+(\.[0-9]*)?", "`{0}` is a number in base 60 to YAML", "a number of seconds, or '{0}' in quotes"),
        (r"[-+]?\.?(?i:inf|nan|infinity)", "`{0}` is not a finite number", "a finite number, or null, or '{0}' in quotes"),
    )
]
_ZEROS = re.compile(r"^([-+]?)0+(?=[0-9])")

# What PyYAML says about broken syntax, in the words of someone who writes a recipe: pattern in its sentence, what, fix.
_SYNTAX = (
    ("mapping values are not allowed", "a `key:` cannot follow here", "indent it like its siblings; quote text that holds a colon"),
    ("sequence entries are not allowed", "a list cannot begin here", "put `- item` lines below the key, or write [a, b]"),
    ("could not find expected ':'", "this line is not `key: value`", "write `key: value`, with a space after the colon"),
    ("unexpected end of stream", "the quoted text is never closed", "close the quote"),
    ("expected ',' or", "the bracket is never closed, or a comma is missing", "separate items by commas, and close the bracket"),
    ("but found '<scalar>'", "there is text where a key should be", "put a value in one pair of quotes, and indent siblings alike"),
    ("expected <block end>", "the indentation matches no line above", "indent siblings alike, and nested keys by two spaces"),
    ("cannot start any|alphabetic|the node content", "a value cannot begin with this character", "put the text in quotes"),
    ("another document|<document start>", "a second document begins here", "a recipe is one map of `key: value` lines, without `---`"),
    ("unknown escape|chr\\(|to C int", "the double-quoted text has an unknown escape", "write \\\\ for a backslash, or use single quotes"),
)

Spot = Callable[[int, int], str]  # from a line and a column, both from 1, to a place for messages


@dataclass(frozen=True)
class Places:
    """Where each key was written. Keys are dotted ("method.rank", list items "stream.0"); positions are the key's, from 1."""

    file: str
    marks: Mapping[str, tuple[int, int]]
    arguments: Mapping[str, str] = field(default_factory=dict)

    def where(self, key: str) -> str:
        """`recipe.yaml:7:3`, or the argument that set the key. A key that was not written has the place of the nearest one above."""
        while key:
            if key in self.arguments:
                return f"argument {self.arguments[key]!r}"
            if key in self.marks:
                return f"{self.file}:{self.marks[key][0]}:{self.marks[key][1]}"
            key = key.rpartition(".")[0]
        return self.file


def load_yaml(path: str | PathLike[str]) -> tuple[dict[str, Any], Places]:
    """Read the recipe at `path`, which messages name as it is given here. Raises Refusal, and nothing else, for what it cannot read."""
    name = fspath(path)
    reader = _Reader(lambda line, column: f"{name}:{line}:{column}")
    node = _compose(_text(name, reader.spot), reader.spot)
    if not isinstance(node, yaml.MappingNode):
        where = reader.spot(*_position(node.start_mark))
        raise Refusal("a recipe is a map of keys, this is not", where=where, fix="write lines such as `task: classify`")
    return reader.mapping(node, ""), Places(name, reader.marks)


def apply_overrides(data: Mapping[str, Any], places: Places, arguments: Iterable[str]) -> tuple[dict[str, Any], Places]:
    """`data` and `places` as changed by `key=value` arguments, in order; the inputs stay as they are.

    A value is read by the rules of the file: a scalar, quoted text, or a flow list or map. A plain one needs no quotes for characters
    that are special in YAML. A key below a text value opens it: `method: lora` and `method.rank=8` give `{kind: lora, rank: 8}`.
    """
    changed, marks, origin = copy.deepcopy(dict(data)), dict(places.marks), dict(places.arguments)
    for argument in arguments:
        key, value = _argument(argument)
        _assign(changed, key, value, argument)
        for table in (marks, origin):
            for old in [old for old in table if old == key or old.startswith(key + ".")]:
                del table[old]
        origin[key] = argument
    return changed, Places(places.file, marks, origin)


def closest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that `word` probably meant, None when none is near. Case does not count, nor does - against _."""
    folded = {choice.lower().replace("-", "_"): choice for choice in choices}
    near = difflib.get_close_matches(word.lower().replace("-", "_"), folded, n=1)
    return folded[near[0]] if near else None


def _text(name: str, spot: Spot) -> str:
    """The file's text without its byte order mark; refuses what is no small UTF-8 text."""
    try:
        with open(name, "rb") as handle:
            raw = handle.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise Refusal(f"cannot read the recipe: {getattr(error, 'strerror', None) or error}", where=name, fix="check the path") from error
    if len(raw) > MAX_BYTES:
        raise Refusal(f"a recipe is smaller than {MAX_BYTES} bytes", where=name, fix="name the recipe, not the data")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = spot(*_offset(raw[: error.start].decode("utf-8-sig", "replace")))
        raise Refusal("the file is not UTF-8", where=where, fix="save it as UTF-8") from error


def _offset(before: str) -> tuple[int, int]:
    """The line and column, from 1, of what follows the text `before`."""
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def _position(mark: Any) -> tuple[int, int]:
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)


def _compose(text: str, spot: Spot) -> yaml.Node:
    """The node tree of one document; whatever a recipe has no use for is refused before it is built."""
    if bad := _UNSEEN.search(text):
        what = "a tab" if bad[0] == "\t" else f"the invisible character U+{ord(bad[0]):04X}"
        raise Refusal(f"there is {what} here", where=spot(*_offset(text[: bad.start()])), fix='use spaces, or "\\t" in quoted text')
    try:
        _guard(text, spot)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.MarkedYAMLError, ValueError, OverflowError) as error:  # the last two: "\U00110000" and huge numbers in directives
        raise _syntax(error, spot) from error
    if node is None:
        raise Refusal("there is nothing here", where=spot(1, 1), fix="`tunesmith init` writes a recipe for your data")
    return node


def _syntax(error: Exception, spot: Spot) -> Refusal:
    """PyYAML's complaint in one sentence, at the place where the reader should look."""
    problem = getattr(error, "problem", None) or str(error)
    unknown = ("this is not YAML", "compare the line with a recipe that `tunesmith init` writes")
    what, fix = next(((what, fix) for part, what, fix in _SYNTAX if re.search(part, problem)), unknown)
    # What has no end is mended at its beginning; PyYAML notices it lines later.
    kind = "context_mark" if re.search("never closed|not `key", what) else "problem_mark"
    return Refusal(what, where=spot(*_position(getattr(error, kind, None))), why=f"YAML: {' '.join(problem.split())}", fix=fix)


def _guard(text: str, spot: Spot) -> None:
    """Refuse, from the stream of events, every feature of YAML that a recipe has no use for."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if fault := _feature(event, depth):
            raise Refusal(fault[0], where=spot(*_position(event.start_mark)), fix=fault[1])


def _feature(event: Any, depth: int) -> tuple[str, str] | None:
    """What is refused about one event, and what to write instead."""
    if depth > MAX_DEPTH:
        return f"this is nested more than {MAX_DEPTH} deep", "a recipe has a few levels"
    if getattr(event, "anchor", None) is not None:
        return f"a recipe has no anchors or aliases such as {event.anchor}", "write the value out; quote text that begins with * or &"
    if getattr(event, "tag", None) is not None:
        return f"a recipe has no tags, and this is {event.tag}", "remove it; quote text that begins with !"
    return None


class _Reader:
    """Turns nodes into plain data and remembers in `marks` where each key stood."""

    def __init__(self, spot: Spot):
        self.spot = spot
        self.marks: dict[str, tuple[int, int]] = {}

    def value(self, node: yaml.Node, key: str) -> Any:
        """The data of the node at the dotted `key`."""
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, key)
        if isinstance(node, yaml.SequenceNode):
            return [self.marked(item, item, f"{key}.{place}") for place, item in enumerate(node.value)]
        return _scalar(node, self.spot(*_position(node.start_mark)))

    def marked(self, at: yaml.Node, node: yaml.Node, key: str) -> Any:
        self.marks[key] = _position(at.start_mark)
        return self.value(node, key)

    def mapping(self, node: yaml.MappingNode, key: str) -> dict[str, Any]:
        found, seen = {}, {}
        for name_node, value_node in node.value:
            where = self.spot(*_position(name_node.start_mark))
            name = _name(name_node, where)
            if name in seen:
                raise Refusal(f"the key `{name}` is given twice", where=where, why=f"first at {seen[name]}", fix="remove one")
            seen[name] = where
            found[name] = self.marked(name_node, value_node, f"{key}.{name}" if key else name)
        return found


def _name(node: yaml.Node, where: str) -> str:
    name = _scalar(node, where) if isinstance(node, yaml.ScalarNode) else None
    if not isinstance(name, str) or not name:
        raise Refusal("a key must be text", where=where, fix="quote it; quote text that begins with { or [")
    return name


def _scalar(node: Any, where: str) -> str | int | float | bool | None:
    """The value of a scalar node: quoted and block text as it is, plain ones by `_plain`."""
    if node.style is not None:
        return node.value
    if node.start_mark.line != node.end_mark.line:
        raise Refusal("plain text goes on in the next line", where=where, fix="put it in quotes, or mend the indentation")
    return _plain(node.value, where)


def _plain(text: str, where: str) -> str | int | float | bool | None:
    """The value of an unquoted scalar."""
    if text in _WORDS:
        return _WORDS[text]
    if number := _INT.fullmatch(text) or _FLOAT.fullmatch(text):
        return _number(text, number.re is _INT, where)
    if known := next(((what, fix) for pattern, what, fix in _SURPRISES if pattern.fullmatch(text)), None):
        raise Refusal(known[0].format(text), where=where, fix=known[1].format(text, _ZEROS.sub(r"\1", text.replace("_", ""))))
    return _plain_text(text, where)


def _number(text: str, whole: bool, where: str) -> int | float:
    if len(text) > MAX_DIGITS if whole else math.isinf(float(text)):
        raise Refusal(f"the number {text[:30]} is too large", where=where, fix="write a smaller one, or quote it if it is text")
    return int(text) if whole else float(text)


def _plain_text(text: str, where: str) -> str:
    """Text that is nothing else to YAML, and holds no character that cannot be seen."""
    tag = yaml.resolver.Resolver().resolve(yaml.ScalarNode, text, (True, False))
    if tag != "tag:yaml.org,2002:str":
        raise Refusal(f"`{text}` is a {tag.rpartition(':')[2]} to YAML", where=where, fix=f"write '{text}' in quotes")
    if hidden := next((char for char in text if not char.isprintable()), None):
        raise Refusal(f"there is an invisible character U+{ord(hidden):04X} in {text!r}", where=where, fix="remove it, or quote the text")
    return text


def _argument(argument: str) -> tuple[str, Any]:
    """The key and the value of `key=value`."""
    where = f"argument {argument!r}"
    key, equals, text = argument.partition("=")
    if not equals or not _KEY.fullmatch(key):
        raise Refusal("this is not key=value", where=where, fix="write for example method.rank=8 or data.eval=dev.jsonl")
    text = text.strip()
    if text[:1] in ("[", "{", "'", '"'):
        return key, _nested(text, where, key)
    try:
        return key, _plain(text, where)
    except Refusal as error:
        error.why = f'the shell takes one pair of quotes away; two are {key}="{text!r}"'
        raise


def _nested(text: str, where: str, key: str) -> Any:
    """A quoted text, flow list or flow map; every fault in it is at `where`."""
    reader = _Reader(lambda line, column: where)
    return reader.value(_compose(text, reader.spot), key)


def _assign(data: dict[str, Any], key: str, value: Any, argument: str) -> None:
    """Set the dotted `key` in place, opening shorthands on the way."""
    *above, last = key.split(".")
    for depth, name in enumerate(above):
        data[name] = _opened(data.get(name), ".".join(above[: depth + 1]), argument)
        data = data[name]
    data[last] = value


def _opened(value: Any, key: str, argument: str) -> dict[str, Any]:
    """The map to set a key in that lies below `value`, the value of `key`."""
    if value is None or isinstance(value, str):
        return {} if value is None else {"kind": value}
    if not isinstance(value, dict):
        raise Refusal(f"`{key}` is {value!r} and has no keys", where=f"argument {argument!r}", fix=f"give it as a whole: {key}=...")
    return value
