"""SetFit: pairs that are never listed, each text read once a step, a head that is fitted; and the wrong versions that the field ships."""

from __future__ import annotations

import json
import math
import random
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

import shop
from test_resume import same, train_with_stops
from tiny import network, rows
from tunesmith.advice.rehearsal import Live, rehearse
from tunesmith.artifact import export, load
from tunesmith.comparison.arms import EIGHT
from tunesmith.comparison.compare import compare
from tunesmith.core import Batch, Ragged
from tunesmith.dataset import read_data
from tunesmith.errors import Refusal
from tunesmith.fitted_head import PENALTY, embeddings, regression
from tunesmith.job import agreed
from tunesmith.objectives import SetFit
from tunesmith.progress import Reporter
from tunesmith.recipe import recipe
from tunesmith.sources.table import Table
from tunesmith.train import run

QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("setfit")
    shop.encoder(folder / "model")
    shop.rows(folder / "held.jsonl", "classify", 40, seed=5)
    return folder


def setfit(work: Path, out: Path, method: str | dict = "full", **more):
    objective = {"kind": "setfit", **more.pop("options", {})}
    first = shop.recipe(work, "classify", method, **{"objective": objective, "stream": {"kind": "few", "k": 4}, "out": str(out), **more})
    return recipe({**first, "data": {**first["data"], "eval": str(work / "held.jsonl")}})


def batch(labels: list[int], repeat: dict[int, int] | None = None) -> Batch:
    """Rows of three tokens; row i of `repeat` has the text of the row that it names."""
    ids = [[10 + (repeat or {}).get(i, i), 7, 8] for i in range(len(labels))]
    return Batch({"ids": Ragged(torch.tensor(ids).flatten(), (3,) * len(ids)), "label": torch.tensor(labels)})


# ------------------------------------------------------------------------------------------------ pairs


def brute(z: Tensor, labels: list[int], texts: list[int]) -> Tensor:
    """Pairs of different texts, listed; those of one label and the others with half the weight each."""
    z, first = F.normalize(z, dim=-1), [texts.index(t) for t in dict.fromkeys(texts)]
    parts: dict[bool, list[Tensor]] = {True: [], False: []}
    for n, i in enumerate(first):
        for j in first[:n]:
            same = labels[i] == labels[j]
            parts[same].append((z[i] @ z[j] - float(same)) ** 2)
    return torch.stack([torch.stack(found).mean() for found in parts.values() if found]).sum() / 2


@pytest.mark.parametrize("repeat", [{}, {3: 0, 5: 4}])
def test_all_pairs_of_different_texts_half_of_one_label(repeat):
    labels = [0, 0, 1, 0, 2, 2, 1, 3]
    z = torch.randn(8, 5, dtype=torch.float64)
    for i, j in repeat.items():
        z[i] = z[j]
    found = SetFit("single").score({"z": z}, batch(labels, repeat))["task"]
    torch.testing.assert_close(found, brute(z, labels, [repeat.get(i, i) for i in range(8)]))


def test_it_is_what_drawn_pairs_have_as_expectation():
    """sentence-transformers' loss of pairs, as SetFit has it, over pairs of which half are of one label."""
    labels, z = [0, 0, 0, 1, 1, 2, 2, 2], F.normalize(torch.randn(8, 5, dtype=torch.float64), dim=-1)
    pairs = [(i, j) for i in range(8) for j in range(i)]
    dice, drawn = random.Random(0), []
    for alike in (True, False):
        drawn += dice.choices([(i, j) for i, j in pairs if (labels[i] == labels[j]) == alike], k=40_000)
    a, b = zip(*drawn, strict=True)
    target = torch.tensor([float(labels[i] == labels[j]) for i, j in drawn], dtype=torch.float64)
    expected = F.mse_loss((z[list(a)] * z[list(b)]).sum(-1), target)
    assert float(SetFit("single").score({"z": z}, batch(labels))["task"]) == pytest.approx(float(expected), rel=0.02)


