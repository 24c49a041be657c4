"""A teacher's answers on disk: one safetensors file, mapped into memory, and beside it who answered what, written last.

    teacher.safetensors   example (n,): ids; lengths (n,): answers of each, if not one; tokens (n,): of each, where states are kept; then the columns
    teacher.json          key: all that the answers depend on; digest: of the file; about: the teacher itself

Answers are found by the id of their example, never by their place. What another program stored has no teacher.json: its metadata may name
`labels` (JSON) and `temperature`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..checkpoint import digest, sync, write_file
from ..core import Ragged
from ..errors import Refusal, Storage
from ..sources.answers import Stored

FILE, ABOUT = "teacher.safetensors", "teacher.json"
INSIDE = ("teacher_states", "teacher_heads")  # columns with an entry a token
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64", torch.int32: "I32"}


@dataclass(frozen=True)
class Spec:
    """A column to be written: its dtype, the shape of an entry, and which lengths say how many an example has; none, where it is one."""

    dtype: torch.dtype
    entry: tuple[int, ...]
    lengths: str | None = None


class Writer:
    """The file at its full size, mapped, so that answers go to their places in any order. It counts for nothing before `finish`."""

    def __init__(self, folder: Path, examples: Sequence[int], lengths: Mapping[str, Sequence[int]], specs: Mapping[str, Spec]):
        self.folder, self.aside = folder, folder / f".{FILE}.{os.getpid()}.tmp"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ABOUT).unlink(missing_ok=True)
        numbers = {"example": examples, **lengths}
        rows = {name: (torch.int64, (len(examples),)) for name in numbers}
        rows |= {name: (s.dtype, (sum(lengths[s.lengths]) if s.lengths else len(examples), *s.entry)) for name, s in specs.items()}
        self.views, self.specs = mapped(self.aside, rows), specs
        for name, values in numbers.items():
            self.views[name].copy_(torch.tensor(values, dtype=torch.int64))
        self.starts = {name: [0, *accumulate(values)] for name, values in lengths.items()}

    def put(self, place: int, answer: Mapping[str, Tensor]) -> None:
        """The answer to the example at this place."""
        for name, spec in self.specs.items():
            rows = slice(*self.starts[spec.lengths][place : place + 2]) if spec.lengths else place
            self.views[name][rows] = answer[name].to(spec.dtype).cpu()

    def finish(self, key: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        self.views.clear()
        with self.aside.open("rb") as f:
            os.fsync(f.fileno())
        self.aside.replace(self.folder / FILE)
        sync(self.folder)
        note(self.folder, key, about, digest(self.folder / FILE))


def note(folder: Path, key: Mapping[str, Any], about: Mapping[str, Any], hashed: str) -> None:
    write_file(folder / ABOUT, json.dumps({"key": key, "digest": hashed, "about": about}, indent=1, ensure_ascii=False).encode())


def mapped(path: Path, rows: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> dict[str, Tensor]:
    """A safetensors file of these tensors, all zero, whose contents are changed by changing what is returned. Raises Storage where there is no room."""
    header, end = dict[str, Any](), 0
    order = sorted(rows, key=lambda name: -rows[name][0].itemsize)  # so that all lie at multiples of their size
    for name in order:
        dtype, shape = rows[name]
        size = dtype.itemsize * torch.Size(shape).numel()
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    try:
        with path.open("wb") as f:
            f.write(len(text).to_bytes(8, "little") + text)
            os.posix_fallocate(f.fileno(), 0, 8 + len(text) + end)
    except OSError as e:
        path.unlink(missing_ok=True)
        raise Storage(
            f"cannot keep the teacher's answers in {path.parent}",
            why=f"{e.strerror}; {end / 1e9:.2f} GB needed",
            fix="a smaller `top`, or another objective.cache",
        ) from e
    base = 8 + len(text)
    whole = torch.from_file(str(path), shared=True, size=base + end, dtype=torch.uint8)
    cut = lambda name: whole[base + header[name]["data_offsets"][0] : base + header[name]["data_offsets"][1]]
    return {name: cut(name).view(rows[name][0]).view(rows[name][1]) for name in order}


# ------------------------------------------------------------------------------------------------ reading


def manifest(folder: Path) -> dict[str, Any] | None:
    """What teacher.json says; None where nothing was finished here."""
    try:
        return json.loads((folder / ABOUT).read_text())
    except (OSError, ValueError):
        return None


def opened(folder: Path, key: Mapping[str, Any], examples: Sequence[int]) -> Stored:
    """Raises Refusal, naming what differs, where the answers are to other questions, of another teacher, or not to all examples."""
    found = manifest(folder)
    assert found is not None, "ask first"
    differs = [f"{k}: {short(found['key'].get(k))} there, {short(v)} here" for k, v in key.items() if found["key"].get(k) != v]
    if differs:
        raise Refusal(
            f"the teacher's answers in {folder} do not fit this run",
            where="objective.cache",
            why="; ".join(differs),
            fix="another objective.cache, or delete that folder",
        )
    if digest(folder / FILE) != found["digest"]:
        raise Refusal(
            f"{folder / FILE} is not what was written", where="objective.cache", why="its hash is another", fix="delete that folder; the teacher is asked again"
        )
    return of_file(folder / FILE, examples, found["about"])


def short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def of_file(path: Path, examples: Sequence[int], about: Mapping[str, Any]) -> Stored:
    """A file's tensors, mapped: nothing is read before it is asked for."""
    try:
        with safe_open(path, "pt") as f:
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
            said = {**(f.metadata() or {}), **about}
    except (OSError, SafetensorError) as e:
        raise Refusal(f"cannot read {path}", where="objective.teacher", why=str(e)) from e
    if "example" not in tensors:
        raise Refusal(
            f"{path} does not say which example an answer belongs to",
            where="objective.teacher",
            fix="a tensor `example` (n,) of ids, as tunesmith.teaching.ids makes them",
        )
    ids = tensors.pop("example").tolist()
    lengths = {name: tuple(tensors.pop(name).tolist()) for name in ("lengths", "tokens") if name in tensors}
    place = {example: i for i, example in enumerate(ids)}
    if missing := [e for e in dict.fromkeys(examples) if e not in place]:
        raise Refusal(
            f"{path} has no answer for {len(missing)} of {len(set(examples))} examples",
            where="objective.teacher",
            why="they are found by id: the text, or for texts to write the tokens",
            fix="ask the teacher about these data: another objective.cache, or delete this one",
        )
    which = lambda name: lengths.get("tokens" if name in INSIDE else "lengths")
    return Stored({name: t if (known := which(name)) is None else Ragged(t, known) for name, t in tensors.items()}, place, said)
