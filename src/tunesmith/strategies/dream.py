"""Self-generated replay: before each new stage the model writes what it would say of old ones, and that is replayed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from ..core import Batch, Delta, Network, Objective, Ragged, Run, Source, Stage, under
from ..errors import Refusal
from ..networks.sample import Draw, sample
from ..parallel import told
from ..sources.text.tokens import last_run, next_tokens, ragged
from .memory import OWN, Memory
from .replay import Remembering, Replayed, Replaying, Size, Weight
from .strategy import number

Rows = list[list[int]]


@dataclass
class Dream(Remembering):
    """Replay without old answers (LAMOL, Sun et al. 2020, section 3; with the model's own answers as targets, the self-distillation of Yang et al. 2024).

    size    texts that are written before each new stage
    start   what is kept of old rows, and what is written: `prompt`: prompts, which it answers; `beginning`: their first tokens, from which it writes the
            whole row; `bos`: nothing, it writes from the beginning-of-text token, which suits plain texts alone
    tokens  of a `beginning`
    length  tokens that are written, at most
    """

    size: Size = 200
    weight: Weight = 1.0
    start: Literal["prompt", "beginning", "bos"] = "prompt"
    tokens: Size = 4
    length: Size = 64
    temperature: Annotated[float, Ge(0)] = 1.0

    paper: ClassVar[str] = "Sun et al. 2020, https://arxiv.org/abs/1909.03329"
    tasks: ClassVar[tuple[str, ...]] = ("generate",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.dreams, self.written = Memory(self.size), 0  # what was written, before which stage

    @property
    def draws(self) -> tuple[bool, ...]:
        return (False,) if self.weight else ()

    def meet(self, net: Network, delta: Delta, kinds: Mapping[str, str]) -> None:
        super().meet(net, delta, kinds)
        if net.anatomy.kind == "seq2seq" or set(kinds.values()) != {"generate"}:
            raise Refusal("`strategy: dream` writes with a decoder, and learns from what it wrote", where="strategy", fix="strategy: replay")

    def source(self, source: Any, stage: int) -> tuple[Source, int]:
        found, width = super().source(source, stage)
        if isinstance(found, Replayed):
            found.memory = self.dreams
        return found, width

    def objective(self, learn: Objective) -> Objective:
        return Replaying(learn, self.weight, 0.0, several=len(self.keys) > 1) if self.draws else learn

    def end(self, run: Run, stage: Stage) -> None:
        """Of the rows that would be kept, their starts."""
        i = number(run, stage)
        self.memory.learn(self.sources[i], run.net, i, run.seed)
        self.memory.held = {key: self.cut(batch) for key, batch in self.memory.held.items()}

    def cut(self, batch: Batch) -> Batch:
        """Rows without what is to be written; those that were cut before stay."""
        starts = [
            start_of(ids.tolist(), at.tolist(), self.start, self.tokens) for ids, at in zip(batch.ragged("ids").rows(), batch.ragged("at").rows(), strict=True)
        ]
        none = Ragged(torch.zeros(0, dtype=torch.long), (0,) * len(starts))
        return Batch({**{k: batch.columns[k] for k in (*OWN, "row")}, "ids": ragged(starts), "at": none, "label": none}, batch.task)

    def begin(self, run: Run, stage: Stage) -> None:
        i = number(run, stage)
        if i and self.draws and self.written != i:
            self.dreams.held = {key: self.dreamt(run, batch, i) for key, batch in self.memory.held.items()}
            self.written = i

    def dreamt(self, run: Run, batch: Batch, stage: int) -> Batch:
        net: Any = run.net
        tokenizer = net.tokenizer
        taken = (0 if net.prompt is None else len(net.prompt())) + (0 if net.prefix is None else net.prefix().shape[1])
        most = (net.anatomy.positions or 1 << 30) - taken
        bos = next(t for t in (tokenizer.bos_token_id, tokenizer.eos_token_id) if t is not None)
        starts = [[bos]] * self.size if self.start == "bos" else [row.tolist() for row in batch.ragged("ids").rows()]
        ends = frozenset(() if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,))
        draw = Draw(self.length, self.temperature, ends, tokenizer.pad_token_id or 0, most)
        seeds = [(run.seed * 1_000_003 + stage * 7_919 + k) & 0x7FFF_FFFF for k in range(len(starts))]
        rows: Rows = told(lambda: [one.ids for one in sample(net, starts, 1, seeds, draw)])
        whole = self.start != "prompt"
        at = [list(range(0 if whole else len(start) - 1, len(row) - 1)) for start, row in zip(starts, rows, strict=True)]
        return Batch({**next_tokens(rows, at), "row": torch.arange(len(rows))}, batch.task)

    def state(self) -> Mapping[str, Any]:
        return {"written": self.written}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.written = state["written"]

    def tensors(self) -> Mapping[str, Tensor]:
        return {f"{what}/{k}": t for what, held in (("starts", self.memory), ("dreams", self.dreams)) for k, t in held.tensors().items()}

    def recall(self, tensors: Mapping[str, Tensor]) -> None:
        for what, held in (("starts", self.memory), ("dreams", self.dreams)):
            held.recall(under(tensors, f"{what}/"), self.keys)


def start_of(ids: list[int], at: list[int], start: str, tokens: int) -> list[int]:
    """What is kept of a row. A prompt ends where the last run of labelled positions begins."""
    if not at:
        return ids
    if start != "prompt":
        return ids[: tokens if start == "beginning" else 1]
    return ids[: last_run(at) + 1]
