"""More messages and replies from few: own phrases with slots, and training rows of the desk with other numbers and brands in them."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tunesmith.data.desk import Record

BRANDS = {
    "en": ("Orbo", "Brisa", "Novall", "Kettra", "Vantor", "Hearthline", "Zenni", "Luno", "Lumo", "Pexa", "Tarvo", "Molina", "Quill", "Senda"),
    "zh": ("泰瑟", "卡尔达", "帕可", "乐诺", "云帆", "米朵", "Vantor", "Luno", "Novall"),
}
GREETINGS = {"en": ("Hi, ", "Hello, ", "Good morning. ", "Dear team, "), "zh": ("你好，", "您好，", "客服你好，", "老板，")}
THANKS = {"en": (" Thanks!", " Thank you.", " Many thanks", " Cheers"), "zh": ("谢谢", "谢谢！", "麻烦了", "拜托了")}
FROM_CUSTOMER = ("order", "noun", "part", "when", "name")  # a reply may state a price, a brand or a day of its own, but none of these
CHOICE = re.compile(r"\(([^()|]*(?:\|[^()|]*)+)\)")
TITLE = re.compile(r"(en|zh) \w+")
SLOT_LINE = re.compile(r"^(en|zh) (\w+): (.+)$", re.MULTILINE)
CHINESE = re.compile(r"[\u4e00-\u9fff]")
ORDER = re.compile(r"#?(?:[A-Z]{1,3}[-/]?\d[\d/-]*\d|\d{4,}(?:-\d+)?)(?:-[A-Z])?")
ASKS_ORDER = re.compile("order number|订单号")
SLOT = re.compile(r"\{(\w+)\}")
NUMBER = re.compile(r"\d[\d.,]*\d|\d\d")


def varied(record: Record, dice: random.Random) -> tuple[str, str]:
    """(message, reply) of a row; half of the time with another brand, other digits in its order number and other amounts, the same in both."""
    text, reply = record.text, record.reply
    if dice.random() < 0.4:
        return text, reply
    for span in record.spans:
        said = record.text[span.start : span.end]
        if span.label == "order":
            text, reply = replaced(said, digits(said, dice), text, reply)
        elif span.label == "amount" and (found := NUMBER.search(said)) and (found[0] in reply or not re.search(r"\d", reply)):
            text, reply = replaced(found[0], digits(found[0], dice), text, reply)
        elif span.label == "product" and (brand := next((b for b in BRANDS[record.lang] if b in said), None)):
            text, reply = replaced(brand, dice.choice(BRANDS[record.lang]), text, reply)
    return text, reply


def hasty(pair: tuple[str, str], dice: random.Random) -> tuple[str, str]:
    """Half of the messages lose about every eighth word or character that the reply does not repeat, so that no single one decides."""
    text, reply = pair
    if dice.random() < 0.5:
        pieces = re.findall(r"[A-Za-z'’]+ ?|[^A-Za-z]", text)
        text = "".join(piece for piece in pieces if dice.random() > 0.12 or piece.isdigit() or piece.strip() in reply)
    return text.strip() or pair[0], reply


def spared(pair: tuple[str, str]) -> tuple[str, str] | None:
    """The reply says `your order` for its number, since so small a model does not learn to copy one; None where it repeats other figures."""
    text, reply = pair
    for number in [found for found in ORDER.findall(reply) if found in text]:
        reply = re.sub(rf"订单{re.escape(number)}|{re.escape(number)}", "您的订单", reply) if CHINESE.search(reply) else naming(reply, number)
    return None if any(figures in text for figures in re.findall(r"\d{2,}", reply)) else (text, reply)


def naming(reply: str, number: str) -> str:
    """`your order` in place of its number, with a capital where a sentence begins."""
    reply = re.sub(rf"(?:[Oo]rder |invoice )?(?<!\w){re.escape(number)}(?!\w)", "your order", reply)
    return re.sub(r"(^|[.!?] )your order", r"\1Your order", reply)


def replaced(old: str, new: str, *texts: str) -> tuple[str, ...]:
    return tuple(text.replace(old, new) for text in texts)


def digits(said: str, dice: random.Random) -> str:
    """Other digits in the same places, a first one that is not 0; other capitals too, one time in three."""
    if dice.random() < 0.33:
        said = re.sub(r"[A-Z]", lambda _: dice.choice("ABCDEFGHJKLMNPQRSTUVWXYZ"), said)
    return re.sub(r"\d", lambda found: dice.choice("123456789" if found.start() == 0 else "0123456789"), said)


# ------------------------------------------------------------------------------------------------ own phrases


@dataclass(frozen=True)
class Block:
    """What can be asked and what can be answered to any of it, in one language."""

    lang: str
    asks: tuple[str, ...]
    replies: tuple[str, ...]


@dataclass(frozen=True)
class Wording:
    """slots: values by language and name; general: replies to anything by (language and intent, urgent)."""

    slots: dict[str, dict[str, list[str]]]
    blocks: list[Block]
    general: dict[tuple[str, bool], list[str]]


def worded(wording: Wording, dice: random.Random, times: int) -> Iterator[tuple[str, str]]:
    """(message, reply), at most `times` of each line that asks, none twice."""
    for block in wording.blocks:
        for ask in block.asks:
            yield from dict.fromkeys(pair(ask, block, wording.slots[block.lang], dice) for _ in range(times))


def served(record: Record, wording: Wording, dice: random.Random, copies: tuple[str, ...] = ("order", "product", "amount")) -> tuple[str, str]:
    """A row of the desk, varied, with a general reply: one that names the order where there is one, and asks for it where there is none.

    copies   the kinds of entities that a reply may name
    """
    told: dict[str, str] = {}
    for span in [span for span in record.spans if span.label in copies]:
        told.setdefault(span.label, record.text[span.start : span.end])
    lines = wording.general[f"{record.lang} {record.intent}", record.urgency == "high"]
    known = [line for line in lines if told.keys() >= set(SLOT.findall(line)) and not ("order" in told and ASKS_ORDER.search(line))]
    named = [line for line in known if "{order}" in line]
    chosen = dice.choice(named or known or [line for line in lines if not SLOT.search(line)])
    return varied(replace(record, reply=SLOT.sub(lambda found: told[found[1]], chosen)), dice)


def read(path: Path) -> Wording:
    """The form is described at the head of the file."""
    found = Wording({"en": {}, "zh": {}}, [], {})
    for part in path.read_text(encoding="utf-8").split("\n\n"):
        lines = part.strip().splitlines()
        if not TITLE.fullmatch(lines[0]):  # comments, or the slots
            for language, name, values in SLOT_LINE.findall(part):
                found.slots[language][name] = values.split("|")
            continue
        for group in re.findall(r"((?:^\? .*\n?)+)((?:^= .*\n?)+)", part, re.MULTILINE):
            found.blocks.append(Block(lines[0][:2], *(tuple(line[2:] for line in half.splitlines()) for half in group)))
        for mark, urgent in (("* ", False), ("! ", True)):
            if general := [line[2:] for line in lines if line.startswith(mark)]:
                found.general[lines[0], urgent] = general
    return found


def pair(ask: str, block: Block, slots: dict[str, list[str]], dice: random.Random) -> tuple[str, str]:
    """One message with a reply that speaks of no order, thing or name but the message's own."""
    told: dict[str, str] = {}
    asked = filled(ask, slots, told, dice)
    known = [reply for reply in block.replies if all(slot in told or slot not in FROM_CUSTOMER for slot in SLOT.findall(reply))]
    answer = filled(dice.choice(known or block.replies), slots, told, dice)
    return mannered(asked, block.lang, dice), answer


def filled(line: str, slots: dict[str, list[str]], told: dict[str, str], dice: random.Random) -> str:
    """Choices made, slots filled; what is filled in is kept in `told` for the other half."""
    while found := CHOICE.search(line):
        line = line[: found.start()] + dice.choice(found[1].split("|")) + line[found.end() :]
    while found := SLOT.search(line):
        if found[1] not in told:
            value = dice.choice(slots[found[1]])
            told[found[1]] = re.sub("#+", lambda run: "".join(dice.choice("0123456789" if i else "123456789") for i in range(len(run[0]))), value)
        line = line[: found.start()] + told[found[1]] + line[found.end() :]
    return re.sub("  +", " ", line).strip()


def mannered(text: str, lang: str, dice: random.Random) -> str:
    """As people write: with or without a greeting, thanks, capitals and a full stop."""
    if dice.random() < 0.15:
        text = dice.choice(GREETINGS[lang]) + text
    if dice.random() < 0.15:
        text = text + dice.choice(THANKS[lang])
    if dice.random() < 0.15:
        text = (text[:1].lower() if text[1:2].islower() else text[:1]) + text[1:].rstrip(".。!！")
    return text
