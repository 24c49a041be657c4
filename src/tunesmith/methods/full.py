"""Full fine-tuning: every parameter moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..core import Method, Network
from .linear import need_floats


@dataclass(frozen=True)
class Full(Method):
    """Every parameter of the trunk and the heads. Adapts fully where data is plentiful; costs 16 bytes a parameter in fp32 with AdamW."""

    paper: ClassVar[str] = "Devlin et al. 2019, https://arxiv.org/abs/1810.04805"
    merges: ClassVar[bool] = True
    matrices: ClassVar[bool] = True
    rates: ClassVar[Mapping[str, float]] = {"encoder": 1e-4, "decoder": 2e-5, "seq2seq": 3e-4}

    def refuse(self, net: Network) -> None:
        need_floats(net, "method: lora, which QLoRA showed to come close on such a base; or leave out model.bits")

    def trains(self, name: str, net: Network) -> bool:
        return True
