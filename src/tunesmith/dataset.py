"""The data side of a recipe: files read, formats found, texts tokenised, labels counted. No weights are loaded."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import xxhash

from .core import Ragged
from .data import desk
from .environments import environment
from .errors import Refusal
from .networks.load import Origin, load_config, load_tokenizer, origin
from .objectives import OBJECTIVES
from .prompting.reading import worded
from .recipe import Recipe
from .sections import Data
from .sources.text.encode import Encoded, Reader
from .sources.text.examples import Example
from .sources.text.formats import Format, detect, preview
from .sources.text.read import read
from .sources.text.records import Records
from .sources.text.task import Task, kind_of, task_of
from .sources.text.unlabelled import without_labels

DEFAULT_LENGTH = {"classify": 512, "tag": 512, "score": 512, "generate": 1024, "embed": 256}
OUTER, INNER = 20240229, 20240301  # seeds of what is held out
FIRST_SEED = {"train": 0, "eval": 1_000_000, "test": 2_000_000}  # of the episodes of a part
EPISODES = {"train": 1024, "eval": 128, "test": 128}
DESK_SPLITS = {"train": "train", "eval": "dev", "test": "test"}


@dataclass(frozen=True)
class Part:
    """One file as examples and as numbers. `format` is what was found in it; `task` the recipe's, of the kind that this file's rows are."""

    name: str
    format: Format
    encoded: Encoded
    task: Task

    @property
    def examples(self) -> Sequence[Example]:
        return self.encoded.kept


@dataclass(frozen=True)
class Dataset:
    """All that a recipe's data is, ready for any network of its tokenizer.

    parts   of several tasks, or of one that arrives in stages, the data of each (curriculum.py); the rest is then what they are together, or the first's
    """

    task: Task
    reader: Reader
    source: Origin
    train: Part
    eval: Part | None
    test: Part | None
    notes: list[str] = field(default_factory=list)
    parts: Mapping[str, Dataset] = field(default_factory=dict)

    @property
    def each(self) -> Mapping[str, Dataset]:
        """By task; of one task, itself."""
        return self.parts or {self.task.key: self}

    @property
    def worded(self) -> bool:
        """Whether any of it is asked about in words of the vocabulary."""
        return any(one.reader.wording is not None for one in self.each.values())

    @property
    def fingerprint(self) -> str:
        """Of the tokens and labels, in order."""
        hashed = xxhash.xxh3_128()
        for column in self.train.encoded.columns.values():
            values = column.values if isinstance(column, Ragged) else column
            hashed.update(values.numpy().tobytes())
        return hashed.hexdigest()


@dataclass(frozen=True)
class Rows:
    """The files of a task, before labels are counted and texts tokenised, by part."""

    records: dict[str, Records]
    formats: dict[str, Format]
    examples: dict[str, list[Example]]


def read_data(recipe: Recipe) -> Dataset:
    """Of a recipe with one task. Raises Refusal on anything in the files that cannot be learnt from, before a weight is loaded."""
    rows = read_rows(recipe)
    return made_of(recipe, rows, task_of(recipe.task, rows.examples["train"], recipe.data.multi_label))


def read_rows(recipe: Recipe) -> Rows:
    names = ("train",) if recipe.data.inner else ("train", "eval", "test")
    records = {name: found for name in names if (found := read_part(recipe, name))}
    formats = {name: formatted(recipe, found) for name, found in records.items()}
    examples = {name: found.examples() for name, found in formats.items()}
    examples["train"], held = sample(recipe.data, examples["train"])
    examples["train"] = recipe.built_stream().draw(examples["train"], recipe.seed)
    if held:
        records["eval"], formats["eval"], examples["eval"] = records["train"], formats["train"], held
    return Rows(records, formats, examples)


def made_of(recipe: Recipe, rows: Rows, task: Task) -> Dataset:
    formats, examples = rows.formats, dict(rows.examples)
    source = origin(recipe.model.name, recipe.model.revision, recipe.model.bits, recipe.model.blocks)
    reader = reader_for(recipe, source)
    for name in examples:
        known(task, examples[name], name)
    read_as = OBJECTIVES[recipe.objective["kind"]].rows
    kinds = {name: kind_of(task.name, found, task.kind == "multi") for name, found in examples.items()}
    task = replace(task, kind=read_as.get(task.kind, task.kind))
    tasks = {name: replace(task, kind=read_as.get(kind, kind)) for name, kind in kinds.items()}
    if task.kind in WORDED:
        reader = WORDED[task.kind](reader, recipe, task, source, examples["train"])
    if recipe.data.unlabelled:
        examples["train"] = [*examples["train"], *unlabelled(recipe, task, formats["train"].columns, [e for part in examples.values() for e in part])]
    parts = {name: Part(name, formats[name], reader.encode(examples[name], tasks[name]), tasks[name]) for name in examples}
    notes = [note for name in parts for note in (*formats[name].notes, *parts[name].encoded.notes)]
    return Dataset(task, reader, source, parts["train"], parts.get("eval"), parts.get("test"), list(dict.fromkeys(notes)))


WORDED = {"cloze": worded}  # kind of rows -> the reader that knows the words in which they are asked about


def read_part(recipe: Recipe, name: str) -> Records | None:
    """One of train, eval, test; None where the recipe names none."""
    given = getattr(recipe.data, name)
    if given is None or isinstance(given, float):
        return None
    d = recipe.data
    split = {"train": "train", "eval": "validation", "test": "test"}[name]
    embedded = EMBEDDED.get(given.partition("/")[0])
    if embedded:
        return embedded(given, recipe, name)
    return read(given, encoding=d.encoding, delimiter=d.delimiter, header=d.header, split=split, where_key=f"data.{name}")


def formatted(recipe: Recipe, records: Records) -> Format:
    d = recipe.data
    return detect(records, recipe.task, d.columns or None, multi_label=d.multi_label, bad_rows=d.bad_rows, repair=d.repair)


def unlabelled(recipe: Recipe, task: Task, columns: Mapping[str, str], known: Sequence[Example]) -> list[Example]:
    """Further rows for a teacher to label: the texts of a file, read from the columns that the training file has, once each, without those that the other files hold."""
    d = recipe.data
    records = read(d.unlabelled or "", encoding=d.encoding, delimiter=d.delimiter, header=d.header, split="train", where_key="data.unlabelled")
    found = without_labels(records, task.name, {k: v for k, v in columns.items() if k in ("text", "pair", "tokens") and v in records.columns})
    seen = {row_hash(e) for e in known}
    fresh = [e for e in found if (h := row_hash(e)) not in seen and not seen.add(h)]
    if not fresh:
        raise Refusal(f"{d.unlabelled} has no text that the other files have not", where="data.unlabelled")
    return fresh if d.unlabelled_limit is None else random.Random(OUTER).sample(fresh, min(d.unlabelled_limit, len(fresh)))


def desk_records(given: str, task: str, name: str) -> Records:
    """The embedded data: `desk`, or one of its other shapes as `desk/urgency`."""
    shape = given.partition("/")[2] or task
    if shape not in desk.SHAPES:
        raise Refusal(
            f"the desk has no rows for {shape!r}",
            where=f"data.{name}",
            fix=f"./{given} for a file of that name; else desk, or desk/ and one of {', '.join(desk.SHAPES)}",
        )
    rows = desk.rows(shape, DESK_SPLITS[name])
    return Records(rows=rows, lines=list(range(1, len(rows) + 1)), path=given, kind="jsonl")


def episodes(given: str, recipe: Recipe, name: str) -> Records:
    """The beginnings of an environment's episodes: `play`, or `play/200` for 200 of them."""
    count = given.partition("/")[2] or str(EPISODES[name])
    if not count.isdigit() or count == "0":
        raise Refusal(f"{given!r} is no number of episodes", where=f"data.{name}", fix=f"play/{EPISODES[name]}")
    world = environment(recipe.objective["environment"])()
    seen = (world.reset(seed=FIRST_SEED[name] + i)[0] for i in range(int(count)))
    rows = [{"prompt": s if isinstance(s, str) else " ".join(map(str, s)), "completion": "..."} for s in seen]
    return Records(rows=rows, lines=list(range(1, len(rows) + 1)), path=given, kind="jsonl")


