"""Data for constructors: a dict becomes a frozen dataclass, unknown keys refused with the closest, values checked by their annotations."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import field, fields, is_dataclass, make_dataclass
from functools import cache
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from .errors import Refusal
from .recipe_yaml import Places, closest

T = TypeVar("T")


def build(cls: type[T], data: Any, path: str, places: Places | None, also: tuple[str, ...] = ()) -> T:
    """A frozen dataclass from a dict. Raises Refusal with the key, and the nearest right one of its fields and of `also`."""
    strict(cls, data, path, places, also)
    try:
        return adapter(cls).validate_python(data)
    except ValidationError as e:
        raise first_fault(e, path, places) from e


@cache
def adapter(cls: type[T]) -> TypeAdapter[T]:
    """Made once: a run builds its method, stream and update from the recipe many times."""
    return TypeAdapter(cls)


def strict(cls: type, data: Any, path: str, places: Places | None, also: tuple[str, ...] = ()) -> None:
    """Unknown keys, here and in the sections below."""
    if not isinstance(data, Mapping):
        raise Refusal(f"`{path}` is a section, not {data!r}", where=at(places, path), fix=f"{path}: {{{fields(cls)[0].name}: ...}}")
    known, inner = {f.name for f in fields(cls)}, sections(cls)
    for key in data:
        full = f"{path}.{key}" if path else str(key)
        if key not in known:
            near = closest(str(key), [*known, *also])
            raise Refusal(
                f"unknown key `{full}`", where=at(places, full), fix=f"did you mean `{near}`?" if near else f"known here: {', '.join(sorted(known)) or 'none'}"
            )
        if key in inner:
            strict(inner[key], data[key], full, places)


@cache
def sections(cls: type) -> dict[str, type]:
    """Those of a dataclass' fields that are dataclasses themselves."""
    return {name: kind for name, kind in get_type_hints(cls).items() if is_dataclass(kind)}  # type: ignore[misc]


@cache
def options(constructor: type) -> type:
    """What a constructor takes besides its first argument, as a dataclass, so that options are checked before anything is made."""
    hints = get_type_hints(constructor.__init__, include_extras=True)
    takes = list(inspect.signature(constructor).parameters.values())[1:]
    return make_dataclass(f"{constructor.__name__}Options", [(p.name, hints[p.name], p.default) for p in takes], frozen=True)


@cache
def joined(section: type, row: type) -> type:
    """The fields of both that a recipe may set, as one dataclass: for a section whose kind has options beside the section's own."""
    hints = {name: kind for cls in (section, row) for name, kind in get_type_hints(cls, include_extras=True).items()}
    takes = {f.name: f for cls in (section, row) for f in fields(cls) if f.init and f.name != "options"}
    return make_dataclass(
        section.__name__,
        [(name, hints[name], field(default=f.default, default_factory=f.default_factory)) for name, f in takes.items()],  # type: ignore[call-overload]
        frozen=True,
    )


def folded(section: type, row: type, data: Mapping[str, Any], path: str, places: Places | None) -> dict[str, Any]:
    """The section as data, checked, with what the row takes moved under `options`."""
    build(joined(section, row), data, path, places)
    own = {f.name for f in fields(row)}
    return {k: v for k, v in data.items() if k not in own} | {"options": {k: v for k, v in data.items() if k in own}}


def first_fault(error: ValidationError, path: str, places: Places | None) -> Refusal:
    """pydantic's first complaint as one line: the key, what was given, what is allowed."""
    faults = error.errors()
    fault = max(faults, key=lambda f: f["type"] not in ("none_required", "literal_error")) if len(faults) > 1 else faults[0]
    names = [str(part) for part in fault["loc"] if isinstance(part, str) and part.isidentifier()]
    key = ".".join([*([path] if path else []), *names])
    if fault["type"] == "missing":
        return Refusal(f"`{key}` is missing", where=at(places, key))
    wanted = fault["msg"].removeprefix("Input should be ")
    return Refusal(f"`{key}` is {fault['input']!r}", where=at(places, key), fix=f"it should be {wanted}")


def at(places: Places | None, key: str) -> str:
    return places.where(key) if places else key


def without_kind(data: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in data.items() if k != "kind"}
