"""Rows under a prompt that may change, with what the network says where there is no text; and how a run that asks in words is judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import Batch, Network
from ..dataset import Part
from ..evaluate.evaluate import Outcome, Probe, classified
from ..methods.hard_prompt import Choice, HardPrompt, SearchOptions
from ..objectives.cloze import Cloze
from ..sources.table import Table
from ..sources.text.encode import Reader
from ..sources.text.examples import Classified
from ..sources.text.task import Task
from ..sources.text.wording import Wording
from ..updates import Search
from .offer import Chosen, Offer, offered, rows_to_price
from .readable import readable
from .reading import asking

if TYPE_CHECKING:
    from ..artifact import Tuned
    from ..job import Job, Setting


@torch.no_grad()
def scored(learn: Cloze, net: Network, batches: Iterator[Batch]) -> dict[int, Tensor]:
    """(C,) scores by example, as each batch's `group` counts them."""
    found: dict[int, Tensor] = {}
    for batch in batches:
        scores = learn.scores(learn.read(net, batch), batch).float()
        marks = batch.numbers("group")
        found |= {marks[group.start]: row for group, row in zip(batch.groups(), scores, strict=True)}
    return found


@torch.no_grad()
def prior(learn: Cloze, net: Network, reader: Reader, task: Task, examples: Sequence[Classified]) -> tuple[Tensor, int]:
    """(E, C): log of the mean share that each label gets for the texts without content, in the prompt of each example (Zhao et al. 2021, section 5; of random texts Fei
    et al. 2023, eq. 3); and the rows that were read for it. Examples with the same demonstrations have it in common.
    """
    assert reader.wording is not None
    near = [tuple(shots) for shots in reader.near(examples)] if reader.near else [reader.wording.shots] * len(examples)
    keys, blanks = list(dict.fromkeys(near)), reader.wording.blanks
    paired = examples[0].pair is not None
    empty = [Classified(text, text if paired else None, (), i) for i, text in enumerate(blanks * len(keys))]
    apart = replace(reader, near=lambda _: [key for key in keys for _ in blanks])
    table = Table(apart.encode(empty, task).columns, task.key, device=net.device)  # type: ignore[attr-defined]
    found = scored(learn, net, table.once())
    shares = torch.stack([found[i] for i in range(len(empty))]).softmax(-1).view(len(keys), len(blanks), -1).mean(1)
    place = {key: i for i, key in enumerate(keys)}
    return shares.log()[[place[shots] for shots in near]], len(table)


def under(reader: Reader, task: Task, examples: Sequence[Any], learn: Cloze, net: Network) -> tuple[Table, int]:
    """Rows in the words of the reader, calibrated if these have blanks; and how many were read to calibrate them."""
    columns, passes = reader.encode(examples, task).columns, 0
    device: Any = net.device
    if reader.wording and reader.wording.blanks:
        less, passes = prior(learn, net, reader, task, examples)
        group = columns["group"]
        assert isinstance(group, Tensor)
        columns = {**columns, "prior": less.to(group.device)[group]}
    return Table(columns, task.key, device=device), passes


@dataclass
class Asker:
    """`examples` asked in the words of a choice. The network does not change, so what was made for a choice is kept until the next."""

    offer: Offer
    reader: Reader
    task: Task
    examples: Sequence[Any]
    learn: Cloze
    last: list[tuple[Wording, Table]] = field(default_factory=list)

    def once(self, net: Network, chosen: Chosen) -> Iterator[Batch]:
        wording, passes = self.offer.wording(chosen), 0
        if not self.last or self.last[0][0] != wording:
            table, passes = under(asking(self.reader, wording, net.device), self.task, self.examples, self.learn, net)  # type: ignore[attr-defined]
            self.last[:] = [(wording, table)]
        for i, batch in enumerate(self.last[0][1].once()):
            yield replace(batch, said={"passes": passes}) if not i else batch


# ------------------------------------------------------------------------------------------------ in a run


def offer_of(setting: Setting) -> Offer:
    return offered(setting.recipe, setting.data.task, setting.data.train.examples, setting.data.reader.masked)


def choice_of(setting: Setting) -> Choice:
    (insert,) = setting.delta.inserts
    assert isinstance(insert, Choice)
    return insert


