"""Ways of keeping old tasks, one by one: what the papers' equations say of them, by hand; and the wrong versions that the field ships, each of which would fail here."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import shop
import staged
from staged import assembled, fitted, learnt, made, same, strategy_of
from tunesmith.artifact import export, load
from tunesmith.core import Batch, Ragged
from tunesmith.errors import Refusal
from tunesmith.networks.decode import Sampling, generate
from tunesmith.objectives import Supervised
from tunesmith.progress import Reporter
from tunesmith.recipe import recipe
from tunesmith.sources.table import Table
from tunesmith.strategies import STRATEGIES
from tunesmith.strategies.agem import project
from tunesmith.strategies.among import Among
from tunesmith.strategies.anchors import Penalty
from tunesmith.strategies.examples import DRAWS, mean_of
from tunesmith.strategies.memory import Memory
from tunesmith.strategies.replay import apart
from tunesmith.train import run
from tunesmith.updates.descend import summed


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return staged.workshop(tmp_path_factory.mktemp("staged"))


# ------------------------------------------------------------------------------------------------ the memory


def stage_of(n: int, stage: int, groups: int = 1) -> Table:
    """n examples of `groups` rows, each a token that says which it is."""
    tokens = torch.arange(n * groups) + 1000 * stage
    columns: dict[str, Any] = {"ids": Ragged(tokens, (1,) * len(tokens)), "label": torch.arange(n * groups) % 3}
    return Table(columns | ({"group": torch.arange(n).repeat_interleave(groups)} if groups > 1 else {}))


def remembering(sizes: list[int], seed: int, balance: Any = "reservoir", size: int = 12, groups: int = 1) -> Memory:
    memory, net = Memory(size, balance), torch.nn.Module()
    for i, n in enumerate(sizes):
        memory.learn(stage_of(n, i, groups), net, i, seed)  # type: ignore[arg-type]
    return memory


def test_a_reservoir_is_uniform_over_all_that_came() -> None:
    """Chi-square over 59 degrees of freedom, for samples without replacement; its 99.9th percentile is 98.3. A stage's rows have equal chances, whenever it came."""
    found: Counter[int] = Counter()
    for seed in range(600):
        found.update(remembering([10, 30, 20], seed).held["task"]["ids"].tolist())
    rows = [i + 1000 * stage for stage, n in enumerate([10, 30, 20]) for i in range(n)]
    assert sum(found.values()) == 600 * 12 and set(found) <= set(rows)
    expected, p = 600 * 12 / 60, 12 / 60
    assert sum((found[row] - expected) ** 2 for row in rows) / expected / (1 - p) * 59 / 60 < 98.3
    by_stage = [sum(v for row, v in found.items() if row // 1000 == stage) / n for stage, n in enumerate([10, 30, 20])]
    assert max(by_stage) / min(by_stage) < 1.15


def test_a_balanced_memory_holds_as_many_of_each_class() -> None:
    table = Table({"ids": Ragged(torch.arange(90), (1,) * 90), "label": torch.tensor([0] * 80 + [1] * 6 + [2] * 4)})
    memory = Memory(15, "class")
    memory.learn(table, torch.nn.Module(), 0, 0)  # type: ignore[arg-type]
    assert Counter(memory.held["task"]["label"].tolist()) == {0: 6, 1: 5, 2: 4} or Counter(memory.held["task"]["label"].tolist()) == {0: 5, 1: 6, 2: 4}
    memory.learn(Table({"ids": Ragged(torch.arange(90), (1,) * 90), "label": torch.full((90,), 3)}), torch.nn.Module(), 1, 0)  # type: ignore[arg-type]
    assert set(Counter(memory.held["task"]["label"].tolist()).values()) <= {3, 4}


def test_pairs_stay_together_and_draws_are_proportional() -> None:
    memory = remembering([30, 30], 0, groups=2, size=20)
    batch = memory.held["task"]
    assert len(memory) == 20 and [len(g) for g in batch.groups()] == [2] * 20
    ids = batch["ids"].tolist()
    assert all(ids[g.start] + 1 == ids[g.start + 1] and ids[g.start] % 2 == 0 for g in batch.groups())
    other = Batch(batch.columns, "other")
    memory.held["other"] = other.pick([i for g in other.groups()[:5] for i in g])
    drawn = memory.draw(10, torch.Generator().manual_seed(0))
    assert [len(b.groups()) for b in drawn] == [8, 2] and [float(b["replayed"][0]) for b in drawn] == pytest.approx([0.8, 0.2])
    assert all(len(set(b["ids"].tolist())) == len(b) for b in drawn)


def test_a_memory_is_saved_exactly(work: Path, tmp_path: Path) -> None:
    """Tokens, lengths, labels, places and outputs of stages with different numbers of classes; what is drawn afterwards is the same."""
    held = strategy_of(fitted(made(work, {"kind": "derpp", "size": 20}), 2)).memory
    save_file(held.tensors(), tmp_path / "m.safetensors")
    again = Memory(20)
    again.recall(load_file(tmp_path / "m.safetensors"), ["classify"])
    one, two = (m.draw(9, torch.Generator().manual_seed(4))[0] for m in (held, again))
    assert one.columns.keys() == two.columns.keys() >= {"ids", "label", "dark", "row", "replayed"}
    for name in one.columns:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=0, equal_nan=True)
    assert {int(n) for n in held.held["classify"]["dark"].isfinite().sum(1)} == {2, 4}


@pytest.mark.parametrize("shape", ["classify", "generate", "prefer", "embed"])
def test_a_memory_holds_training_rows_alone(work: Path, shape: str) -> None:
    job = fitted(made(work, {"kind": "replay", "size": 30}, shape), 2)
    train = {tuple(row.tolist()) for part in list(job.data.parts.values())[:2] for row in part.train.encoded.columns["ids"].rows()}  # type: ignore[union-attr]
    judged = {tuple(row.tolist()) for part in job.data.parts.values() if part.eval for row in part.eval.encoded.columns["ids"].rows()}  # type: ignore[union-attr]
    held = {tuple(row.tolist()) for batch in strategy_of(job).memory.held.values() for row in batch.ragged("ids").rows()}
    assert held and held <= train and not held & (judged - train)


# ------------------------------------------------------------------------------------------------ replay and dark replay


def entered(job: Any, stage: int) -> Any:
    """As it is when the stage begins."""
    for listener in job.run.listeners:
        listener.begin(job.run, job.run.stream[stage])
    return job


def first_step(job: Any, stage: int) -> tuple[list[Batch], Any]:
    entered(job, stage)
    batches = job.run.stream[stage].train.batches(job.net)
    micro = [next(batches) for _ in range(job.run.stream[stage].accumulate)]
    return micro, job.run.update.step(job.run, micro)


@pytest.mark.parametrize(
    ("shape", "scenario"), [("classify", "class"), ("classify", "task"), ("generate", None), ("prefer", None), ("tag", None), ("embed", None)]
)
def test_old_rows_are_a_mean_of_their_own(work: Path, shape: str, scenario: str | None) -> None:
    """New rows' loss is what it would be alone, and old rows' is the mean over old rows, for every objective; a task of several weighs by its rows."""
    job = fitted(made(work, {"kind": "replay", "size": 30, "batch": 5}, shape, scenario), 2)
    micro, record = first_step(job, 2)
    learn, net = job.run.objective, job.net
    mean = lambda batch: {k: float(v.detach()) / learn.inner.count(batch)[k] for k, v in learn.inner(net, batch).items()}  # type: ignore[operator,union-attr]
    assert len(micro) == 1 + len({b.task for b in micro[1:]}) and all("replayed" in b for b in micro[1:])
    net = entered(fitted(made(work, {"kind": "replay", "size": 30, "batch": 5}, shape, scenario), 2), 2).net.train()
    for k, v in mean(micro[0]).items():
        assert record[k] == pytest.approx(v, rel=1e-4)
    told = sum(v for k, v in record.items() if k.startswith("replay"))
    assert told == pytest.approx(sum(float(b["replayed"][0]) * mean(b)[b.task] for b in micro[1:]), rel=1e-4)


def test_long_old_rows_do_not_outweigh_new_ones(work: Path) -> None:
    """Wrong: one mean over the tokens of both."""
    job = fitted(made(work, "replay", "generate"), 1)
    micro, _ = first_step(job, 1)
    new, old = micro
    long = Batch.joined([old] * 20).plus(replayed=torch.ones(20 * len(old)))
    alone = job.run.objective(job.net, new)["generate"].detach() / len(new["label"])
    record = job.run.update.step(job.run, [new, long])
    assert record["generate"] == pytest.approx(float(alone), rel=1e-4) and 0.3 < record["replay"] / record["generate"] < 3


def test_outputs_are_compared_over_the_classes_that_were_known_then() -> None:
    logits = torch.tensor([[1.0, 2.0, 9.0], [0.0, 1.0, 5.0]])
    dark = Ragged(torch.tensor([[0.0, 0.0, float("nan")], [0.0, 0.0, 2.0]]), (1, 1))
    assert float(apart(logits, dark)) == pytest.approx((1 + 4) / 2 + (0 + 1 + 9) / 3)
    assert float(apart(logits, Ragged(dark.values, (2,)))) == pytest.approx(((1 + 4) / 2 + (0 + 1 + 9) / 3) / 2)
    logits.requires_grad_()
    apart(logits, dark).backward()
    assert logits.grad is not None and logits.grad.isfinite().all() and logits.grad[0, 2] == 0


def test_outputs_are_kept_as_they_are_at_rest_when_a_stage_ends(work: Path) -> None:
    """Wrong: with dropout, in the pass in which a row came in."""
    job = fitted(made(work, "der", head={"dropout": 0.5}, dropout=0.3), 1)
    (batch,) = strategy_of(job).memory.held.values()
    job.net.eval()
    with torch.no_grad():
        torch.testing.assert_close(batch["dark"], job.net.logits(batch), rtol=0, atol=1e-5)
    assert batch["dark"].shape[1] == 2


@pytest.mark.parametrize(
    "none",
    [
        {"kind": "replay", "weight": 0},
        {"kind": "der", "alpha": 0},
        {"kind": "derpp", "alpha": 0, "weight": 0},
        *({"kind": k, "strength": 0} for k in ("ewc", "si", "mas", "lwf")),
    ],
    ids=lambda s: s["kind"],
)
def test_a_weight_of_nothing_is_naive_bit_for_bit(work: Path, none: dict[str, Any]) -> None:
    change = {"dropout": 0.1, "head": {"dropout": 0.1}, "scenario": "task"}
    assert same(learnt(fitted(made(work, none, **change))), learnt(fitted(made(work, **change))))


# ------------------------------------------------------------------------------------------------ anchors


def regression(work: Path, strategy: Any) -> tuple[Any, Tensor, Tensor, Tensor]:
    """A head on a frozen trunk, which is logistic regression: the job after a stage, features (n, D), labels (n,), probabilities (n, C)."""
    job = fitted(made(work, strategy, method="head", update={"batch": 8, "rate": 1e-2}), 1)
    batch = Batch.joined(list(job.run.stream[0].train.once(job.net)))  # type: ignore[attr-defined]
    job.net.eval()
    with torch.no_grad():
        return job, job.net.pooled(batch), batch["label"], job.net.logits(batch).softmax(-1)


def importance(job: Any, name: str) -> Tensor:
    return job.run.objective.held("importance", f"heads.classify.1.{name}")


def test_the_fisher_of_logistic_regression(work: Path) -> None:
    """E[(p_c - y_c)^2 x_d^2], by hand. Wrong: the square of a batch's mean gradient, which is smaller by the size of the batch and ranks parameters otherwise."""
    job, x, y, p = regression(work, "ewc")
    error = p - torch.nn.functional.one_hot(y, p.shape[1])
    right = torch.einsum("nc,nd->cd", error**2, x**2) / len(x)
    found = importance(job, "weight")
    torch.testing.assert_close(found[:2], right, rtol=1e-4, atol=1e-7)
    assert not found[2:].any() and not importance(job, "bias")[2:].any(), "rows of labels that have not come are held nowhere"
    wrong = (torch.einsum("nc,nd->cd", error, x) / len(x)) ** 2
    assert float(wrong.sum() / right.sum()) < 0.5


def test_the_true_fisher_asks_the_model_what_it_would_answer(work: Path) -> None:
    """In expectation E[p_c (1 - p_c) x_d^2]; here one answer an example, so the sum over the head is within 3 standard errors."""
    job, x, _, p = regression(work, {"kind": "ewc", "fisher": "true"})
    each = (p * (1 - p)).sum(1) * x.square().sum(1)
    found = float(importance(job, "weight").sum())
    spread = float((2 * (1 - p[:, 0]).mul(p[:, 0]).sqrt() * x.square().sum(1)).square().sum().sqrt()) / len(x)
    assert found == pytest.approx(float(each.mean()), abs=3 * spread)
    empirical, *_ = regression(work, "ewc")
    assert not torch.allclose(importance(empirical, "weight"), importance(job, "weight"))


def test_answers_are_drawn_and_not_the_likeliest() -> None:
    """Wrong: the arg-max, which makes sure examples weigh nothing and unsure ones all the same."""
    dice, n = torch.Generator().manual_seed(0), 20_000
    logits = torch.tensor([[0.0, 1.0, 3.0]]).expand(n, 3)
    shares = torch.nn.functional.one_hot(DRAWS["single"](logits, dice)).double().mean(0)
    torch.testing.assert_close(shares, logits[0].double().softmax(-1), rtol=0, atol=0.012)
    torch.testing.assert_close(DRAWS["multi"](logits, dice).double().mean(0), logits[0].double().sigmoid(), rtol=0, atol=0.012)
    assert float(DRAWS["score"](logits[:, 1:2], dice).var()) == pytest.approx(0.5, rel=0.05)


def test_mas_asks_for_no_label(work: Path) -> None:
    """E|d ||f||^2 / dW| = E|2 f_c x_d|, by hand."""
    job, x, _, _ = regression(work, "mas")
    with torch.no_grad():
        f = job.net.heads["classify"](x)
    torch.testing.assert_close(importance(job, "weight")[:2], torch.einsum("nc,nd->cd", f.abs(), x.abs()) * 2 / len(x), rtol=1e-4, atol=1e-7)


def test_the_path_of_si_is_what_the_loss_fell_by(work: Path) -> None:
    """The sum over parameters of -gradient x change, on the same batch in small steps, is what the loss fell by."""
    given = made(work, "si", budget={"steps": 60}, update={"batch": 16, "rate": 2e-4, "clip": 0.05, "warmup": 0.0, "schedule": "constant"})
    job = fitted(given, 1)
    si, learn = strategy_of(job), job.run.objective
    assert isinstance(learn, Penalty)
    first, last = job.run.log[0]["classify"], job.run.log[-1]["classify"]
    assert sum(float(t.sum()) for t in si.path.values()) == pytest.approx(first - last, rel=0.1)
    assert all((learn.held("importance", n) >= 0).all() for n in si.params)


def test_the_path_of_si_is_of_the_loss_alone(work: Path) -> None:
    """Wrong: with the penalty's own gradient in it, which makes what is held matter the more."""
    job = entered(fitted(made(work, {"kind": "si", "strength": 1e3}), 1), 1)
    learn = job.run.objective
    for p in job.delta.parameters().values():
        p.data.add_(0.01)
    learn.penalty().backward()
    held = {n: p for n, p in job.delta.parameters().items() if n in learn.live}
    assert held and all(p.grad.abs().max() > 0 for p in held.values())
    for n, p in held.items():
        assert strategy_of(job).slope(n, p).abs().max() < 1e-4 * p.grad.abs().max()


def test_anchors_of_their_own_are_one_anchor_in_their_middle() -> None:
    """Two penalties' gradients add up to that of one; online, old importance fades and the anchor is the last."""
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    one, online = (Penalty(Supervised("single"), 0.5, {"p": p}) for _ in range(2))
    parts = []
    for f, at in ((torch.tensor([1.0, 0.0, 4.0]), [1.0, 2.0, 3.0]), (torch.tensor([2.0, 3.0, 0.0]), [2.0, 0.0, 5.0])):
        p.data = torch.tensor(at)
        one.take({"p": f}, 1.0, each=True)
        online.take({"p": f}, 0.5, each=False)
        parts.append((f, torch.tensor(at)))
    p.data = torch.tensor([5.0, 5.0, 5.0])
    torch.testing.assert_close(one.pull("p"), sum(f * (p.data - a) for f, a in parts))
    torch.testing.assert_close(online.held("importance", "p"), torch.tensor([2.5, 3.0, 2.0]))
    torch.testing.assert_close(online.held("anchor", "p"), torch.tensor([2.0, 0.0, 5.0]))
    one.look()
    (grad,) = torch.autograd.grad(one.penalty(), p)
    torch.testing.assert_close(grad, one.pull("p"))


@pytest.mark.parametrize("kind", ["ewc", "mas", "si"])
def test_a_large_strength_freezes(work: Path, kind: str) -> None:
    """How far what matters has moved over the second stage, by its importance."""
    far = []
    for strength in (1e-9, 1e9):
        given = made(work, {"kind": kind, "strength": strength}, scenario="task", budget={"steps": 10}, update={"batch": 8, "rate": 1e-2})
        job = fitted(given, 1)
        at = {n: (job.run.objective.held("importance", n).clone(), p.detach().clone()) for n, p in job.delta.parameters().items()}  # type: ignore[operator]
        job = fitted(given, 2)
        far.append(sum(float((f * (job.delta.parameters()[n].detach() - a).square()).sum()) for n, (f, a) in at.items()))
    assert far[1] < 0.3 * far[0]


@pytest.mark.parametrize("kind", ["ewc", "mas", "si"])
def test_heads_of_past_tasks_rest(work: Path, kind: str) -> None:
    """To the bit, however strong the penalty; and the new head learns what it learns without one. Wrong: a gradient of zero, of which decay and Adam make steps."""
    given = {"scenario": "task", "method": "head", "budget": {"steps": 20}, "update": {"batch": 8, "rate": 1e-2, "decay": 0.1}}
    held = made(work, {"kind": kind, "strength": 1e6}, **given)
    first, second, naive = fitted(held, 1), fitted(held, 2), fitted(made(work, **given), 2)
    before, after, free = (job.delta.parameters() for job in (first, second, naive))
    olds = [n for n in before if first.run.objective.held("importance", n).any()]  # type: ignore[operator]
    assert olds
    for name, p in after.items():
        assert torch.equal(p, before[name] if name in olds else free[name])


def test_the_penalty_counts_once_whatever_the_pieces(work: Path) -> None:
    """Wrong: once a piece, or divided by them."""
    found = []
    for micro in (10_000, 12):
        job = fitted(made(work, {"kind": "ewc", "strength": 1e4}, update={"batch": 8, "rate": 1e-3, "micro": micro}), 2)
        learn: Any = job.run.objective
        learn.look()
        for p in job.delta.parameters().values():
            p.data.add_(0.01)
        found.append((first_step(job, 2)[1]["penalty"], float(learn.penalty().detach())))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4) and found[0][0] > 0


