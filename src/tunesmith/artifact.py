"""What a run leaves behind: the delta, the head, the tokenizer, and all it takes to rebuild the tuned network. Checked after writing.

artifact/  tunesmith.json            model, task and labels, method, head, how texts are read
           adapter_model.safetensors + adapter_config.json    lora, prompt, prefix: peft's format
           delta.safetensors         everything else that moved: heads, biases, blocks ...
           objective.safetensors     what the objective learnt for itself, such as a critic; not needed to predict
           tokenizer files
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from .checkpoint import Content, write_file
from .construct import build, without_kind
from .core import Batch, Delta, Method, Objective, Ragged
from .errors import Refusal, Storage
from .methods import METHODS
from .methods.bitfit import make_room
from .methods.finished import artifact_of
from .networks.decode import Sampling
from .networks.heads import HeadSpec
from .networks.load import Origin, add_head, load_network, load_tokenizer, origin
from .networks.precision import DTYPES
from .networks.transformer import Transformer
from .objectives import OBJECTIVES
from .peft_format import from_peft, to_peft
from .predicting import PREDICT
from .prompting.readable import FILES, handed_out
from .prompting.reading import from_plain
from .sentence_format import sentence_files
from .sources.text.encode import Reader
from .sources.text.task import Task
from .strategies.route import put_back, routed

FORMAT = 1


@dataclass(frozen=True)
class Description:
    """tunesmith.json. Enough, with the base model, to rebuild the tuned network."""

    model: Mapping[str, Any]
    task: Mapping[str, Any]
    method: Mapping[str, Any]
    head: Mapping[str, Any]
    pool: str
    reader: Mapping[str, Any]
    dtype: str
    kernel: str
    tasks: Mapping[str, Any] = field(default_factory=dict)  # of several with heads of their own: task, head and reader by name
    format: int = FORMAT
    objective: Mapping[str, Any] = field(default_factory=dict)  # where it is needed to answer

    @property
    def worded(self) -> bool:
        """Whether it is answered in words of the vocabulary."""
        return bool(self.objective) or any("objective" in one for one in self.tasks.values())

    @property
    def base(self) -> Origin:
        """What was tuned."""
        return origin(self.model["name"], self.model["revision"], self.model["bits"], self.model.get("blocks"))


def save_artifact(
    folder: Path, net: Transformer, delta: Delta, method: Method, about: Description, tokenizer: Any, beside: Mapping[str, torch.Tensor] | None = None
) -> int:
    """Write, read back, compare. `beside` is what the objective learnt for itself (a critic). Returns the bytes of the tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    state, adapter = (
        delta.state_dict(),
        to_peft(method, delta, about.model["name"]) if about.model.get("blocks") is None else None,
    )  # peft would put it on all blocks
    files: dict[str, Content] = {}
    if adapter:
        files["adapter_model.safetensors"] = adapter.tensors
        files["adapter_config.json"] = json.dumps(adapter.config, indent=2).encode()
    rest = {n: t for n, t in state.items() if not adapter or n not in adapter.ours}
    if rest:
        files["delta.safetensors"] = rest
    if beside:
        files["objective.safetensors"] = beside
    files["tunesmith.json"] = json.dumps(asdict(about), indent=2, ensure_ascii=False).encode()
    for name, content in files.items():
        write_file(folder / name, content)
    tokenizer.save_pretrained(folder)
    verify(folder, net, delta, method)
    return sum((folder / n).stat().st_size for n in files if n.endswith(".safetensors"))


def verify(folder: Path, net: Transformer, delta: Delta, method: Method) -> None:
    """What was written is what is in memory, bit for bit."""
    here, there = delta.state_dict(), stored(folder, net, method)
    wrong = [n for n in here if n not in there or not torch.equal(here[n].cpu(), there[n].to(here[n].dtype))]
    if wrong or set(there) - set(here):
        raise Storage(
            f"the artifact in {folder} is not what was trained",
            why=f"first difference: {(wrong or sorted(set(there) - set(here)))[0]}",
            fix="check the disk, and run again",
        )


