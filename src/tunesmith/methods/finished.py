"""Finished runs as material: what a method that stands on other runs' deltas reads of their folders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from ..errors import Refusal

Parts = tuple[Mapping[str, Any], ...]
LORA = {".lora_A.weight": ".lora.A", ".lora_B.weight": ".lora.B"}  # peft's names and ours
ROOT = "base_model.model."


def artifact_of(run: str | Path) -> Path:
    """The artifact of a run's folder, or the folder itself."""
    folder = Path(run).expanduser()
    return folder / "artifact" if (folder / "artifact").is_dir() else folder


def about(run: str) -> Mapping[str, Any]:
    """What its artifact says of it: model, task, method."""
    try:
        return json.loads((artifact_of(run) / "tunesmith.json").read_text())
    except (OSError, ValueError) as e:
        raise Refusal(f"{run} holds no finished run", where="method.runs", fix="folders of finished runs, such as [runs/a, runs/b]") from e


def changes(run: str) -> dict[str, Tensor]:
    """All that its delta holds, by the names that it has in a network."""
    found: dict[str, Tensor] = {}
    for file in ("delta.safetensors", "adapter_model.safetensors"):
        if (path := artifact_of(run) / file).exists():
            found |= {ours(name): value for name, value in load_file(path).items()}
    return found


def ours(name: str) -> str:
    for theirs, own in LORA.items():
        if name.startswith(ROOT) and name.endswith(theirs):
            return "model." + name.removeprefix(ROOT).removesuffix(theirs) + own
    return name


def made(runs: Sequence[str], parts: Parts) -> Parts:
    """How the deltas of these runs are made, from their folders where an artifact does not say. Raises Refusal where there are none."""
    if found := parts or tuple(about(run)["method"] for run in runs):
        return found
    raise Refusal("`method.runs` names no finished run", where="method.runs", fix="runs: [runs/a, runs/b]")


def options(part: Mapping[str, Any]) -> dict[str, Any]:
    """For the constructor of its method."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in part.items() if k != "kind"}


def agree(runs: Sequence[str], kind: str, model: Mapping[str, Any]) -> None:
    """Raise Refusal unless all of these runs trained this kind of delta on this model."""
    made(runs, ())
    for run in runs:
        said = about(run)
        if said["method"]["kind"] != kind:
            raise Refusal(
                f"{run} was trained with `method: {said['method']['kind']}`, and what is put together here are deltas of {kind}",
                where="method.runs",
                fix={"adapter": "method: {kind: mixture, ...} puts LoRAs together", "lora": "method: {kind: fusion, ...} puts adapters together"}[kind],
            )
        for key in ("name", "revision", "blocks"):
            here, there = model.get(key), said["model"].get(key)
            if (list(here) if isinstance(here, tuple) else here) != there:
                raise Refusal(
                    f"{run} changes another base: its `model.{key}` is {there!r}, and here it is {here!r}",
                    where="method.runs",
                    why="a delta means something on the weights that it was trained on",
                    fix=f"model: {{name: {said['model'].get('name')}}}, or runs on {model.get('name')}",
                )


def given(found: Mapping[str, Tensor], name: str, shape: Sequence[int], run: str) -> Tensor:
    """A tensor of a run, as it must be here."""
    if name not in found or tuple(found[name].shape) != tuple(shape):
        shown = tuple(found[name].shape) if name in found else "missing"
        raise Refusal(f"the delta of {run} does not fit this network: {name} is {shown}, expected {tuple(shape)}", where="method.runs")
    return found[name]
