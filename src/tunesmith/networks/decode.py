"""Writing: batched generation through transformers' own `generate`, with whatever a method put before the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .transformer import Transformer


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy. `top_p` in (0, 1]."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def arguments(self) -> dict[str, Any]:
        greedy: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        sampled = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return {"max_new_tokens": self.max_new_tokens, **(sampled if self.temperature else greedy)}


@torch.no_grad()
def generate(net: Transformer, prompts: Sequence[Sequence[int]], sampling: Sampling, *, eos: int | None, pad: int, batch: int = 16) -> list[list[int]]:
    """New tokens for each prompt, without what follows EOS. Prompts of like length share a batch; order is kept."""
    was = net.training
    net.eval()
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    written: dict[int, list[int]] = {}
    torch.manual_seed(sampling.seed)
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        with net.precision(), prefixed(net):
            new = one_batch(net, [list(prompts[i]) for i in rows], sampling, eos, pad)
        written |= {i: cut(row, eos) for i, row in zip(rows, new.tolist(), strict=True)}
    net.train(was)
    return [written[i] for i in range(len(prompts))]


def one_batch(net: Transformer, rows: list[list[int]], sampling: Sampling, eos: int | None, pad: int) -> Tensor:
    """(b, new): padded on the left, so that all rows end where writing begins (encoders: on the right)."""
    seq2seq, width = net.anatomy.kind == "seq2seq", max(len(r) for r in rows)
    fill = [[pad] * (width - len(r)) for r in rows]
    ids = torch.tensor([r + f if seq2seq else f + r for r, f in zip(rows, fill, strict=True)], device=net.device)
    real = [[1] * len(r) for r in rows]
    mask = torch.tensor([m + [0] * len(f) if seq2seq else [0] * len(f) + m for m, f in zip(real, fill, strict=True)], device=net.device)
    inputs: dict[str, Tensor] = {"input_ids": ids, "attention_mask": mask}
    if net.prompt is not None and net.prompt.on:
        inputs = with_rows(net, ids, mask, net.prompt(), seq2seq)
    out = net.model.generate(**inputs, **sampling.arguments(), eos_token_id=eos, pad_token_id=pad)
    return out[:, 1:] if seq2seq else out if "inputs_embeds" in inputs else out[:, width:]


def with_rows(net: Transformer, ids: Tensor, mask: Tensor, prompt: Tensor, seq2seq: bool) -> dict[str, Tensor]:
    """Embeddings with the prompt directly before each row's first token, behind any padding on the left."""
    table = net.get_submodule(net.anatomy.embedding)(ids)
    rows = prompt.to(table.dtype)
    embeds, masks = [], []
    for row, seen in zip(table, mask, strict=True):
        gap = 0 if seq2seq else int((seen == 0).sum())
        embeds.append(torch.cat([row[:gap], rows, row[gap:]]))
        masks.append(torch.cat([seen[:gap], seen.new_ones(len(rows)), seen[gap:]]))
    return {"inputs_embeds": torch.stack(embeds), "attention_mask": torch.stack(masks)}


@contextmanager
def prefixed(net: Transformer) -> Iterator[None]:
    """Keys and values before each row while the model writes; positions count from behind them, as in training."""
    net.room.layout, net.room.task = None, ""
    net.room.prefix = net.prefix() if net.prefix is not None and net.prefix.on else None
    if net.room.prefix is None or net.anatomy.kind == "seq2seq":
        yield
        return
    shift = net.room.prefix.shape[1]

    def behind(_: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        places = kwargs.get("position_ids")
        return args, kwargs if places is None else {**kwargs, "position_ids": places + shift}

    hook = net.model.register_forward_pre_hook(behind, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def cut(row: list[int], eos: int | None) -> list[int]:
    return row[: row.index(eos)] if eos in row else row
