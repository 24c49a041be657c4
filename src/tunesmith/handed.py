"""What a recipe says of a prompt, brought to where it is read: from a file into its section, from a method to its objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from .construct import at
from .errors import Refusal


def handed_on(found: dict[str, Any], implies: Mapping[str, str], keys: Sequence[str]) -> None:
    """A method without parameters gives its words to the objective that judges them, in place; an objective that is not named is the one that it implies."""
    method = dict(found["method"])
    said = {key: method.pop(key) for key in keys if key in method}
    kind = implies.get(str(found.get("task")))
    given = found.get("objective") or ({"kind": kind} if kind else {})
    if twice := [key for key in said if key in given and given[key] != said[key]]:
        raise Refusal(f"`{twice[0]}` stands in the method and in the objective", where=f"method.{twice[0]}", fix="keep one of them")
    found["method"] = method
    if given or said:
        found["objective"] = {**given, **said}


def from_file(section: dict[str, Any], places: Any) -> dict[str, Any]:
    """The section with what its `file` says of a prompt: template, words, instruction, chat. What stands in the section goes before it."""
    if "file" not in section:
        return section
    path, known = Path(str(section["file"])).expanduser(), ("template", "words", "instruction", "chat")
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as e:
        raise Refusal(
            f"cannot read {path}", where=at(places, "objective.file"), why=str(e).splitlines()[0], fix="a YAML or JSON file with template and words"
        ) from e
    if not isinstance(said, Mapping) or (odd := [key for key in said if key not in known]):
        raise Refusal(f"{path} has {odd[0] if isinstance(said, Mapping) else 'no keys'!r}", where=at(places, "objective.file"), fix=", ".join(known))
    return {**said, **{k: v for k, v in section.items() if k != "file"}}
