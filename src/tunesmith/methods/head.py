"""Head only: the trunk rests, what stands on it moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..core import Method, Network
from ..errors import Refusal


@dataclass(frozen=True)
class Head(Method):
    """A linear or MLP head (recipe key `head`) on pooled or token states; for `generate`, the output embedding.

    The trunk is a constant of the run, so its states are computed once for all epochs.
    """

    paper: ClassVar[str] = "Peters, Ruder, Smith 2019, https://arxiv.org/abs/1903.05987 (feature extraction)"
    merges: ClassVar[bool] = True
    matrices: ClassVar[bool] = True
    needs_head: ClassVar[bool] = True
    rates: ClassVar[Mapping[str, float]] = {"encoder": 3e-2, "decoder": 3e-3, "seq2seq": 3e-3}

    def refuse(self, net: Network) -> None:
        if not len(net.heads) and net.anatomy.vocabulary is None:
            raise Refusal(
                "this model has no head of its own: its output embedding is its input embedding",
                where="method",
                why="training it alone would change what every layer reads",
                fix="method: layers, lora, ...; head-only suits classify, tag and score",
            )

    def trains(self, name: str, net: Network) -> bool:
        return net.anatomy.vocabulary is not None and name.startswith(net.anatomy.vocabulary + ".")