EMBEDDED = {"desk": lambda given, recipe, name: desk_records(given, recipe.task, name), "play": episodes}


def sample(data: Data, examples: list[Example]) -> tuple[list[Example], list[Example]]:
    """The rows to train on and those to judge by that were held out of them; the same for every seed of a comparison."""
    share = data.eval if isinstance(data.eval, float) else 0.0
    if share or data.limit:
        examples, held = apart(examples, share, data.limit, OUTER, "data.eval")
    else:
        held = []
    return apart(examples, data.inner, None, INNER, "data.inner") if data.inner else (examples, held)


def apart(examples: list[Example], share: float, limit: int | None, seed: int, where: str) -> tuple[list[Example], list[Example]]:
    """By a seeded shuffle: at most `limit` rows, and a share that is held out of them. A row stays if no other row teaches a label of its own."""
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)
    held = order[: round(share * len(order))]
    if share and not held:
        raise Refusal(f"{share:.0%} of {len(order)} rows is none", where=where, fix="a larger share, or a file")
    rest = order[len(held) :][:limit]
    taught = {label for i in rest for label in labels_in(examples[i])}
    alone = {i for i in held if not taught.issuperset(labels_in(examples[i]))}
    return [examples[i] for i in sorted([*rest, *alone])], [examples[i] for i in sorted(held) if i not in alone]


