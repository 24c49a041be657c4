"""Checkpoints that survive being killed at any moment: written aside, synced, hashed, renamed; read only if every hash holds.

    checkpoints/step-00000120/   delta, objective, source, listeners, update .safetensors   state.json  manifest.json

A folder counts if its manifest verifies. The newest that does is continued; a damaged one is named and passed over. Nothing
is pickled. What is not in the folder is a function of the recipe, the seed and the step: row order, dropout, the schedule.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .core import Listener, Remembering, Run, Stage, under
from .errors import Refusal, Storage
from .parallel import first

MANIFEST = "manifest.json"
Content = bytes | Mapping[str, Tensor]


# ------------------------------------------------------------------------------------------------ writing so that it is there


def write_folder(folder: Path, files: Mapping[str, Content]) -> None:
    """Put a folder of files in place whole or not at all. Raises Storage where the disk does not take them.

    Tensors go from where they are to the disk, without a second copy in memory; hashes are of what the disk gives back.
    """
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for name, content in files.items():
            write_synced(aside / name, content)
        entries = {name: {"size": (aside / name).stat().st_size, "xxh3": digest(aside / name)} for name in files}
        write_synced(aside / MANIFEST, json.dumps(entries, indent=1).encode())
        sync(aside)
        if folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)
        sync(folder.parent)
    except OSError as e:
        shutil.rmtree(aside, ignore_errors=True)
        need = sum(size_of(content) for content in files.values())
        free = shutil.disk_usage(folder.parent).free if folder.parent.exists() else 0
        raise Storage(
            f"cannot write {folder}",
            why=f"{e.strerror or e}; {need / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free",
            fix="make room; earlier checkpoints are intact",
        ) from e


def write_file(path: Path, content: Content) -> None:
    """Replace one file whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_synced(aside, content)
        aside.replace(path)
        sync(path.parent)
    except OSError as e:
        aside.unlink(missing_ok=True)
        raise Storage(f"cannot write {path}", why=str(e.strerror or e), fix="make room, or choose another `out`") from e


def write_synced(path: Path, content: Content) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        try:
            save_file(owned(content), path, {"format": "pt"})
        except SafetensorError as e:  # it wraps what the system said
            raise OSError(28 if "os error 28" in str(e) else 5, str(e)) from e
    with path.open("rb") as f:
        os.fsync(f.fileno())


