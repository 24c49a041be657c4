"""Several tasks in one recipe, at once and one after the other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import shop
from tunesmith import ask
from tunesmith.artifact import load
from tunesmith.comparison.compare import compare
from tunesmith.comparison.statistics import draws_of, mean_of, ratio
from tunesmith.core import Batch, Ragged
from tunesmith.curriculum import read_all
from tunesmith.errors import Refusal
from tunesmith.evaluate.several import remembered
from tunesmith.job import assemble
from tunesmith.listeners import Opening
from tunesmith.progress import Reporter
from tunesmith.recipe import recipe
from tunesmith.shared import Shared
from tunesmith.sources.mix import probabilities, shares
from tunesmith.train import run

QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    shop.encoder(folder / "model")
    shop.decoder(folder / "writer")
    for shape in ("classify", "tag", "score", "generate"):
        shop.rows(folder / f"{shape}.jsonl", shape)
    rows = [{"text": f"{t} w{i % 5}", "label": "abcd"[i % 4], "domain": "xy"[i % 4 // 2]} for i, (t, _) in enumerate(shop.texts(48))]
    (folder / "staged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def task(work: Path, shape: str, **more: object) -> dict[str, Any]:
    file = str(work / f"{shape}.jsonl")
    return {"task": shape, "data": {"train": file, "eval": file}, **more}


def several(work: Path, tmp_path: Path, *shapes: str, options: dict[str, Any] | None = None, **more: object) -> dict[str, Any]:
    base = shop.recipe(work, "classify", "lora", out=str(tmp_path / "run"))
    return {**{k: v for k, v in base.items() if k not in ("task", "data")}, "tasks": {f"t_{s}": task(work, s, **(options or {})) for s in shapes}, **more}


def staged(work: Path, tmp_path: Path, by: str = "domain", **more: object) -> dict[str, Any]:
    file = str(work / "staged.jsonl")
    base = shop.recipe(work, "classify", "lora", out=str(tmp_path / "run"), data={"train": file, "eval": file})
    return {**base, "stream": {"kind": "sequence", "by": by}, "evaluate": {}, "budget": {"steps": 4}, **more}


@pytest.mark.parametrize("batches", ["mixed", "one_task"])
def test_tasks_train_together_and_are_judged_apart(work: Path, tmp_path: Path, batches: str) -> None:
    made = several(work, tmp_path, "classify", "tag", "score", stream={"kind": "mix", "batches": batches})
    record = run(recipe(made), QUIET).record
    assert record["stream"] == "mix" and record["task"] == "several" and record["train_rows"] == 120
    assert {"t_classify.accuracy", "t_tag.f1", "t_score.spearman"} <= set(record["after"])
    assert record["metric"] == "mean"
    lines = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 120 and {line["task"] for line in lines} == {"t_classify", "t_tag", "t_score"}
    tuned = load(tmp_path / "run")
    assert set(tuned.net.heads) == {"t_classify", "t_tag", "t_score"}
    assert "label" in tuned.of("t_classify").predict(["w1 w2"])[0]
    assert "entities" in tuned.of("t_tag").predict(["w1 w2"])[0]
    with pytest.raises(Refusal, match="no task `other`"):
        tuned.of("other")
    with pytest.raises(Refusal, match="several tasks"):
        ask.evaluate(tmp_path / "run", str(work / "tag.jsonl"))
    scores = ask.evaluate(tmp_path / "run", str(work / "tag.jsonl"), "t_tag")["scores"]
    assert scores["f1"] == pytest.approx(record["after"]["t_tag.f1"])
    assert ask.kind_of_run(tmp_path / "run", "t_score") == "score"


def test_a_writer_also_classifies(work: Path, tmp_path: Path) -> None:
    made = several(work, tmp_path, "generate", "classify", model=str(work / "writer"))
    record = run(recipe(made), QUIET).record
    assert {"t_generate.perplexity", "t_classify.accuracy", "mean"} <= set(record["after"])
    assert record["after"]["mean"] == pytest.approx(record["after"]["t_classify.accuracy"])


def test_it_continues_as_if_never_stopped(work: Path, tmp_path: Path) -> None:
    for batches in ("mixed", "one_task"):
        job = assembled(several(work, tmp_path, "classify", "tag", stream={"kind": "mix", "batches": batches}))
        stage = job.run.stream[0]
        whole = stage.train.batches(job.net)
        first = [next(whole) for _ in range(6 * stage.accumulate)]
        later = stage.train.batches(job.net, 4 * stage.accumulate)
        for batch in first[4 * stage.accumulate :]:
            other = next(later)
            assert batch.task == other.task and batch["row"].tolist() == other["row"].tolist()


def assembled(made: dict[str, Any]) -> Any:
    r, shared = recipe(made), Shared()
    data = read_all(r)
    return assemble(r, data, shared.dressed(r, data), QUIET, shared)


def test_the_loss_of_a_mix_is_each_task_s_own_mean(work: Path, tmp_path: Path) -> None:
    """`task`: as if each were alone; `global`: the units of all divide each."""
    still: dict[str, Any] = {"dropout": 0.0, "options": {"head": {"dropout": 0.0}}}
    found = {}
    for mean in ("task", "global"):
        job = assembled(several(work, tmp_path, "classify", "tag", stream={"kind": "mix", "mean": mean}, **still))
        batches = job.run.stream[0].train.batches(job.net)
        micro = [next(batches) for _ in range(job.run.stream[0].accumulate)]
        job.run.update.prepare(job.run)
        found[mean] = micro, job.run.update.step(job.run, micro)
    micro, record = found["task"]
    job = assembled(several(work, tmp_path, "classify", "tag", **still))
    units = {b.task: len(b["label"]) for b in micro}
    for batch in micro:
        alone = float(job.run.objective.of(batch.task)(job.net, batch)[batch.task].detach()) / units[batch.task]
        assert record[batch.task] == pytest.approx(alone, rel=1e-4)
        assert found["global"][1][batch.task] == pytest.approx(alone * units[batch.task] / sum(units.values()), rel=1e-4)


def test_shares_and_probabilities() -> None:
    assert probabilities([100, 300], 1.0, None) == pytest.approx((0.25, 0.75))
    assert probabilities([100, 10000], 2.0, None)[1] == pytest.approx(10 / 11)
    assert probabilities([100, 10000], 1.0, 100) == pytest.approx((0.5, 0.5))
    assert shares(32, (0.25, 0.75)) == [8, 24] and sum(shares(32, (0.333, 0.333, 0.334))) == 32
    assert shares(4, (0.001, 0.999)) == [1, 3] or shares(4, (0.001, 0.999)) == [1, 4]


def test_joined_batches_keep_their_rows_apart() -> None:
    a = Batch({"ids": Ragged(torch.tensor([1, 2, 3]), (2, 1)), "group": torch.tensor([0, 0])})
    b = Batch({"ids": Ragged(torch.tensor([4, 5]), (1, 1)), "group": torch.tensor([0, 1]), "more": torch.ones(2)})
    one = Batch.joined([a, b])
    assert one["ids"].tolist() == [1, 2, 3, 4, 5] and one.ragged("ids").lengths == (2, 1, 1, 1)
    assert [list(g) for g in one.groups()] == [[0, 1], [2], [3]] and "more" not in one


def test_a_comparison_trains_each_alone_too(work: Path, tmp_path: Path) -> None:
    """What company gives or takes is said task by task, and a mix of one task's rows alone is that task's run."""
    made = recipe(several(work, tmp_path, "classify", "tag", budget={"epochs": 1}))
    found = compare(made, ["bitfit"], seeds=2, reporter=QUIET)
    assert [row["label"] for row in found.table if not row["baseline"]] and {row["label"] for row in found.table} == {"bitfit", "bitfit, each alone"}
    of = {row["label"]: row for row in found.table}
    for task in ("t_classify", "t_tag"):
        gap = of["bitfit"]["tasks"][task] - of["bitfit, each alone"]["tasks"][task]
        assert found.record["transfer"]["bitfit"][task] == pytest.approx(gap)
    for row in found.table:
        assert row["mean"] == pytest.approx(sum(row["tasks"].values()) / 2)
    alone = run(
        replace(
            made.each()["t_tag"],
            stream={"kind": "single"},
            update=replace(made.update, batch=4),
            out=str(tmp_path / "tag"),
            seed=made.seed,
            method={"kind": "bitfit"},
            evaluate=replace(made.evaluate, best=False),
        ),
        QUIET,
    )
    beside = next(r for r in found.results if r["label"] == "bitfit, each alone" and r["seed"] == made.seed)
    assert beside["after"]["t_tag.f1"] == pytest.approx(alone["after"]["f1"])
    page = found.report.read_text()
    assert "Task by task" in page and "t_classify" in page


def test_the_mean_over_tasks_on_drawn_rows() -> None:
    """Tasks are drawn apart, and all rows once give the means themselves."""
    judged = mean_of([(2, ratio([(1.0, 1.0), (0.0, 1.0)])), (3, ratio([(1.0, 1.0)] * 3))])
    assert judged(np.arange(5)[None])[0] == pytest.approx(0.75)
    assert set(np.round(judged(draws_of(5)), 2)) == {0.5, 0.75, 1.0}


# ------------------------------------------------------------------------------------------------ one after the other


def test_a_sequence_is_compared_with_what_needs_no_training(work: Path, tmp_path: Path) -> None:
    found = compare(recipe(staged(work, tmp_path)), ["head"], seeds=1, vary=["strategy=naive,joint"], reporter=QUIET)
    labels = {row["label"] for row in found.table}
    assert {"head strategy=naive", "head strategy=joint", "linear probe", "nearest centroid", "majority"} == labels
    naive = next(row for row in found.table if row["label"] == "head strategy=naive")
    assert naive["mean"] == pytest.approx(naive["remembered"]["acc"]) and len(naive["matrix"]) == 2
    assert "What is remembered" in found.report.read_text()


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_a_sequence_asks_all_tasks_after_each(work: Path, tmp_path: Path, scenario: str) -> None:
    record = run(recipe(staged(work, tmp_path, stream={"kind": "sequence", "by": "domain", "scenario": scenario})), QUIET).record
    told = record["sequence"]
    assert told["tasks"] == ["x", "y"] and len(told["matrix"]) == 2 and record["steps"] == 8
    assert (told["matrix"][0][1] is None) == (scenario == "class")
    assert told["acc"] == pytest.approx(record["after"]["accuracy"])
    assert load(tmp_path / "run").task.labels == (("a", "b", "c", "d") if scenario == "class" else ("a", "b"))


def test_the_matrix_has_each_task_by_its_own_metric(work: Path, tmp_path: Path) -> None:
    """Accuracy of the first task, F1 of the second, though no one metric is main."""
    made = several(work, tmp_path, "classify", "tag", stream="sequence", budget={"steps": 2}, evaluate={})
    record = run(recipe(made), QUIET).record
    last = record["sequence"]["matrix"][-1]
    assert record["metric"] == "mean" and last == [record["after"]["t_classify.accuracy"], record["after"]["t_tag.f1"]]
    assert record["sequence"]["acc"] == pytest.approx(sum(last) / 2)


def test_a_head_gives_no_label_that_has_not_come(work: Path, tmp_path: Path) -> None:
    job = assembled(staged(work, tmp_path, by="label", stream={"kind": "sequence", "by": "label", "into": 2}))
    opening = next(x for x in job.listeners if isinstance(x, Opening))
    batch = next(job.run.stream[0].train.batches(job.net))
    opening.begin(job.run, job.run.stream[0])
    assert job.net.logits(batch).shape[1] == 2
    assert job.probe.ask(job.net).scores.reasons, "the second part cannot be asked yet"
    opening.begin(job.run, job.run.stream[1])
    assert job.net.logits(batch).shape[1] == 4


def test_the_joint_run_has_the_steps_of_all_stages(work: Path, tmp_path: Path) -> None:
    record = run(recipe(staged(work, tmp_path, strategy="joint")), QUIET).record
    assert record["steps"] == 8 and "acc" not in record["sequence"] and record["strategy"] == "joint"


def test_a_sequence_killed_anywhere_ends_the_same(work: Path, tmp_path: Path) -> None:
    """Stopped after each step in turn, also at the border between two stages."""
    whole = run(recipe(staged(work, tmp_path / "whole")), QUIET)
    made = recipe(staged(work, tmp_path / "parts"))
    for _ in range(20):
        try:
            found = run(made, QUIET, company=halting())
            break
        except KeyboardInterrupt:
            continue
    assert found.record["sequence"] == whole.record["sequence"]
    one, two = (load(r.folder).delta.state_dict() for r in (whole, found))
    assert all(torch.equal(one[n], two[n]) for n in one)


def halting() -> Any:
    """A company whose listener stops the run after one more step."""
    from tunesmith.core import Listener
    from tunesmith.train import Company

    class Stop(Listener):
        seen = 0

        def step(self, run: Any, record: Any) -> None:
            self.seen += 1
            if self.seen == 2:
                raise KeyboardInterrupt

    return Company(listeners=[Stop()])


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_tasks_are_added_to_a_sequence_that_was_over(work: Path, tmp_path: Path, scenario: str) -> None:
    """Two parts, and later a third with labels of its own: the old head rows are kept and go on; rows that changed are refused."""
    rows = (work / "staged.jsonl").read_text()
    file, later = tmp_path / "rows.jsonl", [{"text": f"w{i} w40", "label": "ef"[i % 2], "domain": "z"} for i in range(16)]
    stream = {"kind": "sequence", "by": "domain", "scenario": scenario}
    made = staged(work, tmp_path, stream=stream, data={"train": str(file), "eval": str(file)})
    file.write_text(rows)
    first = run(recipe(made), QUIET, company=watching([]))
    kept = load(first.folder).delta.state_dict()
    file.write_text(rows + "".join(json.dumps(row) + "\n" for row in later))
    seen: list[dict[str, torch.Tensor]] = []
    record = run(recipe(made), QUIET, company=watching(seen)).record
    assert record["steps"] == 12 and record["sequence"]["tasks"] == ["x", "y", "z"]
    assert record["sequence"]["matrix"][:1] == [[*first.record["sequence"]["matrix"][0], None]]
    assert all(torch.equal(seen[0][n][tuple(slice(s) for s in t.shape)], t) for n, t in kept.items()), "it went on from where it had ended"
    labels = load(tmp_path / "run").of("z").task.labels if scenario == "task" else load(tmp_path / "run").task.labels
    assert labels[-2:] == ("e", "f")
    file.write_text(rows.replace("w1", "w2"))
    with pytest.raises(Refusal, match="another stages"):
        run(recipe(made), QUIET, company=watching([]))


def watching(seen: list[dict[str, torch.Tensor]]) -> Any:
    """A company whose listener writes down the delta with which a stage begins."""
    from tunesmith.core import Listener
    from tunesmith.train import Company

    class Watch(Listener):
        def begin(self, run: Any, stage: Any) -> None:
            seen.append({n: t.clone() for n, t in run.delta.state_dict().items()})

    return Company(listeners=[Watch()])


def test_what_is_remembered() -> None:
    """By hand, on a matrix of three tasks."""
    matrix = [[0.9, 0.1, 0.2], [0.7, 0.8, 0.3], [0.5, 0.6, 0.9]]
    found = remembered(matrix, [0.1, 0.1, 0.1])
    assert found["acc"] == pytest.approx(2.0 / 3)
    assert found["bwt"] == pytest.approx((-0.4 - 0.2) / 2)
    assert found["forgetting"] == pytest.approx((0.4 + 0.2) / 2)
    assert found["fwt"] == pytest.approx((0.0 + 0.2) / 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stream": "mix"}, "one task"),
        ({"stream": {"kind": "sequence", "by": "dmoain"}}, "did you mean `domain`"),
        ({"stream": {"kind": "sequence", "by": "domain", "scenario": "domain"}}, "labels of their own"),
        ({"stream": {"kind": "sequence", "by": "domain", "into": 3}}, "2 values in 3 parts"),
        ({"stream": {"kind": "sequence"}}, "one task"),
        ({"strategy": "joint", "stream": "single"}, "nothing is forgotten"),
        ({"budget": {"minutes": 1}}, "a stage has steps"),
        ({"evaluate": {"patience": 2}}, "choosing on the rows"),
    ],
)
def test_senseless_sequences_are_refused(work: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(Refusal) as refused:
        read_all(recipe(staged(work, tmp_path, **change)))
    assert said in str(refused.value)
