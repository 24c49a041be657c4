"""A published Transformer as everything else sees it, and the modules that a method may put into it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from .data import Batch, Ragged

T = TypeVar("T")


@dataclass(frozen=True)
class Anatomy:
    """Where a published architecture keeps its parts; every path starts at the Network (`model.` ...). A row of data.

    linears maps a projection's path to its role: query key value out up gate down, fused ones joined by `+`.
    tails are the modules that run after the last block, under the heads; unused ones never run, so they never train.
    """

    kind: str  # encoder | decoder | seq2seq
    blocks: tuple[str, ...]
    linears: Mapping[str, str]
    attentions: tuple[str, ...]
    embedding: str
    tails: tuple[str, ...]
    unused: tuple[str, ...]
    width: int
    kv_heads: int
    head_dim: int
    positions: int | None = None  # learned or configured limit on the length of a row
    position_offset: int = 0  # the index of the first position (RoBERTa counts from padding_idx + 1)
    vocabulary: str | None = None  # the output embedding, where it is not the input embedding too

    @property
    def depth(self) -> int:
        return len(self.blocks)

    def block_of(self, name: str) -> int:
        """Index of the block a parameter belongs to; `depth` for a head, -1 for what lies under the first block."""
        for i, path in enumerate(self.blocks):
            if name.startswith(path + "."):
                return i
        if name.startswith("heads.") or (self.vocabulary and name.startswith(self.vocabulary + ".")):
            return self.depth
        return self.depth - 1 if any(name.startswith(tail + ".") for tail in self.tails) else -1

    def projections(self, *roles: str) -> list[str]:
        """Paths of the linear layers that play any of these roles, in the order of the network."""
        return [path for path, role in self.linears.items() if set(role.split("+")) & set(roles)]


@dataclass(frozen=True)
class Heard:
    """What a network computed on its way, by block: `states` (N, D) that leave it; `heads`, query (N, H, d), key and value (N, kv heads, d) of its self-attention."""

    states: Mapping[int, Tensor]
    heads: Mapping[int, tuple[Tensor, Tensor, Tensor]]


class Buckets(NamedTuple):
    """A distribution over the vocabulary as K tokens and all others together: ids (M, K); logp (M, K + 1), the others last, or (M, K) where K is all; own (M,): of the label, at temperature 1."""

    ids: Tensor
    logp: Tensor
    own: Tensor


class Network(nn.Module, ABC):
    """A Transformer to tune. `model` is the object Hugging Face built; `heads` holds one module a task.

    `prompt` and `prefix` are the two places outside the blocks where a method may put an Insert: rows before the first
    token, and keys and values before every self-attention.
    """

    model: Any  # a PreTrainedModel; typing its class here would import transformers
    heads: nn.ModuleDict
    anatomy: Anatomy
    prompt: Slot | None
    prefix: Slot | None
    labels: tuple[str, ...]
    rested: int = -1  # the floor that the modes were last set for
    takes_prefix: bool  # its class asks for an attention function, so keys and values can be put before a row's own

    @abstractmethod
    def token_ids(self, text: str) -> list[int]:
        """The text as tokens, without special ones."""

    @abstractmethod
    def keys_values(self, ids: Tensor) -> Tensor:
        """(2 layers, p, kv heads, d): what p tokens leave in each self-attention, key at 2i and value at 2i + 1."""

    @abstractmethod
    def states(self, batch: Batch) -> Ragged:
        """(N, D): the last hidden state of every token. Starts above the cached trunk when the batch carries `trunk`."""

    @abstractmethod
    def pooled(self, batch: Batch) -> Tensor:
        """(B, D)."""

    @abstractmethod
    def logits(self, batch: Batch) -> Tensor:
        """(B, C) for a head on pooled states, (M, C) for a head or vocabulary on labelled positions."""

    @abstractmethod
    def spoken(self, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """(M,): log-probability of each label under softmax(logits / temperature), and (M, D): the states it was read from.

        Never holds all (M, V) logits in fp32 at once.
        """

    def label_logp(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """The first half of `spoken`."""
        return self.spoken(batch, temperature)[0]

    @abstractmethod
    def bucket_logp(self, batch: Batch, ids: Tensor | int, temperature: float) -> Buckets:
        """The vocabulary at each labelled position, at a temperature, in buckets: of the tokens `ids` (M, K), or of as many of the likeliest."""

    @abstractmethod
    def overheard(self, say: Callable[[], T], batch: Batch, states: Sequence[int], heads: Sequence[int]) -> tuple[T, Heard]:
        """What `say` returns, which runs the network on this batch once, and what is heard in these blocks meanwhile."""

    def rest_below(self, floor: int) -> None:
        """Train mode, but what lies under the floor is a constant of the run: no dropout, hence cacheable bit for bit."""
        if self.training and self.rested == floor and self.model.training == (floor <= 0):
            return  # as it was left: `train()` by anyone else would have woken the whole model
        self.train()
        self.rested = floor
        if floor > 0:
            self.model.eval()
            for path in (*self.anatomy.blocks[floor:], *self.anatomy.tails):
                self.get_submodule(path).train()


class Insert(nn.Module):
    """A module that a method put into a network. With `on = False` the network is exactly what it was."""

    on: bool = True

    def ungraft(self) -> None:
        """Leave the network, which is then as if this had never been there."""
        raise NotImplementedError

    def fold(self) -> None:
        """Add what this does to the base weights; only where the method merges."""
        raise NotImplementedError


class Graft(Insert):
    """An insert that lives inside a host module, so that no name of the base network changes, and stands before its forward."""

    def graft(self, host: nn.Module, name: str) -> None:
        self._site = (host, name, host.__dict__.get("forward"))  # a tuple, lest the host become a child of its guest
        inner = host.forward
        host.add_module(name, self)
        host.forward = partial(self.around, inner)

    def around(self, inner: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return self(inner, x) if self.on else inner(x)

    @property
    def host(self) -> nn.Module:
        return self._site[0]

    def folded(self) -> dict[str, Tensor]:
        """The host's own parameters, by name, as they are with the change in them; only where the method merges."""
        raise NotImplementedError

    @torch.no_grad()
    def fold(self) -> None:
        for name, value in self.folded().items():
            own = getattr(self.host, name)
            if own is None:
                setattr(self.host, name, nn.Parameter(value))
            else:
                own.copy_(value)

    def ungraft(self) -> None:
        host, name, before = self._site
        if before is None:
            del host.__dict__["forward"]
        else:
            host.forward = before
        del host._modules[name]


class Slot(Insert):
    """An insert in one of the network's two places outside the blocks: `prompt` -> (p, D), `prefix` -> (2 layers, p, kv heads, d)."""

    def place(self, net: Network, name: str) -> None:
        self._site = (net, name)
        setattr(net, name, self)

    def ungraft(self) -> None:
        setattr(*self._site, None)
