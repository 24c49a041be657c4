"""What a teacher is asked, and how its answers become columns. It is loaded, asked about every example once, and let go before the student trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from ..core import Batch, Ragged
from ..dataset import Dataset, asked
from ..errors import Refusal
from ..networks.transformer import Transformer
from ..objectives.distil import Distil
from ..recipe import Recipe
from ..sources.answers import Stored
from ..sources.table import Table
from ..sources.text.examples import Dialogue
from .align import Aligned, aligned
from .cache import Spec, Writer, manifest, note, opened
from .report import about
from .teacher import Named, Teacher, hash_of, same_tokens

Columns = Mapping[str, Tensor | Ragged]
Heard = Callable[[int, int], None]  # rows done, of how many


@dataclass(frozen=True)
class Question:
    """All that a teacher's answers depend on."""

    recipe: Recipe
    data: Dataset
    learn: Distil
    who: Named

    @cached_property
    def examples(self) -> list[int]:
        """The id of the example in each training row."""
        return ids(self.data, self.learn.kind == "generate" or self.inside)

    @cached_property
    def rows(self) -> list[int]:
        """The first row of each example."""
        first: dict[int, int] = {}
        for row, example in enumerate(self.examples):
            first.setdefault(example, row)
        return list(first.values())

    @property
    def inside(self) -> bool:
        return "teacher_states" in self.learn.needs or "teacher_heads" in self.learn.needs

    @property
    def order(self) -> list[int]:
        """Of the teacher's labels, as the student has them."""
        return [self.who.labels.index(label) for label in self.data.task.labels]

    @property
    def key(self) -> dict[str, Any]:
        learn, reader = self.learn, self.data.reader if self.shared else self.who.reader
        found = {"task": self.data.task.kind, "teacher": self.who.name, "weights": self.who.identity, "labels": list(self.data.task.labels)}
        found |= {"tokenizer": hash_of(reader.tokenizer)}
        if not self.shared:  # else an example is its tokens, and what cuts or renders it makes another one
            found |= {"max_length": reader.max_length, "template": reader.template, "learn_prompt": reader.learn_prompt}
        found |= {"temperature": learn.temperature, "top": learn.top, "align": learn.align} if learn.kind == "generate" else {}
        return {**found, **({"blocks": [list(part) for part in learn.heard(1)]} if self.inside else {})}

    @property
    def shared(self) -> bool:
        """Whether teacher and student read the same tokens; a teacher that is asked about whole texts reads them in its own way."""
        return (self.learn.kind == "generate" and self.learn.align is None) or self.inside

    def refuse(self) -> None:
        """What can be told before a weight is loaded."""
        ours, theirs = self.data.reader, self.who.reader
        if self.shared and not same_tokens(ours.tokenizer, theirs.tokenizer):
            raise Refusal(
                f"the teacher {self.who.name} has another tokenizer than {self.recipe.model.name}",
                where="objective.teacher",
                why="the same number would mean another token, and the same text other positions",
                fix="align: uld" if self.learn.kind == "generate" and not self.inside else "a student of the teacher's family, or nothing matched inside",
            )
        if self.learn.kind == "generate" and ours.seq2seq != theirs.seq2seq:
            raise Refusal("one of teacher and student is an encoder-decoder, the other is not", where="objective.teacher", fix="two of a kind")
        if self.inside and ours.seq2seq:
            raise Refusal(
                "what goes on inside an encoder-decoder that writes is not matched", where="objective", fix="leave out states, attention and relations"
            )
        if self.learn.align and (ours.seq2seq or not talks(self.data)):
            raise Refusal(
                "`align: uld` needs dialogues and a decoder",
                where="objective.align",
                why="it aligns answers by their characters",
                fix="columns prompt and completion",
            )
        if self.learn.on_policy and not talks(self.data):
            raise Refusal("`on_policy` and plain text, in which there is no prompt to answer", where="objective.on_policy", fix="columns prompt and completion")


def talks(data: Dataset) -> bool:
    """Whether rows are prompts with answers."""
    return all(isinstance(e, Dialogue) for e in data.train.examples)


