"""A dialogue at the message desk: a customer writes about an order and leaves out its number; the desk must ask for it before it answers."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import regex

from ..data import desk

ASKS = regex.compile(r"(?i)(order|订单|单).{0,20}(number|no\b|id\b|号|编号)")
GIVES = {"en": ("It is {}.", "The number is {}.", "{}, thanks.", "Sure: {}"), "zh": ("是{}。", "订单号{}。", "{},谢谢。", "号码是{}")}
NAMELESS = {"en": "my order", "zh": "我的订单"}
NAMED = {"en": r"(?i)(?:(?:the|our|my|this|with|make|have) )?(?:(?:order|number|no\.?|ref\.?) ?)*#?", "zh": r"(?:我的)?(?:订单|单号|订单号|号)*[::]?\s*"}


class Desk:
    """Messages are the desk data's, with the order number taken out. Done where the number was obtained before the answer; with `names`, where the answer names it too.

    A turn that asks for the number is answered with it, once more if asked again; any other turn is the desk's answer and ends the dialogue. Reward: 1 done,
    `asked` for having asked at all, 0 otherwise; `patience` questions at most.
    """

    def __init__(self, split: str = "train", language: str | None = None, asked: float = 0.2, patience: int = 2, names: bool = False):
        self.cases = cases(split, language)
        self.worth, self.patience, self.names = asked, patience, names
        self.number, self.language, self.asked, self.dice = "", "en", 0, random.Random(0)

    def reset(self, *, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        self.dice = random.Random(seed)
        text, self.number, self.language = self.dice.choice(self.cases)
        self.number = self.number if seed is None else fresh(self.number, self.dice)
        self.asked = 0
        return text, {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self.number not in action and ASKS.search(action) and self.asked < self.patience:
            self.asked += 1
            return self.dice.choice(GIVES[self.language]).format(self.number), 0.0, False, False, {"success": False}
        done = self.asked > 0 and bool(action.strip()) and (self.number in action or not self.names)
        return "", 1.0 if done else self.worth * (self.asked > 0), True, False, {"success": done}


@cache
def cases(split: str, language: str | None) -> list[tuple[str, str, str]]:
    """(message without its order number, the number, language) of every message that names one order."""
    found = []
    for r in desk.records(split):
        spans = [s for s in r.spans if s.label == "order"]
        if len(spans) == 1 and language in (None, r.lang):
            number = r.text[spans[0].start : spans[0].end]
            found.append((regex.sub(NAMED[r.lang] + regex.escape(number), NAMELESS[r.lang], r.text), number, r.lang))
    return found


def fresh(number: str, dice: random.Random) -> str:
    """Another number of the same form: what was learnt by heart helps nobody."""
    return "".join(str(dice.randrange(10)) if c.isdigit() else c for c in number)
