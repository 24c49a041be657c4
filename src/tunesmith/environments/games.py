"""Gymnasium's environments in words: FrozenLake, Taxi, and any other with a rendering of its observations and a reading of what the policy says."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import Refusal
from ..rewards.functions import function


@dataclass
class Spoken:
    """`show` puts an observation in words (or token ids), `read` finds the action in what the policy said: None where there is none.

    Without an action the turn is lost: the world stays as it is, the reward is `lost`. `done(reward, terminated)` is what success means.
    """

    env: Any
    show: Callable[[Any], Any]
    read: Callable[[str], Any | None]
    done: Callable[[float, bool], bool] = lambda reward, terminated: terminated and reward > 0
    lost: float = 0.0
    last: Any = None

    @classmethod
    def made(cls, id: str, render: str, act: str) -> Spoken:
        """Any registered environment, with two functions of the user's: render(observation) -> text or ids, act(text) -> action or None."""
        where = "objective.environment"
        return cls(gymnasium().make(id), function(render, f"{where}.render"), function(act, f"{where}.act"))

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        self.last, info = self.env.reset(seed=seed)
        return self.show(self.last), dict(info)

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        chosen = self.read(action)
        if chosen is None:
            return self.show(self.last), self.lost, False, False, {"success": False}
        self.last, reward, terminated, truncated, info = self.env.step(chosen)
        return self.show(self.last), float(reward), terminated, truncated, {**info, "success": self.done(float(reward), terminated)}


def gymnasium() -> Any:
    try:
        return importlib.import_module("gymnasium")
    except ImportError as e:
        raise Refusal("gymnasium is not installed", where="objective.environment", fix="pip install 'tunesmith[games]'") from e


def word(words: Sequence[str]) -> Callable[[str], int | None]:
    """The index of the first of these words that is said."""
    return lambda text: next((words.index(said) for said in text.lower().split() if said in words), None)


def frozen_lake(map: str = "4x4", slippery: bool = False, steps: int = 20) -> Spoken:
    """Find the way over the ice: seen `row 0 column 1`, said left, down, right or up; 1 at the goal, which is the lower right corner."""
    env = gymnasium().make("FrozenLake-v1", map_name=map, is_slippery=slippery, max_episode_steps=steps)
    side = int(map.partition("x")[0])
    return Spoken(env, lambda s: f"row {s // side} column {s % side}", word(("left", "down", "right", "up")))


def taxi(steps: int = 30) -> Spoken:
    """Fetch a passenger and bring him where he wants: seen `taxi 0 3 from red to blue`, said south, north, east, west, pick or drop.

    Rewards are Gymnasium's, a twentieth of them, so that a good ride is worth about 1: -1 a step, -10 for a wrong pick or drop, 20 at the goal.
    """
    env = gymnasium().make("Taxi-v4" if "Taxi-v4" in gymnasium().registry else "Taxi-v3", max_episode_steps=steps)
    places = ("red", "green", "yellow", "blue")

    def show(state: int) -> str:
        row, column, passenger, goal = env.unwrapped.decode(state)
        return f"taxi {row} {column} " + ("passenger in" if passenger == 4 else f"from {places[passenger]}") + f" to {places[goal]}"

    return Spoken(Scaled(env, 1 / 20), show, word(("south", "north", "east", "west", "pick", "drop")), lost=-0.05)


@dataclass
class Scaled:
    """The same world, its rewards in another unit."""

    env: Any
    by: float

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        return self.env.reset(seed=seed)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward * self.by, terminated, truncated, info