def labels_in(example: Any) -> Sequence[str]:
    return getattr(example, "labels", None) or getattr(example, "tags", ())


def reader_for(recipe: Recipe, source: Origin) -> Reader:
    config, tokenizer = load_config(source), load_tokenizer(source)
    limits = (getattr(config, "max_position_embeddings", None), tokenizer.model_max_length if tokenizer.model_max_length < 1 << 20 else None)
    limit = min((n for n in limits if n), default=None)
    before = recipe.built_method().positions
    longest = (limit or 1 << 20) - before
    if recipe.data.max_length and recipe.data.max_length > longest:
        what = f"{recipe.model.name} reads at most {limit} tokens" + (f", and the {recipe.method['kind']} takes {before}" if before else "")
        raise Refusal(f"max_length {recipe.data.max_length} is too long: {what}", where="data.max_length", fix=f"at most {longest}")
    return Reader(
        tokenizer,
        recipe.data.max_length or min(longest, DEFAULT_LENGTH[recipe.task]),
        types=getattr(config, "type_vocab_size", 0) > 1 and "token_type_ids" in tokenizer.model_input_names,
        seq2seq=config.is_encoder_decoder and recipe.task == "generate",
        template=recipe.data.template,
        learn_prompt=recipe.data.learn_prompt,
        prompts={str(role): text for role, text in recipe.data.prompts.items()},
        drop_cut=recipe.data.bad_rows == "skip",
    )


def known(task: Task, examples: Sequence[Any], name: str) -> None:
    """Labels of other files must occur in training; texts to embed are not judged by themselves."""
    if name != "train" and task.name == "embed" and kind_of(task.name, examples) == "texts":
        raise Refusal(
            f"data.{name} has texts alone, which nothing can be judged by", where=f"data.{name}", fix="pairs, pairs with a score, or texts with a label"
        )
    if task.kind not in ("single", "multi", "cloze", "tag"):
        return
    used = [(label, e.row) for e in examples for label in labels_in(e)]
    if odd := [(label, row) for label, row in used if label not in set(task.labels)]:
        raise Refusal(
            f"label {odd[0][0]!r} in data.{name} never occurs in training ({len(odd)} times in all)",
            where=f"data.{name} row {odd[0][1] + 1}",
            fix=f"known labels: {', '.join(task.labels[:12])}",
        )


def renderings(data: Dataset) -> list[str]:
    """The first three rows as they were understood."""
    return preview(data.train.format)


def asked(example: Any) -> str:
    """What a row asks, as one text; not what is answered."""
    dialogue = getattr(example, "chosen", None) or getattr(example, "dialogue", None) or example
    turns = [turn.content for turn in getattr(dialogue, "turns", ()) if turn.role != "assistant"]
    texts = [getattr(example, "text", None), getattr(example, "pair", None), " ".join(getattr(example, "tokens", ())), *getattr(example, "texts", ()), *turns]
    return "\n".join(text for text in texts if text)


def row_hash(example: Any) -> str:
    """Equal for a row that stands in train and in eval."""
    return hashlib.sha1(asked(example).encode(), usedforsecurity=False).hexdigest()
