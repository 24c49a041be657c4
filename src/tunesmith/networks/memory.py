"""Keys and values of rows that are being written, each as long as it is: a slot a row, filled from the front, taken over by the next row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernels import Rules, by_matmul, by_sdpa

GROWS = 64  # positions


@dataclass
class Memory:
    """`keys[i]`, `values[i]` (slots, kv heads, room, d) of the i-th attention module; `lengths[s]` positions of slot s are filled.

    fixed   the first positions of every slot hold the prefix, which all tokens see
    """

    keys: list[Tensor]
    values: list[Tensor]
    lengths: Tensor  # (slots,)
    fixed: int = 0
    reach: int = 0  # the longest slot, once this pass has written
    masks: dict[tuple[int, torch.dtype], Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, heard: Sequence[tuple[Tensor, Tensor]], slots: int, room: int, dtype: torch.dtype, prefix: Tensor | None) -> Memory:
        """Empty slots for modules that were heard to make keys and values (1, kv heads, n, d); `prefix` (2 modules, p, kv heads, d)."""
        fixed = 0 if prefix is None else prefix.shape[1]
        blank = lambda x: torch.zeros(slots, x.shape[1], fixed + room, x.shape[-1], dtype=dtype, device=x.device)
        made = cls([blank(k) for k, _ in heard], [blank(v) for _, v in heard], torch.full((slots,), fixed, device=heard[0][0].device), fixed)
        if prefix is not None:
            for i in range(len(heard)):
                made.keys[i][:, :, :fixed], made.values[i][:, :, :fixed] = prefix[2 * i].transpose(0, 1), prefix[2 * i + 1].transpose(0, 1)
        return made

    def admit(self, heard: Sequence[tuple[Tensor, Tensor]], lengths: Sequence[int], slots: Sequence[Sequence[int]]) -> None:
        """Rows of these lengths, read end to end, move in: row r into each of slots[r]."""
        self.make_room(self.fixed + max(lengths))
        starts = [0, *torch.tensor(lengths).cumsum(0).tolist()]
        for r, own in enumerate(slots):
            index, end = torch.tensor(own, device=self.lengths.device), self.fixed + lengths[r]
            for i, (k, v) in enumerate(heard):
                self.keys[i][index, :, self.fixed : end] = k[0, :, starts[r] : starts[r + 1]].to(self.keys[i].dtype)
                self.values[i][index, :, self.fixed : end] = v[0, :, starts[r] : starts[r + 1]].to(self.values[i].dtype)
            self.lengths[index] = end

    def make_room(self, positions: int) -> None:
        if (more := positions - self.keys[0].shape[2]) > 0:
            more = max(more, GROWS, self.keys[0].shape[2] // 2)
            self.keys, self.values = ([F.pad(x, (0, 0, 0, more)) for x in side] for side in (self.keys, self.values))

    def keep(self, slots: Sequence[int]) -> None:
        """Only these slots, in this order."""
        index = torch.tensor(slots, device=self.lengths.device)
        self.keys, self.values = ([x[index] for x in side] for side in (self.keys, self.values))
        self.lengths = self.lengths[index]

    def begin(self, longest: int) -> None:
        """A pass in which every slot gets one more token; the longest slot holds `longest` positions before it."""
        self.masks, self.reach = {}, longest + 1
        self.make_room(self.reach)

    def attend(self, i: int, query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
        """query (H, slots, d), key and value (kv heads, slots, d): one token a slot -> (1, slots, H, d)."""
        dtype, rows = self.keys[i].dtype, torch.arange(len(self.lengths), device=key.device)
        self.keys[i][rows, :, self.lengths] = key.transpose(0, 1).to(dtype)
        self.values[i][rows, :, self.lengths] = value.transpose(0, 1).to(dtype)
        k, v = self.keys[i][:, :, : self.reach], self.values[i][:, :, : self.reach]
        kernel = by_matmul if query.device.type == "cpu" else by_sdpa
        return kernel(query.transpose(0, 1)[:, :, None].to(dtype), k, v, self.mask(rules.window, dtype), rules)[None, :, :, 0]

    def mask(self, window: int, dtype: torch.dtype) -> Tensor:
        """(slots, 1, 1, reach), additive: a token sees its own slot up to itself, and of that the window and the prefix."""
        if (window, dtype) not in self.masks:
            at, here = torch.arange(self.reach, device=self.lengths.device), self.lengths[:, None]
            unseen = at > here
            if window:
                unseen |= (here - at >= window) & (at >= self.fixed)
            blank = torch.zeros(unseen.shape, dtype=dtype, device=unseen.device)
            self.masks[window, dtype] = blank.masked_fill_(unseen, float("-inf"))[:, None, None]
        return self.masks[window, dtype]