def test_no_text_is_compared_with_itself():
    """setfit lists (a, a) as a pair of one label: at eight rows a class 22 % of them, whose cosine is 1 and teaches nothing."""
    labels = [0, 1, 0]
    z = F.normalize(torch.randn(3, 4), dim=-1)
    z[2] = z[0]
    alone = SetFit("single").score({"z": z}, batch(labels, {2: 0}))["task"]  # the label 0 has one text, twice
    torch.testing.assert_close(alone, (z[0] @ z[1]) ** 2 / 2)


@pytest.mark.parametrize("loss", ["pairwise", "supcon", "triplet"])
def test_a_batch_without_a_pair_of_one_label_is_a_number(loss):
    """setfit's SupConLoss divides by the number of right answers, which may be none: NaN."""
    z = torch.randn(3, 4, requires_grad=True)
    learn = SetFit("single", loss)
    found = learn.score({"z": z}, batch([0, 1, 2]))["task"] / max(1, learn.count(batch([0, 1, 2]))["task"])
    found.backward()
    assert math.isfinite(float(found.detach())) and z.grad is not None and bool(z.grad.isfinite().all())
    one = learn.score({"z": z}, batch([1, 1, 1]))["task"]  # and none of another label
    assert math.isfinite(float(one.detach()))


def test_a_text_is_read_once_a_step():
    net = network("bert")
    read = []
    inner = net.pooled
    net.pooled = lambda b: read.append(len(b)) or inner(b)
    found = SetFit("single").read(net, batch([0, 1, 0, 1], {3: 1}))["z"]
    assert read == [3] and len(found) == 4 and torch.equal(found[3], found[1])


def test_the_loss_is_chosen_by_the_number_of_labels():
    for labels, loss in ((20, "pairwise"), (21, "supcon")):
        learn = SetFit("single")
        learn.accept(batch([k for k in range(labels) for _ in range(2)]).columns, 32)
        assert learn.contrast.loss == loss
    fixed = SetFit("single", "pairwise")
    fixed.accept(batch([k for k in range(30) for _ in range(2)]).columns, 32)
    assert fixed.contrast.loss == "pairwise"


# ------------------------------------------------------------------------------------------------ what meets in a batch


def table(counts: list[int], size: int, together: int, seed: int = 0) -> Table:
    labels = [label for label, n in enumerate(counts) for _ in range(n)]
    return Table({"ids": rows(*(3 for _ in labels)), "label": torch.tensor(labels)}, size=size, seed=seed, together=together)


