"""From examples to columns of numbers: tokens laid end to end, and the labels with the positions they belong to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...core import Ragged
from ...errors import Refusal
from .examples import UNKNOWN, Classified, Dialogue, Example, Judged, Plain, Preferred, Related, Scored, Tagged
from .task import Task
from .template import Template
from .tokens import first_tokens, learnt, next_tokens, ragged
from .worded import worded_columns
from .wording import Wording


@dataclass(frozen=True)
class Encoded:
    """`columns` for a Table; `kept[i]` is the example behind row i, or behind the i-th group of rows; `lengths` of rows before truncation, in tokens."""

    columns: dict[str, Tensor | Ragged]
    kept: tuple[Example, ...]
    lengths: tuple[int, ...]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Reader:
    """A tokenizer with all that decides how a text is read. `types`: the model distinguishes the halves of a pair; `prompts`, what stands before
    a text to embed: `anchor` and `positive` (negatives too) of rows that have these, `text` of others.
    """

    tokenizer: Any
    max_length: int
    types: bool = False
    seq2seq: bool = False
    template: str = "auto"
    learn_prompt: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    wording: Wording | None = None  # of kind `cloze`: how a row is asked about
    masked: bool = False  # the words are filled in, not written
    near: Callable[[Sequence[Classified]], list[Any]] | None = None  # demonstrations of each row, where they are chosen for it
    drop_cut: bool = False  # leave out rows whose labels were all cut off, instead of refusing

    def encode(self, examples: Sequence[Example], task: Task) -> Encoded:
        """Raises Refusal where nothing is left to learn from a row after truncation, naming the rows."""
        if not examples:
            raise Refusal("there are no examples", where="data")
        how = ENCODERS[task.kind] if task.name != "generate" else CASES[type(examples[0]), self.seq2seq]
        return how(self, examples, task)

    def texts(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> dict[str, Any]:
        return self.tokenizer(list(texts), None if pairs is None else list(pairs), truncation=True, max_length=self.max_length, verbose=False)


def halves(examples: Sequence[Classified | Scored]) -> tuple[list[str], list[str] | None]:
    pairs = [e.pair for e in examples]
    return [e.text for e in examples], None if pairs[0] is None else [p or "" for p in pairs]


def whole_rows(reader: Reader, examples: Sequence[Any]) -> tuple[dict[str, Tensor | Ragged], tuple[int, ...]]:
    """Ids, types where the model has them, and the lengths that the rows would have uncut."""
    texts, pairs = halves(examples)
    found = reader.texts(texts, pairs)
    columns: dict[str, Tensor | Ragged] = {"ids": ragged(found["input_ids"])}
    if reader.types and pairs is not None:
        columns["types"] = ragged(found["token_type_ids"])
    return columns, uncut(reader, texts, pairs, found["input_ids"])


def uncut(reader: Reader, texts: Sequence[str], pairs: Sequence[str] | None, cut: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Only rows that reached the limit are tokenised again, whole."""
    lengths = [len(ids) for ids in cut]
    long = [i for i, n in enumerate(lengths) if n >= reader.max_length]
    if long:
        whole = reader.tokenizer([texts[i] for i in long], None if pairs is None else [pairs[i] for i in long], truncation=False, verbose=False)
        for i, ids in zip(long, whole["input_ids"], strict=True):
            lengths[i] = len(ids)
    return tuple(lengths)


def single(reader: Reader, examples: Sequence[Classified], task: Task) -> Encoded:
    """label (B,): the index of the one label; -1 where a row has none."""
    columns, lengths = whole_rows(reader, examples)
    index = {label: i for i, label in enumerate(task.labels)}
    return Encoded({**columns, "label": torch.tensor([index.get(e.labels[0], -1) for e in examples])}, tuple(examples), lengths)


def multi(reader: Reader, examples: Sequence[Classified], task: Task) -> Encoded:
    """label (B, C): 0 and 1; -1 where a row has none, which is not a row of which none is true."""
    columns, lengths = whole_rows(reader, examples)
    label = torch.tensor([[-1.0 if UNKNOWN in e.labels else float(name in e.labels) for name in task.labels] for e in examples])
    return Encoded({**columns, "label": label}, tuple(examples), lengths)