def stored(folder: Path, net: Transformer, method: Method) -> dict[str, torch.Tensor]:
    """The delta's state from its files."""
    state: dict[str, torch.Tensor] = {}
    if (folder / "adapter_model.safetensors").exists():
        state |= from_peft(method, net, load_file(folder / "adapter_model.safetensors"))
    if (folder / "delta.safetensors").exists():
        state |= load_file(folder / "delta.safetensors")
    return state


def describe(folder: str | Path) -> Description:
    """Raises Refusal where the folder holds no artifact, or one of a later version."""
    folder = artifact_of(folder)
    try:
        about = json.loads((folder / "tunesmith.json").read_text())
    except (OSError, ValueError) as e:
        raise Refusal(f"{folder} holds no Tunesmith artifact", why="tunesmith.json is missing or unreadable", fix="give the folder of a finished run") from e
    if about.get("format") != FORMAT:
        raise Refusal(f"{folder} was written in format {about.get('format')}, this version reads {FORMAT}", fix="pip install --upgrade tunesmith")
    return Description(**about)


@dataclass
class Tuned:
    """A tuned network that can be asked. `predict` takes what the task takes."""

    net: Transformer
    delta: Delta
    method: Method
    about: Description
    task: Task
    reader: Reader
    learn: Objective | None = None  # where answers are read off the vocabulary
    others: Mapping[str, tuple[Task, Reader, Objective | None]] = field(default_factory=dict)

    def of(self, name: str) -> Tuned:
        """One of its several tasks."""
        if name not in self.others:
            known = f"one of {', '.join(self.others)}" if self.others else "it has one, which is asked without a name"
            raise Refusal(f"this run has no task `{name}`", where="task", fix=known)
        task, reader, learn = self.others[name]
        self.net.labels = task.labels
        return replace(self, task=task, reader=reader, learn=learn)

    def predict(self, texts: Sequence[Any], *, sampling: Sampling | None = None, batch: int = 8192) -> list[dict[str, Any]]:
        """One record a text: a string, a [text, pair] for pair tasks and rewards, or a list of messages."""
        return PREDICT[self.task.kind](self, texts, sampling or Sampling(), batch)

    def _repr_html_(self) -> str:
        return f"<b>{self.about.model['name']}</b>, {self.about.method['kind']}, {self.task.name} {list(self.task.labels)[:12]}"


def load(folder: str | Path, *, device: str = "cpu", quantised: bool = True, keep: bool = False) -> Tuned:
    """The tuned network of a run's folder, at rest. `quantised=False` loads a full-precision base under a delta that was trained on 4 bits; `keep` holds on to
    what the delta replaced, so that the base can be asked too.
    """
    about, folder = describe(folder), artifact_of(folder)
    task = task_from(about.task)
    source = about.base if quantised else replace(about.base, bits=None)
    tokenizer = load_tokenizer(Origin(str(folder), str(folder)))
    asked = {name: (task_from(one["task"]), from_plain(tokenizer, one["reader"], device), one) for name, one in about.tasks.items()}
    generates = "generate" in (task.name, *(t.name for t, _, _ in asked.values()))
    net = load_network(source, generates=generates, worded=about.worded, pool=about.pool, device=device, tokenizer=tokenizer)  # type: ignore[arg-type]
    net.labels = task.labels
    for each, head in [(t, one["head"]) for t, _, one in asked.values()] or [(task, about.head)]:
        if each.outputs:
            add_head(net, each.key, HeadSpec(each.outputs, **head), 0)
    method = build(METHODS[about.method["kind"]], without_kind(about.method), "method", None)
    state = stored(folder, net, method)
    delta = method.attach(net, keep=keep or routed(state))
    if routed(state):
        put_back(net, delta, state, [t.key for t, _, _ in asked.values()])
    delta.load_state_dict(state)
    net.compute, net.room.kernel = DTYPES[about.dtype], about.kernel
    delta.cast(net.compute)
    others = {name: (t, r, objective_of(one.get("objective"), t, net)) for name, (t, r, one) in asked.items()}
    reader, learn = from_plain(tokenizer, about.reader, device), objective_of(about.objective, task, net, folder)
    return Tuned(net.eval(), delta, method, about, task, reader, learn, others)