def ids(data: Dataset, tokens: bool) -> list[int]:
    """The id of the example in each training row: of its tokens and where they are labelled, or of its text (and words), which a teacher reads in its own way."""
    columns, examples = data.train.encoded.columns, data.train.examples
    if tokens:
        parts = [column.rows() for name in ("ids", "at", "target", "word") if isinstance(column := columns.get(name), Ragged)]
        return [number(b"|".join(row.numpy().tobytes() for row in rows)) for rows in zip(*parts, strict=True)]
    texts = [asked(e).encode() for e in examples]
    words = columns.get("word")
    return (
        [number(t + b"|" + w.numpy().tobytes()) for t, w in zip(texts, words.rows(), strict=True)] if isinstance(words, Ragged) else [number(t) for t in texts]
    )


def number(content: bytes) -> int:
    """xxh3 of 64 bits, as a signed integer."""
    return int.from_bytes(xxhash.xxh3_64(content).digest(), "little", signed=True)


# ------------------------------------------------------------------------------------------------ answers of a batch


def answers(learn: Distil, teacher: Teacher, batch: Batch, order: Sequence[int], top: int) -> Columns:
    """Columns for a batch that teacher and student read alike."""
    states, heads = learn.heard(1)
    if not (states or heads):
        return ANSWERS[learn.kind](learn, teacher, batch, order, top)
    assert isinstance(teacher, Transformer)
    depth, lengths = teacher.anatomy.depth, batch.ragged("ids").lengths
    states, heads = [i % depth for i in states], [i % depth for i in heads]
    said, heard = teacher.overheard(lambda: ANSWERS[learn.kind](learn, teacher, batch, order, top), batch, states, heads)
    found = {"teacher_states": [heard.states[i] for i in states], "teacher_heads": [torch.cat([x.flatten(1) for x in heard.heads[i]], -1) for i in heads]}
    return {**said, **{name: Ragged(torch.stack(parts, 1).bfloat16(), lengths) for name, parts in found.items() if parts}}


def classes(learn: Distil, teacher: Teacher, batch: Batch, order: Sequence[int], top: int) -> Columns:
    return {"teacher": teacher.logits(batch).float()[:, list(order)]}


def scores(learn: Distil, teacher: Teacher, batch: Batch, order: Sequence[int], top: int) -> Columns:
    return {"teacher": teacher.logits(batch).float()[:, 0]}


def words(learn: Distil, teacher: Teacher, batch: Batch, order: Sequence[int], top: int) -> Columns:
    return {"teacher": Ragged(teacher.logits(batch).float()[:, list(order)], batch.ragged("at").lengths)}


def tokens(learn: Distil, teacher: Teacher, batch: Batch, order: Sequence[int], top: int) -> Columns:
    assert isinstance(teacher, Transformer)
    found, lengths = teacher.bucket_logp(batch, top, learn.temperature), batch.ragged("label").lengths
    return {"teacher": Ragged(found.logp, lengths), "teacher_ids": Ragged(found.ids.int(), lengths)}


Answer = Callable[[Distil, Teacher, Batch, Sequence[int], int], Columns]
ANSWERS: dict[str, Answer] = {"single": classes, "multi": classes, "score": scores, "tag": words, "generate": tokens}


# ------------------------------------------------------------------------------------------------ answers to all examples


def stored_answers(question: Question, folder: Path, student: Transformer, told: Heard) -> Stored:
    """From the folder, if they lie there whole; else the teacher is loaded, asked, and let go."""
    there = manifest(folder)
    key = question.key
    if there is None:
        written(question, folder, student, told)
    else:
        found = opened(folder, key, question.examples)
        if found.about["eval"] == eval_hash(question.data):
            return found
        note(folder, there["key"], about(question, question.who.load(student.device)), there["digest"])  # judged on other rows: asked about these
    return opened(folder, key, question.examples)


def written(question: Question, folder: Path, student: Transformer, told: Heard) -> None:
    teacher = question.who.load(student.device)
    top = width(question, teacher, student)
    out = Writer(folder, [question.examples[row] for row in question.rows], lengths_of(question), specs_of(question, teacher, top))
    for done, (place, answer) in enumerate(asked_once(question, teacher, top), 1):
        out.put(place, answer)
        told(done, len(question.rows))
    out.finish(question.key, about(question, teacher))


