"""What a recipe offers a prompt to be made of: templates and their edits, words, instructions, demonstrations; and the order in which a search tries it."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import Refusal
from ..methods.hard_prompt import HardPrompt, SearchOptions
from ..recipe import Recipe
from ..sources.text.examples import Classified
from ..sources.text.task import Task
from ..sources.text.wording import Shot, Wording, words_for

Chosen = tuple[int, ...]
DEFAULT = {False: "{text}\nCategory: {label}", True: "{text} Category: {label}."}  # of a model that writes, of one that fills in
DEFAULT_PAIR = {False: "{text}\n{pair}\nAnswer: {label}", True: "{text} {label}, {pair}"}
CUES = ("Category:", "Topic:", "Label:", "Answer:", "It is about")
JOINTS = ("\n", " ", " | ", "\n\n")
CONTENTLESS = ("N/A", "", "[MASK]")  # Zhao et al. 2021, run_classification.py
RANDOM_TEXTS = 20  # Fei et al. 2023, section 4.1
WORD = re.compile(r"[\u3400-\u9fff]|[^\s\u3400-\u9fff]+")  # of Chinese, a character
FIXED = 3  # numbers before the words: calibrated, template, instruction


@dataclass(frozen=True)
class Offer:
    """`words` has the options of each label, an option being words that are used together; `pool` the training rows. The first of everything is what is written."""

    templates: tuple[str, ...]
    words: Mapping[str, tuple[tuple[str, ...], ...]]
    instructions: tuple[str, ...]
    pool: tuple[Shot, ...]
    first: Chosen
    calibrates: bool
    rest: Wording
    over: frozenset[str]
    seed: int

    def wording(self, chosen: Chosen) -> Wording:
        calibrated, template, instruction, *more = chosen
        words = {label: options[i] for (label, options), i in zip(self.words.items(), more, strict=False)}
        shots = tuple(self.pool[i] for i in more[len(self.words) :])
        return replace(
            self.rest,
            template=self.templates[template],
            instruction=self.instructions[instruction],
            words=words,
            shots=shots,
            blanks=self.rest.blanks if calibrated else (),
        )

    def propose(self, chosen: Chosen, step: int) -> Chosen | None:
        """Step 0: what is written, calibrated if that is asked for. Then one thing after another is changed, by a sweep through its options or, for demonstrations, by chance."""
        if not step:
            return (int(self.calibrates), *chosen[1:])
        ways = [name for name, n in self.ways().items() if n]
        if not ways:
            return None
        turn, name = (step - 1) // len(ways), ways[(step - 1) % len(ways)]
        return CHANGES[name](self, chosen, turn)

    def ways(self) -> dict[str, int]:
        """What may change, and in how many ways."""
        shots = len(self.first) - FIXED - len(self.words)
        found = {
            "template": len(self.templates) - 1,
            "instruction": len(self.instructions) - 1,
            "words": sum(len(options) - 1 for options in self.words.values()),
            "shots": shots if len(self.pool) > 1 else 0,
        }
        return {name: n for name, n in found.items() if name in self.over}

    def dice(self, *about: object) -> random.Random:
        return random.Random(f"{self.seed}/{about}")


def swept(offer: Offer, count: int, turn: int, about: str) -> int:
    """The turn-th of `count` options, each once a sweep, in an order of the sweep's own."""
    order = list(range(count))
    offer.dice(about, turn // count).shuffle(order)
    return order[turn % count]


def other_template(offer: Offer, chosen: Chosen, turn: int) -> Chosen:
    return (chosen[0], swept(offer, len(offer.templates), turn, "template"), *chosen[2:])


def other_instruction(offer: Offer, chosen: Chosen, turn: int) -> Chosen:
    return (*chosen[:2], swept(offer, len(offer.instructions), turn, "instruction"), *chosen[3:])


def other_words(offer: Offer, chosen: Chosen, turn: int) -> Chosen:
    places = [(FIXED + i, j) for i, options in enumerate(offer.words.values()) for j in range(len(options)) if len(options) > 1]
    place, option = places[swept(offer, len(places), turn, "words")]
    return (*chosen[:place], option, *chosen[place + 1 :])


def other_shots(offer: Offer, chosen: Chosen, turn: int) -> Chosen:
    """One demonstration for another with its label, two that change places, or all of them drawn anew."""
    dice, start = offer.dice("shots", turn), FIXED + len(offer.words)
    shots = list(chosen[start:])
    if turn % 3 == 0:
        place = dice.randrange(len(shots))
        label = offer.pool[shots[place]][2]
        rest = [i for i, shot in enumerate(offer.pool) if shot[2] == label and i not in shots]
        shots[place] = dice.choice(rest) if rest else shots[place]
    elif turn % 3 == 1 and len(shots) > 1:
        a, b = dice.sample(range(len(shots)), 2)
        shots[a], shots[b] = shots[b], shots[a]
    else:
        shots = balanced(offer.pool, len(shots), dice)
    return (*chosen[:start], *shots)


CHANGES = {"template": other_template, "instruction": other_instruction, "words": other_words, "shots": other_shots}


# ------------------------------------------------------------------------------------------------ from a recipe and its rows


def offered(recipe: Recipe, task: Task, examples: Sequence[Any], masked: bool) -> Offer:
    """`examples` are the training rows. Raises Refusal for templates and words that go with nothing."""
    given, method = recipe.objective, recipe.built_method()
    design = method if isinstance(method, HardPrompt) else HardPrompt()  # what is trained is asked without demonstrations
    more = design.search or SearchOptions(over=())
    pool = tuple((e.text, e.pair, e.labels[0]) for e in examples)
    paired = pool[0][1] is not None
    template = given.get("template") or (DEFAULT_PAIR if paired else DEFAULT)[masked]
    words = words_for(task.labels, given.get("words") or {})
    both = words_for(task.labels, {label: (*own, *(w for w in more.words.get(label, ()) if w not in own)) for label, own in words.items()})
    if odd := set(more.words) - set(words):
        words_for(task.labels, dict.fromkeys(odd, "x"))
    dice = random.Random(f"{recipe.seed}/shots")
    near = design.choose == "nearest"
    if design.shots > len(pool):
        raise Refusal(f"{design.shots} demonstrations of {len(pool)} training rows", where="method.shots", fix=f"at most {len(pool)}")
    shots = [] if near else DRAWS[design.choose](pool, design.shots, dice)
    rest = Wording(
        template, words, chat=bool(given.get("chat")), pool=pool if near and design.shots else (), nearest=design.shots if near else 0, embedder=design.embedder,
        reverse=design.order == "reversed", blanks=blanks(design.calibrate, pool, recipe.seed), bare=given.get("verbaliser", "manual") != "manual",
    )  # fmt: skip
    templates = (template, *more.templates)
    return Offer(
        tuple(dict.fromkeys([*templates, *(e for t in templates for e in (edits(t) if more.edits and "template" in more.over else ()))])),
        {label: options(words[label], both[label]) for label in words}, tuple(dict.fromkeys([given.get("instruction", ""), *more.instructions])), pool,
        (0, 0, 0, *[0] * len(words), *(shots[::-1] if design.order == "reversed" else shots)), design.calibrate != "none", rest, frozenset(more.over), recipe.seed,
    )  # fmt: skip


def options(written: tuple[str, ...], known: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """All that are written together, all that are known together, each alone."""
    return tuple(dict.fromkeys([written, known, *((word,) for word in known)]))


def edits(template: str) -> list[str]:
    """The template with what stands between the text and the label said otherwise; its slots keep their order."""
    before, after = template.split("{label}")
    head, _, tail = before.rpartition("}")
    if not head:
        return []
    own = tail.strip()
    return [f"{head}}}{joint}{cue} {{label}}{after}" for cue in dict.fromkeys([own, *CUES]) if cue for joint in JOINTS]


def at_random(pool: Sequence[Shot], k: int, dice: random.Random) -> list[int]:
    return dice.sample(range(len(pool)), k)


def balanced(pool: Sequence[Shot], k: int, dice: random.Random) -> list[int]:
    """As many of each label as goes; which labels have one more, and the order, are drawn."""
    of_label: dict[str, list[int]] = defaultdict(list)
    for i, shot in enumerate(pool):
        of_label[shot[2]].append(i)
    decks = [dice.sample(rows, len(rows)) for _, rows in sorted(of_label.items())]
    dice.shuffle(decks)
    rounds = [deck[n] for n in range(max(map(len, decks))) for deck in decks if n < len(deck)]
    return dice.sample(rounds[:k], k)


DRAWS = {"random": at_random, "balanced": balanced}


def blanks(how: str, pool: Sequence[Shot], seed: int) -> tuple[str, ...]:
    """Texts by which a prompt is calibrated; of the domain, as long as its texts are, in words."""
    if how != "domain":
        return CONTENTLESS if how == "contextual" else ()
    dice, texts = random.Random(f"{seed}/domain"), [WORD.findall(text) for text, _, _ in pool]
    words, length = [word for text in texts for word in text], max(1, round(sum(map(len, texts)) / len(texts)))
    return tuple(" ".join(dice.choices(words, k=length)) for _ in range(RANDOM_TEXTS))


def rows_to_price(examples: Sequence[Classified], count: int, seed: int) -> list[Classified]:
    """In the order of the file."""
    chosen = random.Random(f"{seed}/rows").sample(range(len(examples)), min(count, len(examples)))
    return [examples[i] for i in sorted(chosen)]