def score(reader: Reader, examples: Sequence[Scored], task: Task) -> Encoded:
    """label (B,): the number itself; no number where a row has none."""
    columns, lengths = whole_rows(reader, examples)
    return Encoded({**columns, "label": torch.tensor([e.score for e in examples], dtype=torch.float32)}, tuple(examples), lengths)


def tag(reader: Reader, examples: Sequence[Tagged], task: Task) -> Encoded:
    """A word's label is on its first token; `at` are those tokens, `word` which word of the example each belongs to."""
    index = {label: i for i, label in enumerate(task.labels)}
    found = reader.tokenizer([e.text for e in examples], truncation=True, max_length=reader.max_length, return_offsets_mapping=True, verbose=False)
    firsts = [first_tokens(e, offsets) for e, offsets in zip(examples, found["offset_mapping"], strict=True)]
    kept = keep(reader, examples, [bool(f) for f in firsts], "words")
    at, word = [[t for _, t in firsts[i]] for i in kept], [[w for w, _ in firsts[i]] for i in kept]
    label = [[index.get(examples[i].tags[w], -1) for w in words] for i, words in zip(kept, word, strict=True)]
    ids = [found["input_ids"][i] for i in kept]
    lengths = uncut(reader, [examples[i].text for i in kept], None, ids)
    columns: dict[str, Tensor | Ragged] = {"ids": ragged(ids), "at": ragged(at), "label": ragged(label), "word": ragged(word)}
    return Encoded(columns, tuple(examples[i] for i in kept), lengths, dropped(examples, kept))


def dialogues(reader: Reader, examples: Sequence[Dialogue], task: Task) -> Encoded:
    """Decoders: `at` are the positions whose next token is to be learnt, `label` that token."""
    template = Template.of(reader.tokenizer, reader.template)
    rendered = [template.render(e.turns, reader.learn_prompt) for e in examples]
    special = [template.special(r.text) for r in rendered]
    found = [reader.tokenizer(r.text, add_special_tokens=s, return_offsets_mapping=True, verbose=False) for r, s in zip(rendered, special, strict=True)]
    rows = [f["input_ids"][: reader.max_length] for f in found]
    at = [learnt(f["offset_mapping"][: reader.max_length], r.learn) for f, r in zip(found, rendered, strict=True)]
    kept = keep(reader, examples, [bool(a) for a in at], "answers")
    columns = next_tokens([rows[i] for i in kept], [at[i] for i in kept])
    return Encoded(columns, tuple(examples[i] for i in kept), tuple(len(found[i]["input_ids"]) for i in kept), dropped(examples, kept))


def plain(reader: Reader, examples: Sequence[Plain], task: Task) -> Encoded:
    """Text without turns: every token is learnt; a text longer than a row becomes several rows."""
    rows: list[list[int]] = []
    owners: list[Example] = []
    for e, ids in zip(examples, reader.tokenizer([e.text for e in examples], verbose=False)["input_ids"], strict=True):
        ids = ids if ids[-1:] == [reader.tokenizer.eos_token_id] or reader.tokenizer.eos_token_id is None else [*ids, reader.tokenizer.eos_token_id]
        pieces = [ids[i : i + reader.max_length] for i in range(0, len(ids), reader.max_length)]
        rows += [p for p in pieces if len(p) > 1]
        owners += [e for p in pieces if len(p) > 1]
    columns = next_tokens(rows, [range(len(r) - 1) for r in rows])
    notes = [f"{len(examples)} texts became {len(rows)} rows of at most {reader.max_length} tokens"] if len(rows) != len(examples) else []
    return Encoded(columns, tuple(owners), tuple(len(r) for r in rows), notes)