def begin(setting: Setting) -> None:
    """The prompt as it is written."""
    insert = choice_of(setting)
    insert.choice.copy_(torch.tensor(offer_of(setting).first))


def searching(setting: Setting) -> Search:
    """The update of a designed prompt."""
    begin(setting)
    offer, method, data = offer_of(setting), setting.recipe.built_method(), setting.data
    assert isinstance(method, HardPrompt)
    search = method.search or SearchOptions(passes=1)
    priced = rows_to_price(data.train.examples, search.rows, setting.recipe.seed)  # type: ignore[arg-type]
    asker = Asker(offer, data.reader, data.task, priced, setting.objective)  # type: ignore[arg-type]
    return Search(choice_of(setting).choice, offer.propose, asker.once, search.passes)


def designed(part: Part, source: Any, setting: Setting) -> Callable[[Network], Iterator[Batch]]:
    """A part under the prompt that is chosen when it is asked."""
    asker, insert = Asker(offer_of(setting), setting.data.reader, part.task, part.examples, setting.objective), choice_of(setting)  # type: ignore[arg-type]
    return lambda net: asker.once(net, tuple(insert.choice.tolist()))


WAYS: dict[str, Callable[[Part, Any, Setting], Callable[[Network], Iterator[Batch]]]] = {"hard_prompt": designed}


def judge(part: Part, source: Any, setting: Setting) -> Probe:
    """A part that is answered in words: through the scores that were learnt from."""
    once = WAYS.get(setting.recipe.method["kind"], lambda part, source, setting: source.once)(part, source, setting)
    return probe(part, once, setting.objective)  # type: ignore[arg-type]


def judged(tuned: Tuned, part: Part) -> Probe:
    """A part that a finished run is asked about."""
    assert isinstance(tuned.learn, Cloze)
    table, _ = under(tuned.reader, part.task, part.examples, tuned.learn, tuned.net)
    return probe(part, lambda net: table.once(), tuned.learn)


def answers(tuned: Tuned, texts: Sequence[Classified]) -> list[dict[str, Any]]:
    """The label and its share among the labels, a text."""
    assert isinstance(tuned.learn, Cloze)
    found = scored(tuned.learn, tuned.net, under(tuned.reader, tuned.task, texts, tuned.learn, tuned.net)[0].once())
    shares = [found[i].softmax(-1) for i in range(len(texts))]
    return [{"label": tuned.task.labels[int(p.argmax())], "probability": round(float(p.max()), 4)} for p in shares]


def final(job: Job) -> Reader:
    """The reader that asks in the words that were chosen; of what was trained, the one that it had."""
    method, data = job.method, job.data
    if method.learns:
        return data.reader
    offer = offered(job.recipe, data.task, data.train.examples, data.reader.masked)
    return asking(data.reader, offer.wording(tuple(job.delta.inserts[0].choice.tolist())), job.net.device)  # type: ignore[union-attr,operator,arg-type]


def written(job: Job) -> dict[str, bytes]:
    """A designed prompt as files, beside its artifact."""
    if job.method.learns:
        return {}
    reader, learn = final(job), job.run.objective
    assert reader.wording is not None
    assert isinstance(learn, Cloze)
    fixed = reader.wording.blanks and not reader.near
    less = prior(learn, job.net, reader, job.data.task, job.data.train.examples[:1])[0][0].tolist() if fixed else []  # type: ignore[arg-type]
    return readable(reader.wording, dict(zip(job.data.task.labels, less, strict=False)), dict(job.run.log[-1]) if job.run.log else {})


def probe(part: Part, once: Callable[[Network], Iterator[Batch]], learn: Cloze) -> Probe:
    references = [e.labels[0] for e in part.examples]  # type: ignore[union-attr]
    return Probe(part.name, once, "measured", part.task.labels, references, measure=partial(measured, learn, once, part.task.labels, references))


def measured(learn: Cloze, once: Callable[[Network], Iterator[Batch]], labels: Sequence[str], references: list[Any], net: Network) -> Outcome:
    found = scored(learn, net, once(net))
    scores = torch.stack([found[i] for i in range(len(references))])
    names = [labels[i] for i in scores.argmax(-1).tolist()]
    truth = torch.tensor([labels.index(r) for r in references], device=scores.device)
    return classified(names, references, float(torch.nn.functional.cross_entropy(scores, truth)))
