"""TicTacToe against a player who moves at random, or one who never loses."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from ..errors import Refusal

LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))
EMPTY = "." * 9


class TicTacToe:
    """The policy is X and says the number of a free cell. Who begins is drawn from the seed.

    Seen: the nine cells in order, a free one as its number, as in `X 2 3 4 O 6 7 8 9`. Reward: 1 won, 0 drawn, -1 lost or no legal move.
    success: won; against the perfect player, who cannot be beaten: not lost.
    """

    def __init__(self, opponent: str = "random"):
        if opponent not in ("random", "perfect"):
            raise Refusal(f"there is no opponent `{opponent}`", where="objective.environment.opponent", fix="random or perfect")
        self.perfect, self.board, self.dice = opponent == "perfect", EMPTY, random.Random(0)

    def reset(self, *, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        self.board, self.dice = EMPTY, random.Random(seed)
        if self.dice.random() < 0.5:
            self.reply()
        return self.seen(), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        cell = move(action)
        if cell is None or self.board[cell] != ".":
            return self.over(-1.0)
        self.board = put(self.board, cell, "X")
        if won(self.board, "X"):
            return self.over(1.0)
        if "." in self.board:
            self.reply()
            if won(self.board, "O"):
                return self.over(-1.0)
        return self.over(0.0) if "." not in self.board else (self.seen(), 0.0, False, False, {})

    def over(self, reward: float) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return self.seen(), reward, True, False, {"success": reward >= 0 if self.perfect else reward > 0}

    def reply(self) -> None:
        free = [i for i, c in enumerate(self.board) if c == "."]
        if self.perfect:
            best = min(value(put(self.board, i, "O"), "X") for i in free)
            free = [i for i in free if value(put(self.board, i, "O"), "X") == best]
        self.board = put(self.board, self.dice.choice(free), "O")

    def seen(self) -> str:
        return " ".join(str(i + 1) if c == "." else c for i, c in enumerate(self.board))


def move(text: str) -> int | None:
    """The cell that is named first, from 0."""
    digits = [c for c in text if c.isdigit()]
    return int(digits[0]) - 1 if digits and digits[0] != "0" else None


def put(board: str, cell: int, who: str) -> str:
    return board[:cell] + who + board[cell + 1 :]


def won(board: str, who: str) -> bool:
    return any(board[a] == board[b] == board[c] == who for a, b, c in LINES)


@cache
def value(board: str, turn: str) -> int:
    """For X, with best play of both: 1 won, 0 drawn, -1 lost."""
    if won(board, "X") or won(board, "O"):
        return 1 if won(board, "X") else -1
    ends = [value(put(board, i, turn), "O" if turn == "X" else "X") for i, c in enumerate(board) if c == "."]
    return (max if turn == "X" else min)(ends, default=0)
