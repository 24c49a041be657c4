"""What an answer is worth: verifiable answers, a function of the user's, a trained classifier or reward model; one or several with weights.

    reward: exact | numeric | contains | {kind: regex, pattern: "\\d+"} | {kind: format, as: json}
    reward: rewards.py:polite                      def polite(sample) -> float, or def polite(samples) -> list of floats; None: cannot be scored
    reward: runs/judge                             the folder of a run: of task score its number, of task classify the probability of `label`
    reward: [{reward: exact, weight: 1.0}, {reward: rewards.py:short, weight: 0.2}]

Whatever goes wrong in a reward names the reward and the sample: an exception, a wrong length, what is no number, what is slow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..construct import build
from ..errors import Refusal
from .functions import OfRun, scored_by
from .told import Score, Told, asked, number
from .verifiable import REWARDS

__all__ = ["REWARDS", "Reward", "Told", "reward"]


@dataclass(frozen=True)
class Reward:
    """A weighted sum of named parts. Called with the samples, returns each part's values; `total` adds them. None where one cannot be scored."""

    parts: Sequence[tuple[str, float, Score]]
    warn: Callable[[str], None] = lambda text: None

    def __call__(self, samples: Sequence[Told]) -> tuple[list[float], dict[str, list[float]]]:
        """(totals, NaN where a part cannot be scored; the parts, where there are several)."""
        found = {name: asked(name, score, samples, self.warn) for name, _, score in self.parts}
        totals = [sum(weight * found[name][i] for name, weight, _ in self.parts) for i in range(len(samples))]
        return totals, found if len(found) > 1 else {}


def reward(given: str | Mapping[str, Any] | Sequence[Any], warn: Callable[[str], None] = lambda text: None, load: bool = True) -> Reward:
    """What a recipe names, ready to be called; networks only where `load`. Raises Refusal where it names nothing."""
    entries: Sequence[Any] = given if isinstance(given, list | tuple) else [{"reward": given}]
    parts = []
    for entry in entries:
        entry: Mapping[str, Any] = entry if isinstance(entry, Mapping) and "reward" in entry else {"reward": entry}
        if odd := set(entry) - {"reward", "weight"}:
            raise Refusal(f"unknown key `{sorted(odd)[0]}`", where="objective.reward", fix="{reward: ..., weight: ...}")
        weight: Any = entry.get("weight", 1.0)
        if not number(weight):
            raise Refusal(f"a weight is {weight!r}", where="objective.reward.weight", fix="a number")
        parts.append((label(entry["reward"]), float(weight), part(entry["reward"], warn, load)))
    names = [name for name, _, _ in parts]
    if len(set(names)) < len(names) or not names:
        raise Refusal("a reward is named twice, or none is", where="objective.reward", fix="one entry each")
    return Reward(parts, warn)


def label(given: Any) -> str:
    """The name of a part in the records."""
    kind = given if isinstance(given, str) else str(given.get("kind") or given.get("folder"))
    return kind.rpartition(":")[2] if ".py:" in kind else Path(kind).name


def part(given: Any, warn: Callable[[str], None], load: bool) -> Score:
    options = {"kind": given} if isinstance(given, str) else dict(given)
    kind = str(options.pop("kind", options.get("folder", "")))
    if kind in REWARDS:
        return build(REWARDS[kind], options, "objective.reward", None)
    if ".py:" in kind:
        return scored_by(kind, warn)
    if (Path(kind) / "artifact").is_dir() or (Path(kind) / "tunesmith.json").exists():
        options.pop("folder", None)
        run = build(OfRun, {"folder": kind, **options}, "objective.reward", None)
        return run.made() if load else lambda samples: []
    raise Refusal(
        f"there is no reward `{kind}`", where="objective.reward", fix=f"one of {', '.join(REWARDS)}, file.py:function, or the folder of a finished run"
    )