def width(question: Question, teacher: Teacher, student: Transformer) -> int:
    """Tokens that are kept of each distribution."""
    if question.learn.kind != "generate":
        return 0
    assert isinstance(teacher, Transformer)
    if question.learn.align is None and teacher.known() != student.known():
        raise Refusal(
            f"the teacher writes {teacher.known()} tokens, the student {student.known()}, by one tokenizer",
            where="objective.teacher",
            fix="models that were trained with it",
        )
    return min(question.learn.top, teacher.known(), student.known())


def lengths_of(question: Question) -> dict[str, list[int]]:
    """By row that is asked about: how many answers it has, and how many tokens."""
    columns, found = question.data.train.encoded.columns, {}
    label, tokens = columns["label"], columns["ids"]
    if isinstance(label, Ragged):
        found["lengths"] = [label.lengths[row] for row in question.rows]
    if question.inside:
        assert isinstance(tokens, Ragged)
        found["tokens"] = [tokens.lengths[row] for row in question.rows]
    return found


def specs_of(question: Question, teacher: Teacher, top: int) -> dict[str, Spec]:
    learn, kind = question.learn, question.learn.kind
    one = {"score": (), "generate": (top,)}.get(kind, (len(question.order),))
    if kind == "generate" and isinstance(teacher, Transformer) and top < teacher.known():
        one = (top + 1,)
    many = "lengths" if kind in ("tag", "generate") else None
    specs = {"teacher": Spec(torch.float32, one, many)} | ({"teacher_ids": Spec(torch.int32, (top,), "lengths")} if kind == "generate" else {})
    states, heads = learn.heard(1)
    shape = question.who.shape
    specs |= {"teacher_states": Spec(torch.bfloat16, (len(states), shape.width), "tokens")} if states else {}
    return specs | ({"teacher_heads": Spec(torch.bfloat16, (len(heads), sum(shape.sizes)), "tokens")} if heads else {})


@torch.no_grad()
def asked_once(question: Question, teacher: Teacher, top: int) -> Iterator[tuple[int, Mapping[str, Tensor]]]:
    """(place, answer) of every example, short ones first."""
    data, learn = question.data, question.learn
    chosen = [data.train.examples[row] for row in question.rows]
    whole = Batch(data.train.encoded.columns).pick(question.rows)
    if question.shared:
        columns = whole.columns
    else:
        columns = question.who.reader.encode(chosen, data.task).columns
    device = next(teacher.parameters()).device
    pairs = aligned(chosen, data.reader, question.who.reader) if learn.align else None
    for batch in Table(columns, data.task.name, device=device).once():
        said = answers(learn, teacher, batch, question.order, top)
        parts = {name: column.rows() if isinstance(column, Ragged) else column.unbind() for name, column in said.items()}
        for i, place in enumerate(batch["row"].tolist()):
            answer = {name: part[i] for name, part in parts.items()}
            if learn.kind == "tag":
                answer["teacher"] = by_word(answer["teacher"], batch.ragged("word").rows()[i], whole.ragged("word").rows()[place])
            yield place, answer if pairs is None else spread(answer, pairs[place])


def by_word(answer: Tensor, theirs: Tensor, ours: Tensor) -> Tensor:
    """(words of the student, C): the answers to them; none (NaN) to a word that the teacher has not read."""
    found = answer.new_full((len(ours), answer.shape[1]), torch.nan)
    spot = {word: i for i, word in enumerate(theirs.tolist())}
    for i, word in enumerate(ours.tolist()):
        if word in spot:
            found[i] = answer[spot[word]]
    return found


def spread(answer: Mapping[str, Tensor], pairs: Aligned) -> dict[str, Tensor]:
    """The teacher's answers at the student's positions; none (NaN) where its tokens have no like of them."""
    made = {
        "teacher": torch.full((pairs.length, answer["teacher"].shape[1]), torch.nan),
        "teacher_ids": torch.zeros(pairs.length, answer["teacher_ids"].shape[1], dtype=torch.int32),
    }
    for name, values in made.items():
        values[list(pairs.ours)] = answer[name].to(values)[list(pairs.theirs)]
    return made


def eval_hash(data: Dataset) -> str:
    return xxhash.xxh3_64("".join(asked(e) for e in data.eval.examples).encode()).hexdigest() if data.eval else ""
