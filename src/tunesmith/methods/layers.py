"""Layer-wise fine-tuning: some blocks move, perhaps one after another, perhaps the deep ones slower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Le

from ..core import Method, Network
from ..errors import Refusal
from .linear import need_floats


@dataclass(frozen=True)
class Layers(Method):
    """The last `last` blocks, or the blocks listed in `blocks` (0 is the lowest), with the norm that follows the last one.

    unfreeze    epochs between one block and the next deeper one waking; 0: all at once (ULMFiT, section 3.3)
    decay       factor on the learning rate from one block to the next deeper one; 1: none (ULMFiT, eq. 2 has 1/2.6)
    embeddings  the token embeddings move too, with the deepest rate

    Blocks under the lowest one that moves are constants; their output is computed once for all epochs.
    """

    last: Annotated[int, Ge(1)] = 2
    blocks: tuple[int, ...] = ()
    unfreeze: Annotated[int, Ge(0)] = 0
    decay: Annotated[float, Gt(0), Le(1)] = 1.0
    embeddings: bool = False

    paper: ClassVar[str] = "Howard & Ruder 2018 (ULMFiT), https://arxiv.org/abs/1801.06146"
    merges: ClassVar[bool] = True
    matrices: ClassVar[bool] = True
    rates: ClassVar[Mapping[str, float]] = {"encoder": 5e-4, "decoder": 1e-4, "seq2seq": 5e-4}

    def refuse(self, net: Network) -> None:
        need_floats(net, "method: lora, adapter or bitfit; or leave out model.bits")
        depth = net.anatomy.depth
        if wrong := [b for b in self.blocks if not 0 <= b < depth]:
            raise Refusal(f"there is no block {wrong[0]}", where="method.blocks", fix=f"0 to {depth - 1}; this network has {depth} blocks")
        if not self.blocks and self.last > depth:
            raise Refusal(f"last: {self.last}, but this network has {depth} blocks", where="method.last", fix=f"1 to {depth}")

    def chosen(self, net: Network) -> list[int]:
        """Indices of the blocks that move, deepest first to last."""
        return sorted(set(self.blocks)) or list(range(net.anatomy.depth - self.last, net.anatomy.depth))

    def trains(self, name: str, net: Network) -> bool:
        block = net.anatomy.block_of(name)
        return block in self.chosen(net) or (self.embeddings and block < 0)

    def rank(self, name: str, net: Network) -> int:
        """How many moving blocks lie above this parameter; embeddings lie under all of them."""
        block = net.anatomy.block_of(name)
        return sum(b > block for b in self.chosen(net)) if block < net.anatomy.depth else 0

    def pace(self, name: str, net: Network) -> float:
        return self.decay ** self.rank(name, net)

    def wakes(self, name: str, net: Network) -> int:
        return self.unfreeze * self.rank(name, net)