def test_a_gradient_an_example_is_no_gradient_of_a_batch(work: Path) -> None:
    """The mean of squares does not depend on how rows were laid together."""
    job = fitted(made(work, method="bitfit"), 1)
    source: Any = job.run.stream[0].train
    loss = lambda net, batch: job.run.objective(net, batch)["classify"]
    one = mean_of(job.run, job.run.stream[0], 500, loss, torch.square)
    job.net.eval()
    by_hand = dict.fromkeys(one, 0.0)
    for row in range(len(source.table)):
        job.net.zero_grad()
        loss(job.net, source.table.batch([row])).backward()
        for n, p in job.delta.parameters().items():
            by_hand[n] += 0.0 if p.grad is None else float(p.grad.square().sum()) / len(source.table)
    assert {n: float(t.sum()) for n, t in one.items()} == pytest.approx(by_hand, rel=1e-3, abs=1e-12)


# ------------------------------------------------------------------------------------------------ past outputs, projected gradients


def test_past_outputs_are_those_of_old_labels_before_the_stage(work: Path) -> None:
    """Nothing is lost before the first step. Wrong: asked anew as the network moves; over new labels too, to which the past had nothing to say."""
    job = entered(fitted(made(work, "lwf", update={"batch": 8, "rate": 1e-2}), 1), 1)
    assert strategy_of(job).held.said.values.shape == (16, 2)
    micro, record = first_step(job, 1)
    assert micro[0]["past"].shape == (8, 2) and record["past"] == pytest.approx(0, abs=1e-6)
    moved = [first_step(job, 1)[1]["past"] for _ in range(3)]
    assert moved[-1] > 1e-6
    batch = micro[0]
    signals = job.run.objective.read(job.net, batch)
    loss = job.run.objective.score(signals, batch)["past"]
    now, then = signals["logits"][:, :2], batch["past"]
    by_hand = 4 * torch.nn.functional.kl_div((now / 2).log_softmax(-1), (then / 2).softmax(-1), reduction="sum")
    torch.testing.assert_close(loss, by_hand, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(("scenario", "old"), [("class", "heads.classify."), ("task", "heads.x.")])
def test_before_a_step_past_outputs_pull_at_nothing(work: Path, scenario: str, old: str) -> None:
    """Wrong: the rounding of two forward passes is a gradient, of which AdamW makes a step of its full size."""
    rows = lambda stages, steps: {
        n: t[:2]
        for n, t in learnt(
            fitted(made(work, "lwf", scenario=scenario, budget={"steps": steps}, update={"batch": 8, "rate": 1e-2, "decay": 0.0}), stages)
        ).items()
        if n.startswith(old)
    }
    assert rows(1, 1) and same(rows(1, 1), rows(2, 1)) and not same(rows(1, 2), rows(2, 2))


def test_old_heads_answer_for_old_tasks(work: Path) -> None:
    """A head each: all old heads on new rows, and the trunk is read once."""
    job = entered(fitted(made(work, "lwf", scenario="task"), 2), 2)
    learn, net = job.run.objective, job.net
    assert learn.olds == {"x": 2, "y": 2}
    (batch, *_), _ = first_step(job, 2)
    signals = learn.read(net, batch)
    alone = torch.cat([net.logits(Batch(batch.columns, task)) for task in ("x", "y")], 1)
    torch.testing.assert_close(signals["past"], alone)
    seen: list[Any] = []
    states, net.states = net.states, lambda batch: seen.append(1) or states(batch)  # type: ignore[method-assign]
    learn.read(net, batch)
    assert len(seen) == 1
    signals["past"].sum().backward()
    assert all(net.heads[task][1].weight.grad is not None for task in ("x", "y"))


@pytest.mark.parametrize("shape", ["tag", "score"])
def test_past_outputs_of_tags_and_numbers(work: Path, shape: str) -> None:
    job = fitted(made(work, "lwf", shape))
    assert 0 < job.run.log[-1]["past"] < 1 and "past" not in job.run.log[0]


def gradients(job: Any, batches: list[Batch]) -> dict[str, Tensor]:
    job.net.zero_grad()
    summed(job.run, batches, 10_000, 0)
    found = {n: p.grad.clone() for n, p in job.run.parameters().items() if p.grad is not None}
    job.net.zero_grad()
    return found


def test_a_projected_step_does_not_make_old_rows_worse(work: Path) -> None:
    """g' . r = 0 where g . r < 0, else g' = g; over all that moves at once. Wrong: parameter by parameter."""
    job = entered(fitted(made(work, "agem", scenario="class", budget={"steps": 12}, update={"batch": 8, "rate": 1e-2}), 1), 1)
    batches = job.run.stream[1].train.batches(job.net)
    new, old = next(batches), next(batches)
    g, r = (gradients(job, [b]) for b in (new, old))
    dot = lambda a, b: sum(float((a[n] * b[n]).double().sum()) for n in a if n in b)
    assert dot(g, r) < 0, "the new rows push the old ones out"
    for flip in (1.0, -1.0):
        job.net.zero_grad()
        params = job.run.parameters()
        for n, t in g.items():
            params[n].grad = flip * t.clone()
        project(params, r)
        found = {n: p.grad for n, p in params.items() if p.grad is not None}
        if flip > 0:
            assert abs(dot(found, r)) < 1e-5 * dot(r, r) and dot(found, g) > 0
        else:
            assert all(torch.equal(found[n], -g[n]) for n in g)
    job.net.zero_grad()
    job.run.update.form(job.run, [new, old], 10_000, 0)
    found = {n: p.grad for n, p in job.run.parameters().items() if p.grad is not None}
    assert abs(dot(found, r)) < 1e-5 * dot(r, r)


# ------------------------------------------------------------------------------------------------ what a new row is told apart from


class Said(torch.nn.Module):
    """A network whose logits are those given."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.said = logits

    def logits(self, batch: Batch) -> Tensor:
        return self.said


@pytest.mark.parametrize(("kind", "label"), [("single", torch.tensor([4, 1, 4])), ("multi", torch.eye(5)[[4, 1, 4]])])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_new_rows_are_told_apart_among_the_labels_of_their_stage(kind: Any, label: Tensor, smoothing: float) -> None:
    """The loss of a network that has these outputs alone; the others get no gradient at all. What is replayed is told apart among all."""
    present = [1, 3, 4]
    learn = Among(Supervised(kind, smoothing), [[0, 2], present])
    learn.stage = 1
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(3)).requires_grad_()
    batch = Batch({"ids": Ragged(torch.arange(3), (1, 1, 1)), "label": label})
    own = label[:, present] if kind == "multi" else torch.tensor([2, 0, 2])
    right = Supervised(kind, smoothing)(Said(logits[:, present]), batch.plus(label=own))["task"]
    found = learn(Said(logits), batch)["task"]
    torch.testing.assert_close(found, right)
    (grad,) = torch.autograd.grad(found, logits)
    assert not grad[:, [0, 2]].any() and grad[:, present].all()
    torch.testing.assert_close(learn(Said(logits), batch.plus(replayed=torch.ones(3)))["task"], Supervised(kind, smoothing)(Said(logits), batch)["task"])


@pytest.mark.parametrize("strategy", ["naive", "lwf", "olora", "ewc", "replay"])
@pytest.mark.parametrize("among", ["all", "stage"])
def test_a_stage_pushes_old_labels_down_only_where_it_is_asked_to(work: Path, strategy: str, among: str) -> None:
    """The rows of the head that old labels have, over a stage: at rest where the loss is over the new labels, and nothing asks the past."""
    stream = {"kind": "sequence", "by": "domain", "scenario": "class", "among": among}
    given = made(work, strategy, stream=stream, update={"batch": 8, "rate": 1e-2, "decay": 0.0})
    heads = [{n: t[:2] for n, t in learnt(fitted(given, k)).items() if n.startswith("heads.")} for k in (1, 2)]
    assert heads[0] and same(*heads) == (among == "stage" and strategy not in ("lwf", "replay"))


def test_what_is_told_apart_by_default() -> None:
    """Old outputs of lwf and olora are apart, as their papers have it; naive is what happens where nothing is done."""
    assert {name for name, one in STRATEGIES.items() if one.among == "stage"} == {"lwf", "olora"}


@pytest.mark.parametrize(
    "more",
    [{"scenario": "task"}, {"shape": "tag", "scenario": "domain"}, {"shape": "generate"}],
    ids=["a head each", "the same labels", "words"],
)
def test_a_stage_s_own_labels_where_there_are_none_are_refused_before_loading(work: Path, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.shared.load_network", lambda *_, **__: pytest.fail("loaded"))
    given = made(work, "naive", **more)
    with pytest.raises(Refusal, match="among: stage"):
        run(recipe({**given, "stream": {**given["stream"], "among": "stage"}}), staged.QUIET)


# ------------------------------------------------------------------------------------------------ a block, a delta, a dream of each stage


def test_a_stage_moves_its_own_block_of_the_rank(work: Path) -> None:
    """Others rest to the bit, under weight decay too; the penalty is sum |A_k A_t^T| whatever the pieces; the artifact is a plain LoRA."""
    given = made(work, {"kind": "olora", "strength": 0.5}, method={"kind": "lora", "rank": 6}, update={"batch": 8, "rate": 1e-2, "decay": 0.5, "micro": 12})
    blocks = lambda n, t: t.split(2, 0 if n.endswith("A") else 1)
    before, one, two = learnt(assembled(given)), learnt(fitted(given, 1)), learnt(fitted(given, 2))
    names = [n for n in one if n.endswith((".lora.A", ".lora.B"))]
    for n in names:
        b, x, y = (blocks(n, state[n]) for state in (before, one, two))
        assert [torch.equal(p, q) for p, q in zip(b, x, strict=True)] == [False, True, True], n
        assert [torch.equal(p, q) for p, q in zip(x, y, strict=True)] == [True, False, True], n
    job = entered(fitted(given, 2), 2)
    by_hand = sum(float((p[:4] @ p[4:].T).abs().sum()) for n, p in job.delta.state_dict().items() if n.endswith(".lora.A"))
    assert first_step(job, 2)[1]["penalty"] == pytest.approx(0.5 * by_hand, rel=1e-4)
    found = run(recipe({**given, "out": str(work / "blocks")}), staged.QUIET)
    config = json.loads((found.folder / "artifact" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["r"] == 6


def test_a_rank_that_is_too_small_for_the_stages_is_refused_before_loading(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.shared.load_network", lambda *_, **__: pytest.fail("loaded"))
    for strategy, rank in (({"kind": "olora"}, 2), ({"kind": "olora", "room": 9}, 8), ({"kind": "olora", "room": 2}, 8)):
        with pytest.raises(Refusal, match="stages"):
            run(recipe(made(work, strategy, method={"kind": "lora", "rank": rank})), staged.QUIET)
    with pytest.raises(Refusal, match="no sum over the rank"):
        run(recipe(made(work, "olora", method={"kind": "lora", "dora": True})), staged.QUIET)


@pytest.mark.parametrize("method", ["lora", "full", "head"])
def test_a_row_goes_the_way_of_the_nearest_centroid(work: Path, method: str) -> None:
    """Each row is answered as the network of its stage would, alone. Wrong: by the stage that it really belongs to."""
    given = made(work, "route", method=method, scenario="class", update={"batch": 8, "rate": 1e-2})
    alone = [fitted(given, k + 1).net.eval() for k in range(3)]
    job = fitted(given)
    net, router = job.net.eval(), strategy_of(job).router
    batches = [b for part in job.data.parts.values() for b in Table(part.eval.encoded.columns, "classify").once()]  # type: ignore[union-attr]
    batch = Batch.joined(batches)
    with torch.no_grad():
        base = router.base(batch)
        likeness = torch.nn.functional.normalize(base, dim=-1) @ router.routes.centroids.T
        to = router.routes.stage[likeness.argmax(-1)].tolist()
        assert router.sent(batch) == to and len(set(to)) > 1
        found = net.logits(batch)
        for i, k in enumerate(to):
            right = type(net).logits(alone[k], batch.pick([i]))[0]
            torch.testing.assert_close(found[i, : len(right)], right, rtol=1e-4, atol=1e-5)
    oracle = [int(label) // 2 for label in batch["label"].tolist()]
    assert to != oracle, "rows of these stages resemble each other"


def test_a_delta_a_stage_forgets_nothing_and_the_artifact_has_all(work: Path, tmp_path: Path) -> None:
    given = made(work, "route", scenario="task", out=str(tmp_path / "run"), update={"batch": 8, "rate": 1e-2})
    told = run(recipe(given), staged.QUIET).record["sequence"]
    assert told["bwt"] == 0 and all(told["matrix"][2][j] == told["matrix"][j][j] for j in range(3))
    found = run(recipe(made(work, "route", scenario="class", out=str(tmp_path / "class"))), staged.QUIET)
    lines = [json.loads(line) for line in (found.folder / "predictions.jsonl").read_text().splitlines()]
    tuned = load(found.folder)
    assert [r["label"] for r in tuned.predict([line["asked"] for line in lines])] == [line["predicted"] for line in lines]
    with pytest.raises(Refusal, match="a delta a stage"):
        export(found.folder, tmp_path / "plain")


@pytest.mark.parametrize("start", ["prompt", "beginning", "bos"])
def test_what_is_dreamt_is_the_model_s_own(work: Path, start: str) -> None:
    """No old answer is kept; what is replayed was written from the starts by the network as the stage found it."""
    given = made(work, {"kind": "dream", "size": 9, "start": start, "length": 4, "tokens": 2, "temperature": 0.0}, "generate")
    job = fitted(given, 1)
    strategy = strategy_of(job)
    (starts,) = strategy.memory.held.values()
    rows = {tuple(r.tolist()) for r in job.data.parts["x"].train.encoded.columns["ids"].rows()}  # type: ignore[union-attr]
    kept = [tuple(r.tolist()) for r in starts.ragged("ids").rows()]
    assert len(starts["label"]) == 0 and not rows & set(kept) and all(any(row[: len(k)] == k for row in rows) for k in kept)
    entered(job, 1)
    (dreams,) = strategy.dreams.held.values()
    greedy = generate(job.net, [[2]] * 9 if start == "bos" else [list(k) for k in kept], Sampling(4), eos=2, pad=0)
    written = [row.tolist() for row in dreams.ragged("ids").rows()]
    for row, begun, answer, at in zip(written, [(2,)] * 9 if start == "bos" else kept, greedy, dreams.ragged("at").rows(), strict=True):
        assert row[: len(begun)] == list(begun) and row[len(begun) :][: len(answer)] == answer
        assert at.tolist() == list(range(len(begun) - 1 if start == "prompt" else 0, len(row) - 1))
    assert "replay" in first_step(job, 1)[1]


def test_less_is_forgotten(work: Path) -> None:
    """The first stage's rows after the last stage, one head: a memory of them keeps their loss down, which without it is lost to the other labels."""
    loss = {}
    for kind in ("naive", "replay", "derpp"):
        job = fitted(made(work, kind, method="full", scenario="class", budget={"steps": 15}, update={"batch": 16, "rate": 2e-3}))
        first: Any = job.run.stream[0].train
        job.net.eval()
        with torch.no_grad():
            loss[kind] = float(sum(torch.nn.functional.cross_entropy(job.net.logits(b), b["label"], reduction="sum") for b in first.once(job.net)))
    assert loss["replay"] < 0.6 * loss["naive"] and loss["derpp"] < 0.7 * loss["naive"]


# ------------------------------------------------------------------------------------------------ what makes no sense


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"strategy": "der", "shape": "generate"}, "`task: generate`"),
        ({"strategy": "ewc", "shape": "embed"}, "see each other"),
        ({"strategy": {"kind": "replay", "size": 0}}, "strategy.size"),
        ({"strategy": {"kind": "replay", "memory": 3}}, "unknown key"),
        ({"strategy": "olora", "method": "full"}, "method: lora"),
        ({"strategy": "dream"}, "`task: classify`"),
        ({"strategy": "route", "shape": "generate"}, "`task: generate`"),
        ({"strategy": "replay", "shape": "generate", "objective": {"kind": "reinforce", "reward": "length"}}, "rollouts"),
        ({"strategy": "repaly"}, "did you mean `replay`"),
    ],
)
def test_senseless_strategies_are_refused(work: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(Refusal) as refused:
        recipe(made(work, **change))
    assert said in str(refused.value)


def test_it_is_said_that_anchors_do_not_help_where_labels_come(work: Path) -> None:
    told = lambda strategy, scenario, **more: any("without old rows" in note for note in assembled(made(work, strategy, scenario=scenario, **more)).notes)
    assert told("ewc", "class") and not told("ewc", "task") and not told("replay", "class") and not told("ewc", "class", method="head")


def test_parts_may_be_called_anything(tmp_path):
    """Heads are modules, and a module has no room for two of a name, or for one called `train`."""
    shop.encoder(tmp_path / "model")
    names = ["train", "a b", "a-b", "类型", "a_b"]
    rows = [{"text": text, "label": f"{name}{half}", "part": name} for name in names for text, half in shop.texts(8, seed=len(name))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = str(tmp_path / "rows.jsonl")
    given = shop.recipe(
        tmp_path, "classify", "lora", data={"train": file, "eval": file}, stream={"kind": "sequence", "by": "part", "scenario": "task"}, budget={"steps": 2}
    )
    result = run(recipe({**given, "out": str(tmp_path / "run")}), Reporter(quiet=True))
    assert list(load(result.folder).others) == names
    assert len(load(result.folder).net.heads) == len(names)
