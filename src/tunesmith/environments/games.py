"""Gymnasium's environments in words: FrozenLake, Taxi, and any other with a rendering of its observations and a reading of what the policy says."""

from __future__ import annotations

import importlib
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
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


def taxi(steps: int = 30, guided: float = 0.0) -> Spoken:
    """Fetch a passenger and bring him where he wants: seen `taxi 0 3 from red to blue`, said south, north, east, west, pick or drop.

    Rewards are Gymnasium's, a twentieth of them, so that a good ride is worth about 1: -1 a step, -10 for a wrong pick or drop, 20 at the goal. `guided` adds so much for
    each step nearer to the goal and takes it for each one away: by chance nobody arrives within 30 turns. Where that is worth less than a wrong pick costs, the policy
    unlearns to pick before it has learnt where: 30 is a good worth.
    """
    env = gymnasium().make("Taxi-v4" if "Taxi-v4" in gymnasium().registry else "Taxi-v3", max_episode_steps=steps)
    places = ("red", "green", "yellow", "blue")

    def show(state: int) -> str:
        row, column, passenger, goal = env.unwrapped.decode(state)
        return f"taxi {row} {column} " + ("passenger in" if passenger == 4 else f"from {places[passenger]}") + f" to {places[goal]}"

    world = Guided(env, guided, steps_to_go(env.unwrapped.P)) if guided else env
    return Spoken(Scaled(world, 1 / 20), show, word(("south", "north", "east", "west", "pick", "drop")), lost=-0.05)


def steps_to_go(moves: Mapping[int, Mapping[int, Sequence[tuple]]]) -> dict[int, int]:
    """Of each state from which the goal can be reached, the fewest steps; `moves` are a world's own, state -> action -> (chance, next state, reward, over)."""
    edges = [(state, after, over and reward > 0) for state, acts in moves.items() for found in acts.values() for _, after, reward, over in found]
    before: dict[int, list[int]] = defaultdict(list)
    for state, after, _ in edges:
        before[after].append(state)
    away = {state: 1 for state, _, won in edges if won}
    reached = deque(away)
    while reached:
        state = reached.popleft()
        for earlier in before[state]:
            if earlier not in away:
                away[earlier] = away[state] + 1
                reached.append(earlier)
    return away


@dataclass
class Guided:
    """The same world; each step is also paid by `worth` times what it is nearer to the goal. Paid so, the best policy stays the best one (Ng, Harada & Russell 1999, eq. 2, gamma = 1)."""

    env: Any
    worth: float
    away: Mapping[int, int]
    at: int = 0

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        self.at, info = self.env.reset(seed=seed)
        return self.at, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        before = self.away[self.at]
        self.at, reward, terminated, truncated, info = self.env.step(action)
        return self.at, reward + self.worth * (before - (0 if terminated else self.away[self.at])), terminated, truncated, info


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