def pairs(reader: Reader, examples: Sequence[Dialogue], task: Task) -> Encoded:
    """Encoder-decoders: `ids` is what stands before the last answer, `target` (and `label`) the answer and EOS."""
    template = Template.of(reader.tokenizer, "plain")
    asked = [template.asked(e.turns[:-1]).strip() for e in examples]
    found = reader.texts(asked)["input_ids"]
    answers = reader.tokenizer([e.turns[-1].content for e in examples], add_special_tokens=False, verbose=False)["input_ids"]
    target = [[*a[: reader.max_length - 1], reader.tokenizer.eos_token_id] for a in answers]
    columns: dict[str, Tensor | Ragged] = {"ids": ragged(found), "target": ragged(target), "label": ragged(target)}
    return Encoded(columns, tuple(examples), uncut(reader, asked, None, found))


def preferred(reader: Reader, examples: Sequence[Preferred], task: Task) -> Encoded:
    """Two rows an example, `side` 0 the chosen and 1 the rejected answer. Where truncation took one, both go."""
    flat = [d for e in examples for d in (e.chosen, e.rejected)]
    found = CASES[Dialogue, reader.seq2seq](reader, flat, task)
    alive = {id(d) for d in found.kept}
    whole = [e for e in examples if id(e.chosen) in alive and id(e.rejected) in alive]
    if len(whole) < len(examples):
        return replace(preferred(reader, whole, task), notes=dropped(examples, range(len(whole))))
    return Encoded({**found.columns, **sides(len(examples), 2)}, tuple(examples), found.lengths)


def sides(n: int, rows: int) -> dict[str, Tensor | Ragged]:
    """n groups of as many rows."""
    return {"group": torch.arange(n).repeat_interleave(rows), "side": torch.arange(rows).repeat(n)}


def judged(reader: Reader, examples: Sequence[Judged], task: Task) -> Encoded:
    """good (B,): 1 where the answer was found good, else 0."""
    flat = [e.dialogue for e in examples]
    found = CASES[Dialogue, reader.seq2seq](reader, flat, task)
    place = {id(d): e for d, e in zip(flat, examples, strict=True)}
    kept = tuple(place[id(d)] for d in found.kept)
    return replace(found, columns={**found.columns, "good": torch.tensor([float(e.good) for e in kept])}, kept=kept)


def compared(reader: Reader, examples: Sequence[Preferred], task: Task) -> Encoded:
    """For a reward: dialogues to their end, two rows an example, as in `preferred`."""
    columns, lengths = answered(reader, [d for e in examples for d in (e.chosen, e.rejected)])
    return Encoded({**columns, **sides(len(examples), 2)}, tuple(examples), lengths)


def answered(reader: Reader, dialogues: Sequence[Dialogue]) -> tuple[dict[str, Tensor | Ragged], tuple[int, ...]]:
    """Rows to score an answer by: as the chat template writes them, cut at the front, because the reward is read at the end; without a template,
    what was asked and what was answered as a pair of texts.
    """
    template = Template.of(reader.tokenizer, reader.template)
    if template.kind == "chat":
        rows = [reader.tokenizer(template.text(d.turns, answer=False), add_special_tokens=False, verbose=False)["input_ids"] for d in dialogues]
        return {"ids": ragged([row[-reader.max_length :] for row in rows])}, tuple(map(len, rows))
    asked, answers = [template.asked(d.turns[:-1]) for d in dialogues], [d.turns[-1].content for d in dialogues]
    found = reader.texts(asked, answers)
    columns: dict[str, Tensor | Ragged] = {"ids": ragged(found["input_ids"])}
    if reader.types:
        columns["types"] = ragged(found["token_type_ids"])
    return columns, uncut(reader, asked, answers, found["input_ids"])


