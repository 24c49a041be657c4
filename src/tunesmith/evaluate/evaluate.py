"""A network over an evaluation set: predictions in the task's own words, and their scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..core import Batch, Network
from ..parallel import told
from .embedding import EMBEDDING
from .metrics import METRICS, spans
from .outcome import Outcome
from .preference import judged, preferred, reward


@dataclass(frozen=True)
class Probe:
    """An evaluation set that can be asked again and again.

    once        yields its batches, given the network (and may start above a cached trunk)
    kind        what its rows are (see Task)
    references  in the task's words, one a row
    write       for generate: texts for the first rows, or None
    measure     for measured: the whole of it
    """

    name: str
    once: Callable[[Network], Iterator[Batch]]
    kind: str
    labels: tuple[str, ...]
    references: list[Any]
    write: Callable[[Network], list[str]] | None = None
    measure: Callable[[Network], Outcome] | None = None

    @torch.no_grad()
    def ask(self, net: Network) -> Outcome:
        was = net.training
        net.eval()
        outcome = told(lambda: KINDS[self.kind](self, net))
        net.train(was)
        return outcome


def each(probe: Probe, net: Network) -> Iterator[tuple[Batch, torch.Tensor]]:
    for batch in probe.once(net):
        yield batch, net.logits(batch).float()


def single(probe: Probe, net: Network) -> Outcome:
    guesses, loss = {}, 0.0
    for batch, logits in each(probe, net):
        loss += float(torch.nn.functional.cross_entropy(logits, batch["label"], reduction="sum"))
        guesses |= zip(batch["row"].tolist(), logits.argmax(-1).tolist(), strict=True)
    return classified([probe.labels[guesses[i]] for i in range(len(guesses))], probe.references, loss / len(guesses))


def classified(names: list[Any], references: list[Any], loss: float) -> Outcome:
    """One label a row, and its share of the accuracy."""
    shares = [(float(guess == truth), 1.0) for guess, truth in zip(names, references, strict=True)]
    return Outcome(METRICS["classify"](names, references), names, loss, shares)


def multi(probe: Probe, net: Network) -> Outcome:
    guesses, loss = {}, 0.0
    for batch, logits in each(probe, net):
        loss += float(torch.nn.functional.binary_cross_entropy_with_logits(logits, batch["label"], reduction="sum")) / len(probe.labels)
        guesses |= zip(batch["row"].tolist(), (logits > 0).tolist(), strict=True)
    table = [[int(yes) for yes in guesses[i]] for i in range(len(guesses))]
    truth = [[int(name in row) for name in probe.labels] for row in probe.references]
    named = [tuple(n for n, yes in zip(probe.labels, row, strict=True) if yes) for row in table]
    shares = [overlap(set(guess), set(true)) for guess, true in zip(named, probe.references, strict=True)]
    return Outcome(METRICS["multilabel"](table, truth), named, loss / len(table), shares)


def score(probe: Probe, net: Network) -> Outcome:
    guesses: dict[int, float] = {}
    for batch, logits in each(probe, net):
        guesses |= zip(batch["row"].tolist(), logits[:, 0].tolist(), strict=True)
    values = [guesses[i] for i in range(len(guesses))]
    loss = sum((a - b) ** 2 for a, b in zip(values, probe.references, strict=True)) / len(values)
    return Outcome(METRICS["score"](values, probe.references), values, loss)


def tag(probe: Probe, net: Network) -> Outcome:
    """Words that got no token (cut off, or nothing the tokenizer keeps) are predicted O."""
    guesses: dict[int, list[str]] = {}
    loss, units = 0.0, 0
    for batch, logits in each(probe, net):
        loss += float(torch.nn.functional.cross_entropy(logits, batch["label"], reduction="sum"))
        units += len(logits)
        parts = logits.argmax(-1).split(list(batch.ragged("at").lengths))
        for row, found, words in zip(batch["row"].tolist(), parts, batch.ragged("word").rows(), strict=True):
            tags = ["O"] * len(probe.references[row])
            for word, label in zip(words.tolist(), found.tolist(), strict=True):
                tags[word] = probe.labels[label]
            guesses[row] = tags
    rows = [guesses[i] for i in range(len(guesses))]
    scores = METRICS["tag"](rows, probe.references)
    pairs = list(zip(rows, probe.references, strict=True))
    if scores.main == "f1":
        shares = [overlap(set(spans(guess)), set(spans(truth))) for guess, truth in pairs]
    else:
        shares = [(float(sum(g == t for g, t in zip(guess, truth, strict=True))), float(len(truth))) for guess, truth in pairs]
    return Outcome(scores, rows, loss / units, shares)


def overlap(guess: set[Any], truth: set[Any]) -> tuple[float, float]:
    """A row's shares of a micro-averaged F1, 2 hits / (guessed + true)."""
    return 2.0 * len(guess & truth), float(len(guess) + len(truth))


def generate(probe: Probe, net: Network) -> Outcome:
    shares: dict[int, tuple[float, float]] = {}
    for batch in probe.once(net):
        by_row = net.label_logp(batch).split(list(batch.ragged("label").lengths))
        shares |= {row: (-float(logp.double().sum()), float(len(logp))) for row, logp in zip(batch["row"].tolist(), by_row, strict=True)}
    total, units = (sum(part) for part in zip(*shares.values(), strict=True))
    written = probe.write(net) if probe.write else []
    scores = METRICS["generate"](written, probe.references[: len(written)], total, int(units))
    return Outcome(scores, written, total / units, [shares[i] for i in range(len(shares))])


def measured(probe: Probe, net: Network) -> Outcome:
    assert probe.measure
    return probe.measure(net)


KINDS: dict[str, Callable[[Probe, Network], Outcome]] = {
    "single": single,
    "multi": multi,
    "score": score,
    "tag": tag,
    "generate": generate,
    "preferred": preferred,
    "judged": judged,
    "reward": reward,
    "measured": measured,
    **EMBEDDING,
}
