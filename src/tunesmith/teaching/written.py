"""On-policy distillation: batches in which the student answers the prompts itself, and the teacher says what it thinks of every token.

Agarwal et al. 2024 (GKD), https://arxiv.org/abs/2306.13649, algorithm 1. No gradient goes through the sampling, and what the student wrote is no label.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..core import Batch, Network, Ragged
from ..networks.decode import Sampling, generate
from ..networks.transformer import Transformer
from ..parallel import told
from ..sources.answers import Answers
from ..sources.enriched import Enriched
from ..sources.table import Table
from ..sources.text.tokens import last_run, next_tokens, ragged
from .ask import Question, answers, width
from .report import about
from .teacher import Teacher


@dataclass
class Written:
    """`source`, a `share` of whose batches is replaced; `written` (B,) says which rows were. Which batches, and what is drawn, is a function of (seed, step).

    The teacher stays in memory: it is asked about each of these batches.
    """

    source: Table | Enriched
    question: Question
    student: Transformer
    names: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self.names = frozenset(n for n in self.question.learn.needs if n.startswith("teacher")) | {"written"}

    @property
    def gives(self) -> frozenset[str]:
        return self.source.gives | self.names

    @property
    def period(self) -> int:
        return self.source.period

    @property
    def table(self) -> Table:
        return self.source.table

    @property
    def about(self) -> Mapping[str, Any]:
        return self.source.about if isinstance(self.source, Answers) else about(self.question, self.teacher)

    @cached_property
    def teacher(self) -> Teacher:
        return self.question.who.load(self.student.device)

    def fill(self, net: Network) -> None:
        self.source.fill(net)

    def batches(self, net: Network, start: int = 0) -> Iterator[Batch]:
        seed, share = self.question.recipe.seed, self.question.learn.on_policy
        for step, batch in enumerate(self.source.batches(net, start), start):
            drawn = float(torch.rand((), generator=torch.Generator().manual_seed(seed * 1_000_003 + step)))
            yield self.rewritten(batch, seed * 7_368_787 + step) if drawn < share else batch.plus(written=torch.zeros(len(batch), device=batch["ids"].device))

    def once(self, net: Network, tokens: int | None = None) -> Iterator[Batch]:
        for batch in self.source.once(net, tokens):
            yield batch.plus(written=torch.zeros(len(batch), device=batch["ids"].device))

    @torch.no_grad()
    def rewritten(self, batch: Batch, seed: int) -> Batch:
        """The same prompts with the student's own answers, and the teacher's distributions at each of their tokens."""
        learn, data = self.question.learn, self.question.data
        prompts = prompts_of(batch)
        new = told(lambda: self.answered(prompts, seed & 0x7FFF_FFFF))
        columns = {"ids": batch.columns["ids"], "target": (target := ragged(new)), "label": target} if data.reader.seq2seq else continued(prompts, new)
        made = Batch(columns, batch.task).plus(row=batch["row"], written=torch.ones(len(batch))).to(batch["ids"].device)
        said = answers(learn, self.teacher, made, (), width(self.question, self.teacher, self.student))
        return made.plus(**said)

    def answered(self, prompts: list[list[int]], seed: int) -> list[list[int]]:
        """New tokens a prompt, closed by EOS where the student closed them."""
        learn, tokenizer, net = self.question.learn, self.question.data.reader.tokenizer, self.student
        seq2seq = self.question.data.reader.seq2seq
        taken = max(map(len, prompts)) * (not seq2seq) + self.question.recipe.built_method().positions
        most = max(1, min(learn.max_new_tokens, (net.anatomy.positions or 1 << 30) - taken))
        sampling = Sampling(most, learn.sample_temperature, 1.0, seed)
        pad, eos = tokenizer.pad_token_id or 0, tokenizer.eos_token_id
        return [row if len(row) == most or eos is None else [*row, eos] for row in generate(net, prompts, sampling, eos=eos, pad=pad)]


def prompts_of(batch: Batch) -> list[list[int]]:
    """What stands before the last answer of each row: of labelled positions that follow each other, the last run is that answer's."""
    rows = [row.tolist() for row in batch.ragged("ids").rows()]
    if "at" not in batch:
        return rows
    return [row[: last_run(at.tolist()) + 1] for row, at in zip(rows, batch.ragged("at").rows(), strict=True)]


def continued(prompts: list[list[int]], new: list[list[int]]) -> dict[str, Tensor | Ragged]:
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, new, strict=True)]
    return next_tokens(rows, [range(len(p) - 1, len(r) - 1) for p, r in zip(prompts, rows, strict=True)])
