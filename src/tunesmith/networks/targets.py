"""What an encoder-decoder says of the texts that it is to write: rows padded, sixteen at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from ..core import Batch, Buckets
from .buckets import buckets_of

if TYPE_CHECKING:
    from .transformer import Transformer

T = TypeVar("T")


def target_logp(net: Transformer, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Encoder-decoders: (M,) over the tokens of `target`, in order of rows, and the decoder's last states (M, D)."""
    rows = batch.ragged("target").rows()
    warm = lambda logits: logits if temperature == 1 else logits / temperature
    found = each_target(net, batch, lambda i, logits, states: (warm(logits).log_softmax(-1).gather(-1, rows[i][:, None])[:, 0], states))
    logp, states = zip(*found, strict=True)
    return torch.cat(logp), torch.cat(states)


def target_buckets(net: Transformer, batch: Batch, ids: Tensor | int, temperature: float, size: int) -> Buckets:
    rows, label = batch.ragged("target"), batch.ragged("target").rows()
    chosen = [ids] * len(label) if isinstance(ids, int) else ids.split(list(rows.lengths))
    found = each_target(net, batch, lambda i, logits, states: buckets_of(logits[:, :size], chosen[i], label[i], temperature))
    return Buckets(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def each_target(net: Transformer, batch: Batch, look: Callable[[int, Tensor, Tensor], T]) -> list[T]:
    """What is made of each row's logits (tokens of its target, V) and last states (tokens, D), in order of rows."""
    ids, target = batch.ragged("ids"), batch.ragged("target")
    with net.precision():
        net.room.layout, net.room.prefix, net.room.task = None, net.prefix() if net.prefix is not None and net.prefix.on else None, ""
        rows = sorted(range(len(ids.lengths)), key=lambda i: ids.lengths[i])
        parts: dict[int, T] = {}
        for chunk in chunks(rows, 16):
            found = target_chunk(net, [ids.rows()[i] for i in chunk], [target.rows()[i] for i in chunk])
            parts |= {i: look(i, *said) for i, said in zip(chunk, found, strict=True)}
    return [parts[i] for i in range(len(rows))]


def target_chunk(net: Transformer, ids: list[Tensor], target: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    pad = nn.utils.rnn.pad_sequence
    text, mask = pad(ids, True), pad([torch.ones_like(x) for x in ids], True)
    labels, prompt = pad(target, True, -100), net.prompt_rows()
    start = labels.new_full((len(labels), 1), net.model.config.decoder_start_token_id or 0)
    inputs: dict[str, Tensor] = {"input_ids": text}
    if prompt is not None:
        table = net.get_submodule(net.anatomy.embedding)(text)
        inputs = {"inputs_embeds": torch.cat([prompt.to(table.dtype).expand(len(text), -1, -1), table], 1)}
        mask = torch.cat([mask.new_ones(len(mask), len(prompt)), mask], 1)
    shifted = torch.cat([start, labels[:, :-1].clamp(min=0)], 1)
    states: list[Tensor] = []  # what the vocabulary reads; asking the class for its hidden states would keep those of every block
    hook = net.model.get_output_embeddings().register_forward_pre_hook(lambda module, args: states.append(args[0]))
    try:
        logits = net.model(**inputs, attention_mask=mask, decoder_input_ids=shifted, use_cache=False).logits.float()
    finally:
        hook.remove()
    return [(row[: len(t)], state[: len(t)]) for row, state, t in zip(logits, states[0], target, strict=True)]


def chunks(items: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
