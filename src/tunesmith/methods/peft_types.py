"""What PEFT has to offer, what of it fits this loop, and where it goes in a network. PEFT is imported on first use."""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from ..core import Network
from ..errors import not_installed

OWN = {"PROMPT_TUNING": "prompt", "P_TUNING": "prompt", "MULTITASK_PROMPT_TUNING": "prompt", "CPT": "prompt"}
OWN |= {"PREFIX_TUNING": "prefix", "CARTRIDGE": "prefix", "ADAPTION_PROMPT": "prefix"}
UNFIT = {
    "ADALORA": ("it moves rank between layers by calls from its own training loop", "type: LORA, or method: lora"),
    "POLY": ("it wants a task number beside every input, which no model's forward takes", "type: LORA, one run a task"),
    "XLORA": ("it mixes LoRA adapters that were trained before", "type: LORA"),
    "LILY": ("it routes by a mean over all rows of a batch, so that rows change one another", "type: LORA"),
    "SHADOW": ("it runs a second network beside the first instead of changing the first", "type: LORA, or method: adapter"),
}
NEEDS = {"TRAINABLE_TOKENS": "token_indices"}  # options without which PEFT would fail at the first forward pass only
DEFAULTS = {"FROD": {"progressbar": False}}  # where PEFT's own does not suit a loop that reports by itself
BOOKKEEPING = {"peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"}


def config_types() -> dict[str, Any]:
    """Name of a method -> the class of its configuration. Imports PEFT."""
    if importlib.util.find_spec("peft") is None:
        raise not_installed("this method needs peft", "peft", where="method")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it where it is installed, and it tells of a kernel it lacks
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return {kind.value: config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


def closest(name: str, names: Collection[str]) -> str:
    """The nearest of these names, as a question, and all of them."""
    near = get_close_matches(name, sorted(names), 1, 0.4)
    return f"{f'{near[0]}? ' if near else ''}one of {', '.join(sorted(names))}"


def targets(kind: str, net: Network, options: Mapping[str, Any]) -> dict[str, list[str]]:
    """The modules to change, as paths from `net.model`, where the options leave them open; none that never run."""
    if kind == "TRAINABLE_TOKENS" or options.keys() & {"target_modules", "target_parameters", "feedforward_modules"}:
        return {}
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.utils import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as FEEDFORWARD
    from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as IA3

    family: str = net.model.config.model_type  # type: ignore[union-attr,assignment]
    table: Mapping[str, Any] = IA3 if kind == "IA3" else PEFT_TYPE_TO_TUNER_MAPPING[PeftType(kind)].target_module_mapping
    found = matching(net, table.get(family) or ())
    exits = matching(net, FEEDFORWARD.get(family, ())) if found else net.anatomy.projections("down")
    role = net.anatomy.projections
    instead = {"IA3": role("key", "value", "down"), "LN_TUNING": norms(net), "BEFT": role("value")}.get(kind, list(net.anatomy.linears))
    named = {"target_modules": found or instead} | ({"feedforward_modules": exits} if kind == "IA3" else {})
    return {key: [path.removeprefix("model.") for path in paths] for key, paths in named.items()}


def matching(net: Network, patterns: str | Sequence[str]) -> list[str]:
    """Paths of the modules that PEFT would match: a regular expression, or endings of paths."""
    pattern = patterns if isinstance(patterns, str) else rf"(.*\.)?({'|'.join(map(re.escape, patterns))})"
    unused = tuple(f"{path}." for path in net.anatomy.unused)
    return [f"model.{n}" for n, _ in net.model.named_modules() if n and re.fullmatch(pattern, n) and not f"model.{n}.".startswith(unused)]


def norms(net: Network) -> list[str]:
    """The norms inside the blocks and after them."""
    places = tuple(f"{path}." for path in (*net.anatomy.blocks, *net.anatomy.tails))
    return [n for n, m in net.named_modules() if f"{n}.".startswith(places) and "norm" in type(m).__name__.lower()]
