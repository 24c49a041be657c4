"""What a reward model says of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .errors import Refusal
from .sources.table import Table
from .sources.text.encode import answered
from .sources.text.examples import Dialogue, Turn

if TYPE_CHECKING:
    from .artifact import Tuned
    from .networks.decode import Sampling


@torch.no_grad()
def predict_reward(tuned: Tuned, asked: Sequence[Any], sampling: Sampling, batch: int) -> list[dict[str, Any]]:
    """The reward of each [prompt, answer], or list of messages that ends with an answer. Only differences between answers to one prompt mean something."""
    columns, _ = answered(tuned.reader, [dialogue(a, i) for i, a in enumerate(asked)])
    found: dict[int, float] = {}
    for b in Table(columns, tuned.task.key, device=tuned.net.device).once(tokens=batch):
        found |= zip(b["row"].tolist(), tuned.net.logits(b)[:, 0].float().tolist(), strict=True)
    return [{"reward": found[i]} for i in range(len(asked))]


def dialogue(asked: Any, number: int) -> Dialogue:
    """Raises Refusal for what has no answer."""
    if isinstance(asked, list | tuple) and len(asked) == 2 and all(isinstance(text, str) for text in asked):
        return Dialogue((Turn("user", asked[0], False), Turn("assistant", asked[1], True)), number)
    if isinstance(asked, list | tuple) and asked and all(isinstance(m, Mapping) for m in asked) and asked[-1].get("role") == "assistant":
        return Dialogue(tuple(Turn(m["role"], m["content"], m is asked[-1]) for m in asked), number)
    raise Refusal(
        f"a reward belongs to an answer, and {str(asked)[:60]!r} has none", where="predict", fix="[prompt, answer], or messages whose last is the assistant's"
    )
