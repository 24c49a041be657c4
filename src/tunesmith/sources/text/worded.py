"""Rows asked in words: each example as the texts that its label words would complete, with the places where the tokens of the words are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...core import Ragged
from ...errors import Refusal
from .examples import Classified
from .task import Task
from .template import Template
from .wording import Asked, Shot, Wording, suits

if TYPE_CHECKING:
    from .encode import Reader

Place = tuple[int, int, int, int]  # position, token, class, word of the class


@dataclass(frozen=True)
class Row:
    """Tokens that the network reads, and what is read off it where."""

    ids: tuple[int, ...]
    places: tuple[Place, ...]


def worded_columns(reader: Reader, examples: Sequence[Classified], task: Task) -> tuple[dict[str, Tensor | Ragged], tuple[Classified, ...], tuple[int, ...]]:
    """What Encoded holds. ids, at: rows and the positions that are read; label: a token at each. token, spot, side, word: every token of every label word, which of the row's
    positions it is read at, its class and which word of the class it belongs to. Of a row: group (the example), truth (its class, -1 without one) and
    words (C, J), the number of tokens of each word, 0 for one that is not there. Also the rows' lengths before truncation.
    """
    wording = reader.wording
    assert wording is not None
    suits(wording, examples[0], reader.masked)
    shots = reader.near(examples) if reader.near else [None] * len(examples)
    spelt = spellings(reader, [(e.text, e.pair) for e in examples], shots)
    found, lengths = [], list[int]()
    for e, near, texts in zip(examples, shots, spelt, strict=True):
        long = max(map(len, (ids for ids, _ in texts.values())))
        found.append(rows_of(reader, (e.text, e.pair), near, texts if long <= reader.max_length else shortened(reader, e, near, long)))
        lengths += [long] * len(found[-1])
    index = {label: i for i, label in enumerate(task.labels)}
    truth = [index.get(e.labels[0], -1) if e.labels else -1 for e in examples]
    return laid_out(found, truth, sizes(found, wording)), tuple(examples), tuple(lengths)


# ------------------------------------------------------------------------------------------------ tokens


Spelt = dict[tuple[int, int], tuple[list[int], list[int]]]  # (class, word) -> ids of the whole text, indices of the word's tokens


def prompt(reader: Reader, text: str, pair: str | None, shots: Sequence[Shot] | None) -> tuple[Asked, bool]:
    """The prompt, and whether the tokenizer should add its special tokens."""
    wording = reader.wording
    assert wording is not None
    if not wording.chat:
        return wording.asked(text, pair, shots), True
    template = Template.of(reader.tokenizer, "chat")
    said = template.asked(wording.turns(text, pair, shots))
    return Asked(said, "", ""), template.special(said)


def spellings(reader: Reader, texts: Sequence[tuple[str, str | None]], shots: Sequence[Sequence[Shot] | None]) -> list[Spelt]:
    """For every text and every label word, the prompt completed by it. A word is tokenised where it stands, never alone: after a space it is another
    token than without one, and some tokenizers join it to what stands before.
    """
    wording = reader.wording
    assert wording is not None
    names = [(c, j, word) for c, options in enumerate(wording.words.values()) for j, word in enumerate(options)]
    names = names[:1] if wording.bare else names
    asked = [prompt(reader, *text, near) for text, near in zip(texts, shots, strict=True)]
    whole = [f"{a.before}{a.lead}{word}{a.after if reader.masked else ''}" for a, _ in asked for _, _, word in names]
    read = reader.tokenizer(whole, add_special_tokens=asked[0][1], return_offsets_mapping=True, verbose=False)
    out: list[Spelt] = []
    for i, (a, _) in enumerate(asked):
        start, here = len(a.before) + len(a.lead), range(i * len(names), (i + 1) * len(names))
        out.append(
            {(c, j): (read["input_ids"][k], own(read["offset_mapping"][k], start, start + len(word))) for k, (c, j, word) in zip(here, names, strict=True)}
        )
    return out


def own(offsets: Sequence[tuple[int, int]], start: int, end: int) -> list[int]:
    """Tokens that reach into the characters start:end, the special ones that the tokenizer added (empty) not among them."""
    return [t for t, (a, b) in enumerate(offsets) if a < b and b > start and a < end]


def shortened(reader: Reader, example: Classified, shots: Sequence[Shot] | None, long: int) -> Spelt:
    """The same with the end of the text cut off, until all fits. Raises Refusal where the prompt alone is too long."""
    text, pair, over = example.text, example.pair, long - reader.max_length
    while over > 0:
        longer = pair is not None and len(pair) > len(text)
        offsets = reader.tokenizer(pair if longer else text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        if not offsets:
            raise Refusal(
                f"the prompt takes {long} tokens with no text in it, and a row has {reader.max_length}",
                where="method.shots",
                fix="fewer demonstrations, or a larger data.max_length",
            )
        cut = offsets[max(0, len(offsets) - over)][0]
        text, pair = (text, pair[:cut]) if longer and pair is not None else (text[:cut], pair)
        shown = reader.wording.without(example.text, example.pair) if shots is None and reader.wording else shots  # a cut text is still the same row
        spelt = spellings(reader, [(text, pair)], [shown])[0]
        long = max(len(ids) for ids, _ in spelt.values())
        over = long - reader.max_length
    return spelt


# ------------------------------------------------------------------------------------------------ rows


def rows_of(reader: Reader, text: tuple[str, str | None], shots: Sequence[Shot] | None, spelt: Spelt) -> list[Row]:
    if not all(where for _, where in spelt.values()):
        raise Refusal("a label word has no token of its own in the prompt", where="words", fix="words that the tokenizer knows")
    return filled_in(reader, spelt) if reader.masked else followed(reader, spelt)


def followed(reader: Reader, spelt: Spelt) -> list[Row]:
    """Read from left to right: log p(word | prompt) is summed over the tokens from where the first word begins. Words that share their beginning share a row, and
    the last token of a word is never read, only predicted; with words of one token each, an example is one row.
    """
    first = min(where[0] for _, where in spelt.values())
    if first == 0:
        raise Refusal("nothing stands before the label word", where="template", fix='"{text}\\nCategory: {label}"')
    rows: list[tuple[tuple[int, ...], list[Place]]] = []
    known: dict[tuple[int, ...], int] = {}
    for key, (ids, where) in sorted(spelt.items(), key=lambda item: -item[1][1][-1]):
        read = tuple(ids[: where[-1]])
        if read not in known:
            known |= {read[:n]: len(rows) for n in range(first, len(read) + 1)}
            rows.append((read, []))
        end = first if reader.wording and reader.wording.bare else where[-1]
        rows[known[read]][1].extend((t - 1, ids[t], *key) for t in range(first, end + 1))
    return [Row(ids[:first] if reader.wording and reader.wording.bare else ids, tuple(sorted(places))) for ids, places in rows]


def filled_in(reader: Reader, spelt: Spelt) -> list[Row]:
    """As many masks as the word has tokens, all read at once (a row a number of masks): the sum of the tokens' log-probabilities, each at its mask (Schick &
    Schütze 2021b, section 3.1, without its second and later passes).
    """
    mask = reader.tokenizer.mask_token_id
    rows: dict[tuple[int, ...], list[Place]] = {}
    for key, (ids, where) in spelt.items():
        put = where[:1] if reader.wording and reader.wording.bare else where
        blank = tuple(ids[: put[0]]) + (mask,) * len(put) + tuple(ids[where[-1] + 1 :])
        rows.setdefault(blank, []).extend((put[0] + n, ids[t], *key) for n, t in enumerate(put))
    return [Row(ids, tuple(sorted(places))) for ids, places in rows.items()]


def sizes(found: Sequence[Sequence[Row]], wording: Wording) -> list[list[list[int]]]:
    """(E, C, J): tokens of each word in each example."""
    most = 1 if wording.bare else max(map(len, wording.words.values()))
    out = []
    for rows in found:
        table = [[0] * most for _ in wording.words]
        for row in rows:
            for *_, c, j in row.places:
                table[c][j] += 1
        out.append(table)
    return out


def laid_out(found: Sequence[Sequence[Row]], truth: Sequence[int], words: Sequence[Any]) -> dict[str, Tensor | Ragged]:
    rows = [row for rows in found for row in rows]
    owner = torch.tensor([i for i, rows in enumerate(found) for _ in rows])
    at = [sorted({place[0] for place in row.places}) for row in rows]
    spot = [{t: n for n, t in enumerate(spots)} for spots in at]
    first = [{place[0]: place[1] for place in reversed(row.places)} for row in rows]
    flat: Mapping[str, list[list[int]]] = {
        "ids": [list(row.ids) for row in rows],
        "at": at,
        "label": [[here[t] for t in spots] for here, spots in zip(first, at, strict=True)],
        "token": [[place[1] for place in row.places] for row in rows],
        "spot": [[here[place[0]] for place in row.places] for here, row in zip(spot, rows, strict=True)],
        "side": [[place[2] for place in row.places] for row in rows],
        "word": [[place[3] for place in row.places] for row in rows],
    }
    columns: dict[str, Tensor | Ragged] = {
        name: Ragged(torch.tensor([x for row in lists for x in row], dtype=torch.long), tuple(map(len, lists))) for name, lists in flat.items()
    }
    return {**columns, "group": owner, "truth": torch.tensor(truth)[owner], "words": torch.tensor(words)[owner]}
