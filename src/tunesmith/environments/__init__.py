"""What a policy can talk or play with: Gymnasium's interface, with text (or token ids) for observations and the policy's own words for actions.

    reset(seed=...) -> (observation, info)         step(text) -> (observation, reward, terminated, truncated, info)

`info["success"]`, where an environment knows it, is whether the task is done. Each episode has a random generator of its own; a world is made once and
begins again with each `reset`, which leaves nothing of the episode before.

    environment: tictactoe | desk | frozenlake | taxi | {kind: tictactoe, opponent: perfect}
    environment: mine.py:Maze                      a class or function that makes one
    environment: {kind: gymnasium, id: Blackjack-v1, render: mine.py:render, act: mine.py:act}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, Protocol

from ..errors import Refusal
from ..recipe_yaml import closest
from ..rewards.functions import function
from .desk import Desk
from .games import Spoken, frozen_lake, taxi
from .tictactoe import TicTacToe

Observation = str | list[int]


class Environment(Protocol):
    """One episode at a time."""

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]: ...

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]: ...


ENVIRONMENTS: dict[str, Callable[..., Environment]] = {
    "tictactoe": TicTacToe,
    "desk": Desk,
    "frozenlake": frozen_lake,
    "taxi": taxi,
    "gymnasium": Spoken.made,
}


def environment(given: str | Mapping[str, Any]) -> Callable[[], Environment]:
    """Makes environments by what a recipe names. Raises Refusal where it names none, or an option that it does not take."""
    options = {"kind": given} if isinstance(given, str) else dict(given)
    kind = str(options.pop("kind", ""))
    if ".py:" in kind:
        make = function(kind, "objective.environment")
    elif kind in ENVIRONMENTS:
        make = ENVIRONMENTS[kind]
    else:
        near = closest(kind, ENVIRONMENTS)
        fix = f"did you mean `{near}`?" if near else f"one of {', '.join(ENVIRONMENTS)}, or file.py:Name"
        raise Refusal(f"there is no environment `{kind}`", where="objective.environment", fix=fix)
    known = list(signature(make).parameters)
    for key in options:
        if key not in known:
            raise Refusal(f"unknown key `{key}`", where=f"objective.environment.{key}", fix=f"known here: {', '.join(known) or 'none'}")
    made = lambda: make(**options)
    made()  # what cannot be made is refused here, not in the middle of a run
    return made


__all__ = ["ENVIRONMENTS", "Environment", "environment"]