def related(reader: Reader, examples: Sequence[Related], task: Task) -> Encoded:
    """A row a text. side (B,): 0 the anchor, 1 the positive, from 2 on negatives; text (B,): equal for equal texts, input (B,): for those with equal
    prompts, too; label (B,) or score (B,) where there are; alike (B,) of pairs with a label, equal for those that answer each other, -1 for negatives.

    Texts of one example are a group, so that each keeps its own.
    """
    before = prompts_of(reader, len(examples[0].texts))
    flat = [before[min(side, 1)] + t for e in examples for side, t in enumerate(e.texts)]
    index = {t: i for i, t in enumerate(dict.fromkeys(flat))}
    found = reader.texts(list(index))
    ids, of = found["input_ids"], [index[t] for t in flat]
    bare = {t: i for i, t in enumerate(dict.fromkeys(t for e in examples for t in e.texts))}
    sizes = torch.tensor([len(e.texts) for e in examples])
    columns: dict[str, Tensor | Ragged] = {"ids": ragged([ids[i] for i in of]), "group": torch.arange(len(examples)).repeat_interleave(sizes)}
    columns |= {"side": torch.cat([torch.arange(n) for n in sizes.tolist()]), "text": torch.tensor([bare[t] for e in examples for t in e.texts])}
    columns["input"] = torch.tensor(of)
    names = {label: i for i, label in enumerate(dict.fromkeys([*task.labels, *(e.label or "" for e in examples)]))}  # other files may have other labels
    if task.kind == "grouped":
        columns["label"] = torch.tensor([names[e.label or ""] for e in examples]).repeat_interleave(sizes)
    if task.kind == "pairs" and any(e.label for e in examples):
        columns["alike"] = torch.tensor([names[e.label or ""] if side < 2 and e.label else -1 for e in examples for side in range(len(e.texts))])
    if task.kind == "similar":
        columns["score"] = torch.tensor([e.score or 0.0 for e in examples]).repeat_interleave(sizes)
    lengths = uncut(reader, list(index), None, ids)
    return Encoded(columns, tuple(examples), tuple(lengths[i] for i in of))


def prompts_of(reader: Reader, texts: int) -> tuple[str, str]:
    """What stands before the first and before the other texts of an example."""
    roles = ("anchor", "positive") if texts > 1 else ("text", "text")
    if reader.prompts and not set(reader.prompts) & set(roles):
        named, have = ", ".join(reader.prompts), "anchor and positive" if texts > 1 else "text"
        raise Refusal(f"`data.prompts` is for {named}, and these rows have {have}", where="data.prompts", fix=f"prompts: {{{roles[0]}: ...}}")
    return reader.prompts.get(roles[0], ""), reader.prompts.get(roles[1], "")


def refuse_plain(reader: Reader, examples: Sequence[Plain], task: Task) -> Encoded:
    raise Refusal("an encoder-decoder learns from prompts and answers, and this file has plain text", where="data.train", fix="columns prompt and completion")


def keep(reader: Reader, examples: Sequence[Example], good: Sequence[bool], what: str) -> list[int]:
    """Indices of rows with something left to learn; refuses, with the rows, where truncation took it from some."""
    bad = [e.row for e, ok in zip(examples, good, strict=True) if not ok]
    if bad and not (reader.drop_cut and len(bad) < len(examples)):
        raise Refusal(
            f"max_length {reader.max_length} cuts off all {what} of {len(bad)} of {len(examples)} rows",
            where="data.max_length",
            why=f"rows {', '.join(str(r + 1) for r in bad[:8])}{' ...' if len(bad) > 8 else ''} would teach nothing",
            fix="a larger max_length, or bad_rows: skip",
        )
    return [i for i, ok in enumerate(good) if ok]


def dropped(examples: Sequence[Example], kept: Sequence[int]) -> list[str]:
    gone = len(examples) - len(kept)
    return [f"{gone} rows left out: truncation took all their labels"] if gone else []


ENCODERS: dict[str, Callable[[Reader, Any, Task], Encoded]] = {
    "single": single,
    "cloze": lambda reader, examples, task: Encoded(*worded_columns(reader, examples, task)),
    "multi": multi,
    "score": score,
    "tag": tag,
    "reward": compared,
    **dict.fromkeys(("pairs", "similar", "grouped", "texts"), related),
}
CASES: dict[tuple[type, bool], Callable[[Reader, Any, Task], Encoded]] = {
    (Dialogue, False): dialogues,
    (Plain, False): plain,
    (Dialogue, True): pairs,
    (Plain, True): refuse_plain,
    **{(Preferred, seq2seq): preferred for seq2seq in (False, True)},
    **{(Judged, seq2seq): judged for seq2seq in (False, True)},
}
