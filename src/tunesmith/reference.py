"""What the base says of each row before anything was learnt, and the answers to other prompts by which a distance from it is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .core import Batch, Network, Ragged
from .objectives.prefer import answer_logp, other_logp, prompts
from .sources.enriched import Enriched
from .sources.table import Table
from .sources.witness import Witness

if TYPE_CHECKING:
    from .job import Setting

Asked = Table | Enriched


def reference(source: Asked, setting: Setting) -> Witness:
    """reference (B,): log-probability of each answer under the base, which is the network with its delta absent: no second model in memory."""
    return asked_of_base(source, setting, "reference", answer_logp)


def other_reference(source: Asked, setting: Setting) -> Witness:
    """other_reference (B,): the same of the answer to another prompt."""
    return asked_of_base(source, setting, "other_reference", other_logp)


def asked_of_base(source: Asked, setting: Setting, column: str, ask: Callable[[Network, Batch], Tensor]) -> Witness:
    """Once a row, at rest, with the policy's own kernel and dtype: before the first step of a neutral method the two say the same to the bit."""

    def asked(net: Network, batch: Batch) -> Tensor:
        with setting.delta.absent(cast=True):
            return ask(net, batch)

    return Witness(source, column, asked, told=setting.told("reference, once"))


def others(source: Asked, setting: Setting) -> Asked:
    """other, other_label (Ragged), for decoders other_at: each row's prompt with the answer to another one."""
    return widened(source, elsewhere(source.table.columns))


def widened(source: Asked, columns: Mapping[str, Ragged]) -> Asked:
    """The source with more columns in its table."""
    if isinstance(source, Table):
        return replace(source, columns={**source.columns, **columns})
    return replace(source, source=widened(source.source, columns))


def elsewhere(columns: Mapping[str, Tensor | Ragged]) -> dict[str, Ragged]:
    """Every row's prompt with the answer of the next example that asks something else; of a pair, of the same side. No row becomes longer than any is."""
    ids, label = columns["ids"], columns["label"]
    assert isinstance(ids, Ragged)
    assert isinstance(label, Ragged)
    asked = prompts(columns)
    partner = partners(asked, 2 if "side" in columns else 1)
    if "at" not in columns:
        return {"other": ids, "other_label": label.pick(partner)}
    rows, limit = ids.rows(), max(ids.lengths)
    made = [torch.cat([row[: len(prompt)], rows[j][len(asked[j]) :]])[:limit] for row, prompt, j in zip(rows, asked, partner, strict=True)]
    at = [torch.arange(len(prompt) - 1, len(row) - 1) for prompt, row in zip(asked, made, strict=True)]
    return {
        "other": joined(made),
        "other_at": joined(at),
        "other_label": joined([row[len(prompt) :] for prompt, row in zip(asked, made, strict=True)]),
    }


def partners(asked: list[tuple[int, ...]], step: int) -> list[int]:
    """For each row, the next in a circle, `step` by `step`, with another prompt. There is one: the objective refuses rows that all ask the same."""
    n = len(asked)
    return [next(j for k in range(1, n) if asked[j := (i + k * step) % n] != asked[i]) for i in range(n)]


def joined(rows: list[Tensor]) -> Ragged:
    return Ragged(torch.cat(rows), tuple(map(len, rows)))
