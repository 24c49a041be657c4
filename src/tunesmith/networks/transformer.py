"""A published Transformer as a Network: packed where its class allows it, padded in buckets of like length where not."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Anatomy, Batch, Buckets, Heard, Network, Ragged, Slot
from .attention import Room, packed_masks
from .buckets import bucket_logp
from .dropout import dropouts
from .heads import POOLS, Pool
from .inside import overheard
from .layout import Cells, Gather, Layout, Share, layout, own_tokens, shared, with_prompt
from .masked import before_vocabulary
from .stems import Stems, stems
from .targets import target_buckets, target_logp
from .trunk import listening_at, starting_at
from .vocabulary import label_logp, logits_of

T = TypeVar("T")
LENGTHS = 8  # between two powers of two; measured, see docs/LOG.md
COARSEST = 128  # tokens


class Transformer(Network):
    """`model` as transformers built it; its trunk lies at `at`; `packs` says whether rows may lie end to end, `causal` whether a token sees those before it alone.

    compute   dtype of the matrix products (autocast); parameters that train stay fp32
    fills     it is a masked language model: between its last states and its vocabulary stands a head of its own
    """

    def __init__(self, model: Any, at: str, anatomy: Anatomy, *, pool: Pool = "mean", room: Room | None = None, tokenizer=None, fills: bool = False):
        super().__init__()
        self.model, self.at, self.anatomy, self.pool, self.packs, self.causal = model, at, anatomy, pool, True, False
        self.heads = nn.ModuleDict()
        self.prompt: Slot | None = None
        self.prefix: Slot | None = None
        self.labels: tuple[str, ...] = ()
        self.tokenizer, self.fills = tokenizer, fills
        self.takes_prefix = False
        self.room = room or Room()
        self.compute = torch.float32
        self.takes = set(inspect.signature(self.trunk.forward).parameters)
        self.dropouts = dropouts(model.config)
        self.arity = 0  # length of the tuple that a block returns
        self.skips = False  # blocks under a floor may be skipped; both are found out in networks/load.py

    @property
    def trunk(self) -> Any:
        return self.get_submodule(self.at)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def token_ids(self, text: str) -> list[int]:
        assert self.tokenizer is not None, "this network was built without a tokenizer"
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    @torch.no_grad()
    def keys_values(self, ids: Tensor) -> Tensor:
        self.room.heard = []
        self.states(Batch({"ids": Ragged(ids, (len(ids),))}))
        heard, self.room.heard = self.room.heard, None
        return torch.stack([x[0].transpose(0, 1) for sound in heard for x in (sound.key, sound.value)])

    def recompute(self, on: bool) -> None:
        """Forget the activations inside blocks and form them again in the backward pass (gradient checkpointing)."""
        named = ("activation" if hasattr(self.model, "activation_checkpointing_enable") else "gradient") + "_checkpointing"  # its name before transformers 5.23
        if on:
            getattr(self.model, f"{named}_enable")({"use_reentrant": False, "context_fn": self.room.again})
        elif getattr(self.model, f"is_{named}"):
            getattr(self.model, f"{named}_disable")()

    # -------------------------------------------------------------------------------------------- states

    def states(self, batch: Batch) -> Ragged:
        rows = batch.ragged("ids")
        if "trunk" in batch and int(batch["floor"][0]) == self.anatomy.depth:
            return Ragged(batch["trunk"], rows.lengths)
        with self.precision():
            self.room.task = batch.task if batch.task in self.heads else ""
            self.room.prefix = self.prefix() if self.prefix is not None and self.prefix.on else None
            return Ragged(self.packed(batch) if self.packs else self.padded(batch), rows.lengths)

    def precision(self) -> AbstractContextManager:
        """Autocast to the compute dtype; nothing at all in fp32."""
        return nullcontext() if self.compute is torch.float32 else torch.autocast(self.device.type, self.compute)

    def packed(self, batch: Batch) -> Tensor:
        """(N, D): one forward pass over all rows laid end to end, with filler behind them; a beginning that several rows share lies there once."""
        rows, prompt = batch.ragged("ids"), self.prompt_rows()
        before = 0 if prompt is None else len(prompt)
        wide = tuple(n + before for n in rows.lengths)
        alike = self.stems(batch, before)
        tokens = sum(wide) if alike is None else len(alike.kept)
        filler = self.filler(tokens)
        lay = self.lay(wide, filler) if alike is None else shared(self.lay(wide, 0), alike, filler)
        self.room.layout = lay
        inputs = self.inputs(batch["ids"][None], batch["types"][None] if "types" in batch else None, rows.lengths, prompt)
        if alike is not None:
            inputs = {name: Gather.apply(x[0], alike.kept)[None] for name, x in inputs.items()}
        inputs = {name: F.pad(x, (0, 0) * (x.dim() - 2) + (0, filler)) if filler else x for name, x in inputs.items()}
        with packed_masks(), self.from_floor(batch, lambda trunk: F.pad(trunk, (0, 0, 0, filler))[None]):
            out = self.trunk(**inputs, **self.only(position_ids=lay.positions, use_cache=False)).last_hidden_state[0]
        own = own_tokens(rows.lengths, before, out.device) if before else None
        if alike is not None:
            return Share.apply(out, alike.copies if own is None else alike.copies[own])
        return out[:tokens] if own is None else Gather.apply(out, own)

    def stems(self, batch: Batch, before: int) -> Stems | None:
        """What its rows have in common, behind `before` rows of a prompt. Not where the dice of dropout fall for each row, nor where states are put in or looked at."""
        alone = not self.causal or len(batch) == 1 or "types" in batch or "trunk" in batch
        if alone or self.room.watched or self.room.heard is not None or (self.training and self.drops()):
            return None
        ids, offsets = batch.numbers("ids"), batch.ragged("ids").offsets
        return stems([[*range(-before, 0), *ids[a:b]] for a, b in pairwise(offsets)], self.device)

    def drops(self) -> bool:
        """Whether training draws dropout anywhere in the trunk."""
        chances = (getattr(module, "p", None) for module in self.model.modules())
        return any(getattr(self.model.config, name) for name in self.dropouts) or any(p for p in chances if isinstance(p, float))

    def filler(self, tokens: int) -> int:
        """oneDNN builds a kernel for every shape of a bf16 product, which takes longer than the product: so batches have few different lengths."""
        if self.compute is not torch.bfloat16 or self.device.type != "cpu":
            return 0
        return -tokens % min(COARSEST, 1 << max(0, (tokens // LENGTHS).bit_length() - 1))

    def lay(self, lengths: tuple[int, ...], filler: int) -> Layout:
        """Positions count from behind the prefix, as if its rows were tokens (Li & Liang 2021; as peft does)."""
        shift = 0 if self.room.prefix is None else self.room.prefix.shape[1]
        return layout(lengths, self.anatomy.position_offset + shift, self.device, filler)

    def prompt_rows(self) -> Tensor | None:
        return self.prompt() if self.prompt is not None and self.prompt.on else None

    def inputs(self, ids: Tensor, types: Tensor | None, lengths: tuple[int, ...], prompt: Tensor | None) -> dict[str, Tensor]:
        """What the trunk is called with: ids, or embeddings where a prompt stands before each row."""
        if prompt is None:
            return {"input_ids": ids, **({} if types is None else self.only(token_type_ids=types))}
        table = self.get_submodule(self.anatomy.embedding)(ids)[0]
        order, several = with_prompt(lengths, len(prompt), ids.device), prompt.repeat(len(lengths), 1)
        embeds = Gather.apply(torch.cat([several.to(table.dtype), table]), order)[None]
        if types is None or "token_type_ids" not in self.takes:
            return {"inputs_embeds": embeds}
        return {"inputs_embeds": embeds, "token_type_ids": torch.cat([types.new_zeros(len(several)), types[0]])[order][None]}

    def only(self, **inputs: object) -> dict:
        """Those of these inputs that the trunk's forward takes."""
        return {k: v for k, v in inputs.items() if k in self.takes}

    def padded(self, batch: Batch) -> Tensor:
        """(N, D): rows padded in buckets of like length, for classes that cannot run packed."""
        lay, self.room.layout, prompt = layout(batch.ragged("ids").lengths, 0, self.device), None, self.prompt_rows()
        order = (lambda x: x) if lay.order is None else (lambda x: x[lay.order])
        parts = [self.one_bucket(batch, order, bucket.keys, prompt) for bucket in lay.buckets]
        out = torch.cat(parts)
        return out if lay.back is None else out[lay.back]

    def one_bucket(self, batch: Batch, order, bucket: Cells, prompt: Tensor | None) -> Tensor:
        """(n, D) for the n tokens of one bucket."""
        cut = lambda x: fill(order(x)[bucket.start : bucket.stop], bucket)
        ids, mask = cut(batch["ids"]), fill(torch.ones(bucket.stop - bucket.start, dtype=torch.long, device=self.device), bucket)
        inputs: dict[str, Tensor] = {"input_ids": ids}
        types = cut(batch["types"]) if "types" in batch else None
        if prompt is not None:
            rows = prompt.expand(bucket.rows, -1, -1)
            table = self.get_submodule(self.anatomy.embedding)(ids)
            inputs = {"inputs_embeds": torch.cat([rows.to(table.dtype), table], 1)}
            types = None if types is None else torch.cat([types.new_zeros(rows.shape[:2]), types], 1)
            mask = torch.cat([mask.new_ones(rows.shape[:2]), mask], 1)
        inputs |= {} if types is None else self.only(token_type_ids=types)
        with self.from_floor(batch, cut):
            out = self.encoder()(**inputs, attention_mask=mask, **self.only(use_cache=False)).last_hidden_state
        out = out[:, len(prompt) if prompt is not None else 0 :].flatten(0, 1)
        return out if bucket.spots is None else Gather.apply(out, bucket.spots)

    def encoder(self) -> nn.Module:
        """The part of the trunk that reads: a lone head on an encoder-decoder reads its encoder."""
        return self.trunk.get_encoder() if getattr(self.model.config, "is_encoder_decoder", False) else self.trunk

    # -------------------------------------------------------------------------------------------- the cached trunk

    def from_floor(self, batch: Batch, shape) -> AbstractContextManager:
        floor = int(batch["floor"][0]) if "trunk" in batch else 0
        if not floor:
            return nullcontext()
        blocks = [self.get_submodule(path) for path in self.anatomy.blocks]
        return starting_at(blocks, floor, shape(batch["trunk"]), self.arity)

    @torch.no_grad()
    def trunk_states(self, batch: Batch, floor: int) -> Ragged:
        """(N, D): what enters block `floor`, to be stored; at full depth, what enters the heads."""
        if floor == self.anatomy.depth:
            return self.states(batch)
        with self.room.watching(), listening_at(self.get_submodule(self.anatomy.blocks[floor]), stop=self.packs) as seen:
            self.states(batch)
        return Ragged(self.flat(seen, batch), batch.ragged("ids").lengths)

    def flat(self, seen: Sequence[Tensor], batch: Batch) -> Tensor:
        """(N, ...): what one module saw of a batch, a tensor (rows, width, ...) a pass, as the batch's own tokens in their order."""
        lengths, prompt = batch.ragged("ids").lengths, self.prompt_rows()
        before = 0 if prompt is None else len(prompt)
        if self.packs:
            found = seen[0][0, : sum(lengths) + before * len(lengths)]
            return Gather.apply(found, own_tokens(lengths, before, found.device)) if before else found
        lay = layout(lengths, 0, self.device)
        rows = [s[:, before:].flatten(0, 1) for s in seen]
        found = torch.cat([s if b.keys.spots is None else s[b.keys.spots] for s, b in zip(rows, lay.buckets, strict=True)])
        return found if lay.back is None else found[lay.back]

    def overheard(self, say: Callable[[], T], batch: Batch, states: Sequence[int], heads: Sequence[int]) -> tuple[T, Heard]:
        return overheard(self, say, batch, states, heads)

    # -------------------------------------------------------------------------------------------- outputs

    def pooled(self, batch: Batch) -> Tensor:
        return batch["pooled"] if "pooled" in batch else POOLS[self.pool](self.states(batch))

    def logits(self, batch: Batch) -> Tensor:
        if batch.task in self.heads:
            head = self.heads[batch.task]
            return head(self.states(batch).values[batch.labelled()]) if "at" in batch else head(self.pooled(batch))
        return logits_of(self.voiced(batch), *self.vocabulary())

    def spoken(self, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        if self.anatomy.kind == "seq2seq":
            return target_logp(self, batch, temperature)
        h = self.voiced(batch)
        weight, bias, cap = self.vocabulary()
        own = h.to(self.compute) if h.device.type == "cpu" or self.compute is not torch.float32 else h
        return label_logp(own, weight, bias, batch["label"], cap, temperature), h

    def bucket_logp(self, batch: Batch, ids: Tensor | int, temperature: float) -> Buckets:
        size = self.known()
        if self.anatomy.kind == "seq2seq":
            return target_buckets(self, batch, ids, temperature, size)
        h = self.voiced(batch)
        weight, bias, cap = self.vocabulary()
        h = h.to(self.compute) if h.device.type == "cpu" or self.compute is not torch.float32 else h
        return bucket_logp(h, weight[:size], None if bias is None else bias[:size], ids, batch["label"], temperature, cap)

    def known(self) -> int:
        """Tokens that the tokenizer has; published embeddings may be padded with more rows, which mean nothing."""
        rows = len(self.model.get_output_embeddings().weight)
        return min(rows, len(self.tokenizer)) if self.tokenizer is not None else rows

    def voiced(self, batch: Batch) -> Tensor:
        """(M, D): the states that the output embedding reads; Granite and Cohere scale its logits."""
        return self.voice(self.states(batch).values[batch.labelled()])

    def voice(self, h: Tensor) -> Tensor:
        if self.fills:
            with self.precision():
                return before_vocabulary(self.model, self.trunk, h)
        config = self.model.config
        scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        return h if scale == 1 else h * scale

    def vocabulary(self) -> tuple[Tensor, Tensor | None, float | None]:
        """The output embedding: weight (V, D), bias, and the soft cap on the logits (Gemma 2)."""
        head = self.model.get_output_embeddings()
        return head.weight, getattr(head, "bias", None), getattr(self.model.config, "final_logit_softcapping", None)


def fill(x: Tensor, of: Cells) -> Tensor:
    """(n, ...) -> (rows, width, ...), zeros behind each row."""
    if of.spots is None:
        return x.view(of.rows, of.width, *x.shape[1:])
    return x.new_zeros(of.rows * of.width, *x.shape[1:]).index_copy(0, of.spots, x).view(of.rows, of.width, *x.shape[1:])