def task_from(stored: Mapping[str, Any]) -> Task:
    return Task(**{**stored, "labels": tuple(stored["labels"])})


def objective_of(said: Mapping[str, Any] | None, task: Task, net: Transformer, folder: Path | None = None) -> Objective | None:
    """What a task is answered by where its words are, with what it learnt for itself."""
    if not said:
        return None
    made = OBJECTIVES[said["kind"]](task.kind, **without_kind(said))
    made.to(net.device).meet(net)
    if folder and (folder / "objective.safetensors").exists():
        made.load_state_dict(load_file(folder / "objective.safetensors"))
    return made


# ------------------------------------------------------------------------------------------------ export


def export(folder: str | Path, out: Path) -> list[str]:
    """A plain Hugging Face model with the change folded in; the head beside it, as `head.safetensors`; of an embedder, a folder that
    sentence-transformers loads. Loaded again and compared.
    """
    about, kept = describe(folder), artifact_of(folder)
    if (kept / FILES[0]).exists():
        return handed_out(kept, out)
    tuned = load(folder, quantised=False)
    if not tuned.method.merges:
        raise Refusal(
            f"{tuned.about.method['kind']} cannot be folded into the base weights",
            where="export",
            why="it adds modules or inputs that the published class does not have",
            fix=f"{Path(folder) / 'artifact'} is the deliverable; Tunesmith" + (" and peft load it" if to_peft(tuned.method, tuned.delta, "") else " loads it"),
        )
    if routed(tuned.delta.state_dict()):
        raise Refusal(
            "a run with `strategy: route` holds a delta a stage, of which no one model can be made",
            where="export",
            fix="keep the artifact, which Tunesmith loads",
        )
    net = tuned.net
    net.compute = torch.float32
    tuned.delta.cast(torch.float32)
    probe = Batch({"ids": Ragged(torch.arange(3, 10, device=net.device), (3, 4))})
    with torch.no_grad():
        before = net.states(probe).values
    tuned.delta.merge()
    make_room(net, tuned.delta, net.model.config, "export", "keep the artifact, which Tunesmith loads")
    out.mkdir(parents=True, exist_ok=True)
    net.model.save_pretrained(out)
    tuned.reader.tokenizer.save_pretrained(out)
    if len(net.heads):
        write_file(out / "head.safetensors", net.heads.state_dict())
    if tuned.learn and (learnt := tuned.learn.state_dict()):
        write_file(out / "objective.safetensors", learnt)
    if tuned.task.name == "embed":
        for name, content in sentence_files(net.anatomy.width, net.pool, tuned.reader).items():
            write_file(out / name, content)
    again = load_network(Origin(str(out), str(out)), generates=tuned.task.name == "generate", worded=about.worded, pool=net.pool)  # type: ignore[arg-type]
    with torch.no_grad():
        gap = float((again.states(probe).values - before).abs().max())
    if gap > 1e-4 * float(before.abs().max()):
        raise Storage(
            f"the exported model differs from the tuned one by {gap:.1e}",
            why="the published class dropped or changed a weight",
            fix="keep the artifact instead",
        )
    written = {**asdict(tuned.about), "exported": True, "largest_difference": gap}
    write_file(out / "tunesmith.json", json.dumps(written, indent=2, ensure_ascii=False).encode())
    return sorted(p.name for p in out.iterdir())