def size_of(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else sum(t.numel() * t.element_size() for t in content.values())


def sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(path: Path) -> str:
    """xxh3 of a file, read in pieces."""
    hashed = xxhash.xxh3_128()
    with path.open("rb") as f:
        while piece := f.read(1 << 22):
            hashed.update(piece)
    return hashed.hexdigest()


def damage(folder: Path) -> str:
    """What is wrong with a written folder; empty if nothing is."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, entry in manifest.items():
            if (folder / name).stat().st_size != entry["size"] or digest(folder / name) != entry["xxh3"]:
                return f"{name} is not what was written"
    except FileNotFoundError as e:
        return f"{Path(e.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    return ""


# ------------------------------------------------------------------------------------------------ the listener


@dataclass
class Checkpoints(Listener):
    """Saves every `every` steps and at the end of a stage; keeps the newest `keep`. `said` hears what was passed over.

    A run goes on where all of its fingerprint is as it was, but for lists that have become longer (the stages of a sequence): `grew` says that one has.
    """

    folder: Path
    fingerprint: Mapping[str, Any]
    every: int
    keep: int = 2
    said: list[str] = field(default_factory=list)
    grew: bool = False

    def step(self, run: Run, record: Mapping[str, float]) -> None:
        if run.done % self.every == 0 and run.done not in run.ends and not run.halt:
            self.save(run)

    def end(self, run: Run, stage: Stage) -> None:
        """With all that the other listeners have made of the end of the stage."""
        self.save(run)

    def save(self, run: Run) -> None:
        if not first():
            return
        files = {
            "delta.safetensors": run.delta.state_dict(),
            "objective.safetensors": run.objective.state_dict(),
            "source.safetensors": remembered(run),
            "listeners.safetensors": {f"{i}/{k}": t for i, listener in enumerate(run.listeners) for k, t in listener.tensors().items()},
            "update.safetensors": run.update.state_dict(),
            "state.json": json.dumps(
                {"done": run.done, "ended": run.ended, "halt": run.halt, "fingerprint": self.fingerprint, "listeners": states(run)}
            ).encode(),
        }
        write_folder(self.folder / name_of(run.done), files)
        for old in self.found()[self.keep :]:
            shutil.rmtree(old, ignore_errors=True)

    def found(self) -> list[Path]:
        """All checkpoint folders, newest first."""
        return sorted(self.folder.glob("step-*"), reverse=True) if self.folder.exists() else []

    def resume(self, run: Run) -> bool:
        """Continue from the newest checkpoint that verifies. The network must be attached and the update prepared."""
        for left in self.folder.glob(".*.tmp") if first() else ():
            shutil.rmtree(left, ignore_errors=True)
        for folder in self.found():
            if fault := damage(folder):
                self.said.append(f"checkpoint {folder.name} is damaged ({fault}); using the one before it")
                continue
            self.load(run, folder)
            return True
        return False

    def load(self, run: Run, folder: Path) -> None:
        state = json.loads((folder / "state.json").read_text())
        if changed := [k for k, new in self.fingerprint.items() if not goes_on(state["fingerprint"].get(k), new)]:
            lines = "; ".join(f"{k}: {state['fingerprint'].get(k)} -> {self.fingerprint[k]}" for k in changed)
            raise Refusal(
                f"this run was started with another {', '.join(changed)}",
                where=str(folder.parent.parent),
                why=lines,
                fix="--fresh to start anew, or another `out`",
            )
        self.grew = state["fingerprint"] != self.fingerprint
        fitting = grown if self.grew else lambda stored, here: stored
        run.delta.load_state_dict(fitting(load_file(folder / "delta.safetensors"), run.delta.state_dict()))
        run.objective.load_state_dict(fitting(load_file(folder / "objective.safetensors"), run.objective.state_dict()))
        remind(run, load_file(folder / "source.safetensors"))
        if not self.grew:  # else a stage begins, and the optimiser with it
            run.update.load_state_dict(load_file(folder / "update.safetensors"))
        run.done, run.ended, run.halt = state["done"], state["ended"], state["halt"]
        held = load_file(folder / "listeners.safetensors")
        for i, (listener, kept) in enumerate(zip(run.listeners, state["listeners"], strict=True)):
            listener.restore(kept)
            listener.recall(under(held, f"{i}/"))


def goes_on(old: Any, new: Any) -> bool:
    return old == new or (isinstance(old, list) and isinstance(new, list) and old == new[: len(old)])


def grown(stored: Mapping[str, Tensor], here: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What was stored, in tensors of the size that they have now: what is new in them stays as it was made (a head with more labels)."""
    found = {name: tensor.clone() for name, tensor in here.items()}
    for name, old in stored.items():
        found[name][tuple(slice(n) for n in old.shape)] = old.to(found[name].device)
    return found


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def states(run: Run) -> list[Mapping[str, Any]]:
    return [listener.state() for listener in run.listeners]


def remembered(run: Run) -> dict[str, Tensor]:
    """What the sources of all stages must not forget, as `stage/name`."""
    return {f"{stage.name}/{k}": t for stage in run.stream if isinstance(stage.train, Remembering) for k, t in stage.train.state_dict().items()}


def remind(run: Run, state: Mapping[str, Tensor]) -> None:
    """The inverse of `remembered`."""
    for stage in run.stream:
        if isinstance(stage.train, Remembering):
            stage.train.load_state_dict(under(state, f"{stage.name}/"))


def owned(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous and on the CPU, as safetensors wants it; a tensor stored under two names is written twice."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in state.items():
        t = tensor.detach().cpu().contiguous()
        place = t.untyped_storage().data_ptr()
        found[name] = t.clone() if place in seen or t.untyped_storage().nbytes() != t.numel() * t.element_size() else t
        seen.add(place)
    return found


# ------------------------------------------------------------------------------------------------ one run, one folder


class Lock:
    """Held while a run uses its folder. The kernel lets go of it when the process dies, however it dies."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.handle = (folder / ".lock").open("a+")
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            self.handle.seek(0)
            holder = self.handle.read().strip() or "another process"
            self.handle.close()
            raise Refusal(f"{folder} is in use by {holder}", where="out", fix="wait for it, or choose another `out`") from e
        self.handle.truncate(0)
        self.handle.write(f"process {os.getpid()} on {os.uname().nodename}")
        self.handle.flush()

    def release(self) -> None:
        self.handle.close()
