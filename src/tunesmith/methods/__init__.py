"""What may move. One file a method; this table is the recipe's vocabulary, the command line's list and the laws' parametrisation."""

from __future__ import annotations

from ..core import Method
from .adapter import Adapter
from .bitfit import BitFit
from .full import Full
from .fusion import Fusion
from .hard_prompt import HardPrompt
from .head import Head
from .layers import Layers
from .lora import LoRA
from .mixture import Mixture
from .peft_bridge import Peft
from .prefix import Prefix
from .prompt import Prompt

METHODS: dict[str, type[Method]] = {
    "full": Full,
    "head": Head,
    "layers": Layers,
    "adapter": Adapter,
    "prompt": Prompt,
    "prefix": Prefix,
    "lora": LoRA,
    "bitfit": BitFit,
    "fusion": Fusion,
    "mixture": Mixture,
    "peft": Peft,
    "hard_prompt": HardPrompt,
}
