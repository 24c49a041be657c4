"""A teacher that is asked once against one that is asked at every step: the same student, rows, order and losses, in one process, turn about.

    python benchmarks/teacher.py [--turns 2] [--epochs 3] [--rows 192]

Prints the ratio of processor seconds of one thread, which others disturb little, for both: loading the teacher, asking it, and all epochs. The student is MiniLM with two of its six blocks; the teachers are MiniLM
whole (small for a teacher: 3 times the student's blocks) and a BERT of base size with random weights (19 times their products), which takes as long as a
trained one. The ratio would be the number of epochs if the student cost nothing; asked once, rows of like length come together, so less is padded too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from tunesmith.core import Batch, Network
from tunesmith.dataset import read_data
from tunesmith.engine import fit
from tunesmith.job import assemble
from tunesmith.networks.load import load_tokenizer, origin
from tunesmith.progress import Reporter
from tunesmith.recipe import recipe
from tunesmith.shared import Shared
from tunesmith.sources.answers import Answers
from tunesmith.teaching.ask import Question, answers
from tunesmith.teaching.teacher import Teacher, named
from tunesmith.train import run

QUIET = Reporter(quiet=True)


@dataclass
class Online:
    """What a trainer does that keeps its teacher beside the student."""

    source: Any
    question: Question
    teacher: Teacher

    @property
    def gives(self) -> frozenset[str]:
        return self.source.gives | {"teacher"}

    def batches(self, net: Network, start: int = 0) -> Iterator[Batch]:
        for batch in self.source.batches(net, start):
            with torch.no_grad():
                said = answers(self.question.learn, self.teacher, batch, self.question.order, 0)
            yield batch.plus(**said)


def seconds(made: dict[str, Any], online: bool) -> tuple[float, list[float]]:
    with tempfile.TemporaryDirectory() as out:
        made = recipe({**made, "out": out})
        data = read_data(made)
        job = assemble(made, data, Shared().dressed(made, data), QUIET)
        stage = job.run.stream[0]
        assert isinstance(stage.train, Answers)
        job.run.update.prepare(job.run)  # type: ignore[attr-defined]
        began = time.process_time()
        if online:
            question = Question(made, data, job.run.objective, named(made, data, made.objective["teacher"]))  # type: ignore[arg-type]
            source = Online(stage.train.source, question, question.who.load(job.net.device))
            job.run.stream = [type(stage)(stage.name, source, stage.steps, stage.period)]
        fit(job.run)
        return time.process_time() - began, [r["loss"] for r in job.run.log]


def teachers(folder: Path, base: dict[str, Any]) -> dict[str, str]:
    run(recipe({**base, "model": "minilm", "objective": "supervised", "method": "head", "budget": {"steps": 1}, "out": str(folder / "minilm")}), QUIET)
    labels = read_data(recipe({**base, "objective": "supervised"})).task.labels
    names = dict(enumerate(labels))
    config = hf.BertConfig(vocab_size=30522, num_labels=len(labels), id2label=names, label2id={v: k for k, v in names.items()})
    hf.BertForSequenceClassification(config).save_pretrained(folder / "base")
    load_tokenizer(origin("minilm")).save_pretrained(folder / "base")
    return {"MiniLM": str(folder / "minilm"), "BERT of base size": str(folder / "base")}


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("turns", 2), ("epochs", 3), ("rows", 192)):
        args.add_argument(f"--{name}", type=int, default=value)
    given = args.parse_args()
    torch.set_num_threads(1)
    base = {
        "model": {"name": "minilm", "blocks": [0, 3]}, "task": "classify", "data": {"train": "desk", "limit": given.rows}, "method": "full", "dropout": 0.0,
        "budget": {"epochs": given.epochs}, "dtype": "fp32", "kernel": "matmul",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for name, teacher in teachers(Path(folder), base).items():
            made = {**base, "objective": {"kind": "distil", "teacher": teacher, "alpha": 0.9}}
            took: dict[bool, list[float]] = {False: [], True: []}
            losses: dict[bool, list[float]] = {}
            for _ in range(given.turns):
                for online in took:
                    spent, losses[online] = seconds(made, online)
                    took[online].append(spent)
            gap = max(abs(a - b) for a, b in zip(losses[False], losses[True], strict=True))
            once, each = min(took[False]), min(took[True])
            print(
                f"{name}: asked once {once:.1f} s, at every step {each:.1f} s, {each / once:.2f} times as fast; losses differ by {gap:.1e} at most", flush=True
            )


if __name__ == "__main__":
    main()