def test_rows_of_a_label_meet():
    found = table([8] * 77, 32, 4)
    for epoch in range(2):
        order = found.order(epoch)
        assert sorted(order.tolist()) == list(range(616))  # everybody once
        for part in order.split(32)[:-1]:
            assert set(Counter((part // 8).tolist()).values()) == {4}  # eight classes, four rows each: 48 pairs of one label
    chance = [part // 8 for part in table([8] * 77, 32, 1).order(0).split(32)]
    assert np.mean([sum(n * (n - 1) / 2 for n in Counter(c.tolist()).values()) for c in chance]) < 10
    assert found.order(0).tolist() != found.order(1).tolist()


def test_labels_of_one_row_and_of_many():
    """Runs are as even as they can be, and a frequent label is spread over the epoch, so that batches have several labels."""
    found = table([1, 2, 7, 100], 20, 4)
    order = found.order(3).tolist()
    assert sorted(order) == list(range(110))
    label = [0 if i < 1 else 1 if i < 3 else 2 if i < 10 else 3 for i in order]
    at = [i for i, k in enumerate(label) if k == 3]
    assert at[24] < 45 and at[75] > 65  # a quarter of them in about a quarter of the epoch
    assert len([i for i, k in enumerate(label) if k == 2]) == 7


def test_order_is_the_seeds_not_the_processs():
    """setfit: a second run in one process drew other pairs (#381), because it asked the global state."""
    torch.manual_seed(1), random.seed(1)
    a = [table([8] * 5, 8, 2, seed=3).order(e).tolist() for e in range(2)]
    torch.manual_seed(2), random.seed(2)
    assert a == [table([8] * 5, 8, 2, seed=3).order(e).tolist() for e in range(2)] != [table([8] * 5, 8, 2, seed=4).order(e).tolist() for e in range(2)]


def test_many_classes_take_no_more_memory_than_their_rows():
    """setfit#552: 1,193 classes of 8 rows are 45 million pairs; as a list, or as one mask, 90 MB to several GB."""
    labels = torch.arange(1193).repeat_interleave(8)
    columns = {"ids": Ragged(torch.arange(len(labels) * 2), (2,) * len(labels)), "label": labels}
    tracemalloc.start()
    with Live() as live:
        SetFit("single").accept(columns, 32)
        drawn = next(iter(Table(columns, size=32, together=4).batches(None)))  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1] + live.peak
    tracemalloc.stop()
    assert len(drawn) == 32 and peak < 20e6


# ------------------------------------------------------------------------------------------------ the head


def test_the_head_is_the_regression_of_scikit_learn():
    """SetFit's: LogisticRegression of embeddings of length 1. Ours reads them around their mean, which the bias takes up."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    dice = np.random.default_rng(0)
    y = dice.permutation(np.repeat(np.arange(5), 8))
    x = dice.normal(size=(5, 16))[y] + dice.normal(size=(40, 16))
    weight, bias = regression(x, y, 5)
    length = np.linalg.norm(x, axis=1).mean()
    peer = linear_model.LogisticRegression(C=PENALTY, tol=1e-8, max_iter=1000).fit(x / length, y)
    ours, theirs = x @ weight.T + bias, peer.decision_function(x / length)
    np.testing.assert_allclose(ours - ours.mean(1, keepdims=True), theirs - theirs.mean(1, keepdims=True), atol=1e-2)


def test_a_class_without_a_row_is_never_said():
    weight, bias = regression(np.random.default_rng(0).normal(size=(6, 3)), np.array([0, 0, 2, 2, 2, 0]), 4)
    assert set((np.random.default_rng(1).normal(size=(200, 3)) @ weight.T + bias).argmax(1)) <= {0, 2}
    weight, bias = regression(np.ones((3, 3)), np.array([1, 1, 1]), 2)  # one class alone
    assert (np.ones((1, 3)) @ weight.T + bias).argmax() == 1


@pytest.mark.parametrize("method", [m for m in EIGHT if m != "head"])
def test_a_run_by_any_method(work, tmp_path, method):
    """The body learns, the head fits the tuned body, and the artifact alone says what the run said."""
    options = {"adapter": {"width": 4}, "prompt": {"length": 3}, "prefix": {"length": 3}, "layers": {"last": 1}, "lora": {"rank": 2}}.get(method, {})
    made = setfit(work, tmp_path / "run", {"kind": method, **options}, budget={"steps": 5}, evaluate={"every": 2, "samples": 0})
    found = run(made, QUIET)
    assert [e["step"] for e in found["history"]] == [0, 2, 4, 5]
    tuned = load(tmp_path / "run")
    said = [json.loads(line)["predicted"] for line in (tmp_path / "run/predictions.jsonl").read_text().splitlines()]
    texts = [json.loads(line)["text"] for line in (work / "held.jsonl").read_text().splitlines()]
    assert [r["label"] for r in tuned.predict(texts)] == said
    moved = [n for n, p in tuned.delta.parameters().items() if not n.startswith("heads.")]
    assert moved and found["after"]["loss"] != found["before"]["loss"]


def head_of(folder: Path) -> Tensor:
    return next(p.detach() for n, p in load(folder).net.named_parameters() if n == "heads.classify.1.weight")


def test_the_head_is_fitted_on_the_tuned_body_and_by_no_gradient(work, tmp_path):
    made = setfit(work, tmp_path / "run", budget={"steps": 6})
    run(made, QUIET)
    tuned = load(tmp_path / "run")
    table = Table(read_data(made).train.encoded.columns, "classify")
    again, _ = regression(*(t.numpy() for t in embeddings(tuned.net, table)), 2)
    torch.testing.assert_close(head_of(tmp_path / "run"), torch.from_numpy(again).float(), rtol=1e-3, atol=1e-4)
    learn, rows_ = SetFit("single"), Batch(table.columns)
    tuned.net.train()
    torch.stack(list(learn(tuned.net, rows_).values())).sum().backward()
    assert all(p.grad is None for n, p in tuned.net.named_parameters() if n.startswith("heads."))


def test_it_learns(work, tmp_path):
    """Two halves of a vocabulary, four rows of each: better than the head alone on the random body."""
    found = run(setfit(work, tmp_path / "run", budget={"steps": 40}, update={"batch": 8, "rate": 3e-3}), QUIET)
    assert found["after"]["accuracy"] >= max(0.9, found["before"]["accuracy"])
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.2 * losses[0]


def test_a_run_without_rows_to_judge_by_has_its_head_all_the_same(work, tmp_path):
    made = setfit(work, tmp_path / "a", budget={"steps": 3})
    run(made, QUIET)
    run(replace(made, data=replace(made.data, eval=None), out=str(tmp_path / "b")), QUIET)
    assert torch.equal(head_of(tmp_path / "a"), head_of(tmp_path / "b"))


def test_stopped_and_continued_is_the_run(work, tmp_path, monkeypatch):
    plain = {**setfit(work, tmp_path / "a", budget={"steps": 8}, evaluate={"every": 3, "samples": 0}, dropout=0.1).plain()}
    run(recipe(plain), QUIET)
    assert same(tmp_path / "a", train_with_stops({**plain, "out": str(tmp_path / "b")}, monkeypatch, [4]))


def test_the_same_run_twice_in_one_process(work, tmp_path):
    """setfit#381."""
    for name in ("a", "b"):
        run(setfit(work, tmp_path / name, budget={"steps": 4}), QUIET)
    assert torch.equal(head_of(tmp_path / "a"), head_of(tmp_path / "b"))


def test_export_has_the_fitted_head(work, tmp_path):
    run(setfit(work, tmp_path / "run", "lora", budget={"steps": 3}), QUIET)
    assert "head.safetensors" in export(tmp_path / "run", tmp_path / "out")
    assert torch.equal(load_file(tmp_path / "out/head.safetensors")["classify.1.weight"], head_of(tmp_path / "run"))


def test_a_comparison_shows_what_costs_no_training(work, tmp_path):
    found = compare(setfit(work, tmp_path / "c", budget={"steps": 2}), ["bitfit"], seeds=2, reporter=QUIET)
    assert {"bitfit", "majority", "nearest centroid", "linear probe"} <= {row["label"] for row in found.table}


def test_it_can_be_foreseen(work, tmp_path):
    """`check` and `recommend` rehearse a step on tensors without values."""
    made = setfit(work, tmp_path)
    found = rehearse(made, read_data(made))
    assert found.step.flops > 0 and len(found.steps) == 6


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"method": "head"}, "nothing would move"),
        ({"head": "mlp"}, "fits a linear one"),
        ({"update": {"kind": "descend"}}, "see each other"),
        ({"options": {"margin": 0.2}}, "margin"),
        ({"options": {"temperature": 0.2}}, "temperature"),
        ({"options": {"each": 1}}, "each"),
        ({"evaluate": {"patience": 2}}, "more than those to learn from"),
    ],
)
def test_what_makes_no_sense_is_refused(work, tmp_path, more, words):
    from tunesmith.dataset import read_data

    with pytest.raises(Refusal, match=words):
        made = setfit(work, tmp_path, **more)
        agreed(made, read_data(made))


def test_several_tasks_are_refused(work, tmp_path):
    one = {"task": "classify", "data": str(work / "held.jsonl")}
    made = {"model": str(work / "model"), "tasks": {"a": {**one, "objective": "setfit"}, "b": one}, "stream": "mix", "out": str(tmp_path)}
    with pytest.raises(Refusal, match="rows of one task"):
        recipe(made)


def test_rows_that_teach_no_likeness_are_refused(work, tmp_path):
    with pytest.raises(Refusal, match="two different texts"):
        run(setfit(work, tmp_path / "one", stream={"kind": "few", "k": 1}), QUIET)
    shop.rows(work / "multi.jsonl", "multi")
    with pytest.raises(Refusal, match="several labels"):
        run(recipe(shop.recipe(work, "multi", "full", objective="setfit", out=str(tmp_path))), QUIET)
