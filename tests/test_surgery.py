"""Gradient surgery: the weights against vectors and torchjd; and in a step: of whole tasks, shared parameters only, before clipping, in pieces as whole."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from several import NAMES, Setting, Stop, form, learnt
from tiny import rows
from tunesmith.core import Batch
from tunesmith.engine import fit
from tunesmith.errors import Refusal
from tunesmith.methods import Full, Head, Layers, LoRA
from tunesmith.objectives import Contrast
from tunesmith.updates import Descend
from tunesmith.updates import surgery as s

NATIVE = ("pcgrad", "cagrad", "mgda", "upgrad")
WEIGH = {"pcgrad": s.pcgrad, "cagrad": s.cagrad, "mgda": s.mgda, "upgrad": s.upgrad}


def jacobians(count: int = 12, sizes=(2, 3, 5), dim: int = 6) -> list[Tensor]:
    """Gradients that conflict in part, of unlike lengths."""
    torch.manual_seed(0)
    made = [torch.randn(k, dim, dtype=torch.float64) * torch.logspace(-0.5, 0.5, k, dtype=torch.float64)[:, None] for k in sizes for _ in range(count)]
    return made


# ------------------------------------------------------------------------------------------------ the weights


def by_vectors(j: Tensor, seed: int, original: bool = True) -> Tensor:
    """Algorithm 1 of Yu et al. 2020 on the vectors themselves; `original` False is the wrong version, which projects on what was projected."""
    dice, moved = torch.Generator().manual_seed(seed), [g.clone() for g in j]
    for i in range(len(j)):
        for k in torch.randperm(len(j), generator=dice).tolist():
            other = j[k] if original else moved[k]
            if k != i and moved[i] @ other < 0:
                moved[i] = moved[i] - (moved[i] @ other) / (other @ other) * other
    return torch.stack(moved).sum(0)


def test_pcgrad_of_opposites_is_nothing() -> None:
    g = torch.randn(7, dtype=torch.float64)
    j = torch.stack([g, -g])
    assert (s.pcgrad(j @ j.T, 0) @ j == 0).all()


def test_pcgrad_by_inner_products_is_pcgrad_by_vectors() -> None:
    wrong = 0
    for seed, j in enumerate(jacobians()):
        torch.testing.assert_close(s.pcgrad(j @ j.T, seed) @ j, by_vectors(j, seed), rtol=1e-9, atol=1e-9)
        wrong += not torch.allclose(by_vectors(j, seed), by_vectors(j, seed, original=False))
    assert wrong > 10  # these gradients tell the two apart


def test_pcgrad_draws_its_order() -> None:
    """The published TensorFlow code throws its shuffle away."""
    j = next(j for j in jacobians() if len(j) == 5)
    found = {tuple((s.pcgrad(j @ j.T, seed) @ j).tolist()) for seed in range(8)}
    assert len(found) > 1
    assert torch.equal(s.pcgrad(j @ j.T, 3), s.pcgrad(j @ j.T, 3))


@pytest.mark.parametrize("which", ["mgda", "upgrad"])
def test_no_task_is_hurt(which: str) -> None:
    for j in jacobians():
        step = WEIGH[which](j @ j.T, 0) @ j
        assert (j @ step).min() > -1e-9 * j.norm() ** 2
    hurt = [(j @ j.sum(0)).min() < -1e-3 for j in jacobians()]
    assert sum(hurt) > 10


def test_mgda_is_the_shortest() -> None:
    a, b = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([-0.5, 1.0], dtype=torch.float64)
    j, share = torch.stack([a, b]), float((b - a) @ b / ((b - a) @ (b - a)))
    torch.testing.assert_close(s.mgda(j @ j.T), 2 * torch.tensor([share, 1 - share], dtype=torch.float64))
    for j in jacobians():
        w = s.mgda(j @ j.T) / len(j)
        assert w.min() >= 0 and abs(w.sum() - 1) < 1e-12
        others = torch.rand(200, len(j), dtype=torch.float64).log().neg()
        others = torch.cat([others / others.sum(1, keepdim=True), torch.eye(len(j), dtype=torch.float64)])
        assert (w @ j).norm() <= (others @ j).norm(dim=1).min() + 1e-12


def test_cagrad_serves_the_worst_served_best() -> None:
    """d = g0 + c |g0| u, |u| = 1, where no other u does better; c = 0 is the plain sum; twice as far for twice the c."""
    for j in jacobians(6):
        mean, size = j.mean(0), len(j)
        assert torch.equal(s.cagrad(j @ j.T, c=0.0), torch.ones(size, dtype=torch.float64))
        for c in (0.2, 0.5, 0.9):
            d = s.cagrad(j @ j.T, c=c) @ j / size
            torch.testing.assert_close((d - mean).norm(), c * mean.norm(), rtol=1e-7, atol=0)
            u = torch.randn(2000, j.shape[1], dtype=torch.float64)
            near = d - mean + 0.05 * c * mean.norm() * torch.nn.functional.normalize(u)
            others = mean + c * mean.norm() * torch.nn.functional.normalize(torch.cat([u, near]))
            assert (j @ d).min() >= (others @ j.T).amin(1).max() - 1e-7


def test_weights_where_nothing_conflicts_or_nothing_is_left() -> None:
    still = torch.zeros(3, 3, dtype=torch.float64)
    one = torch.eye(3, dtype=torch.float64)
    for which in NATIVE:
        assert WEIGH[which](still, 0).isfinite().all()
        w = WEIGH[which](one, 0)
        torch.testing.assert_close(w, w.mean().expand(3), rtol=1e-6, atol=1e-9)  # alike, hence alike
    for which in ("pcgrad", "upgrad"):
        torch.testing.assert_close(WEIGH[which](one, 0), torch.ones(3, dtype=torch.float64))
    opposed = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    assert (s.mgda(opposed @ opposed.T) @ opposed).norm() < 1e-7
    stuck = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    assert s.cagrad(stuck @ stuck.T).isfinite().all()


# ------------------------------------------------------------------------------------------------ torchjd as oracle


def test_torchjd_agrees() -> None:
    aggregation = pytest.importorskip("torchjd.aggregation")
    pytest.importorskip("quadprog")
    from torchjd.linalg import QuadprogProjector

    close = lambda a, b, j: torch.testing.assert_close(a @ j, b @ j, rtol=1e-6, atol=1e-6)
    exact = aggregation.UPGradWeighting(projector=QuadprogProjector(reg_eps=1e-12))
    patient = aggregation.MGDAWeighting(epsilon=1e-12, max_iters=2_000)
    for seed, j in enumerate(jacobians(3)):
        gram = j @ j.T
        torch.manual_seed(seed)
        dice = torch.get_rng_state()
        theirs = aggregation.PCGradWeighting()(gram)
        torch.set_rng_state(dice)
        close(s.pcgrad(gram, seed), theirs, j)
        close(s.upgrad(gram), len(j) * exact(gram), j)
        ours, approached = s.mgda(gram) / len(j), patient(gram)
        if len(j) == 2:
            close(ours, approached, j)
        assert (ours @ j).norm() <= (approached @ j).norm() + 1e-12  # Frank and Wolfe's steps zigzag on three and more
        assert (approached @ j).norm() <= 1.01 * (ours @ j).norm() + 1e-3


def test_torchjd_agrees_on_cagrad() -> None:
    aggregation = pytest.importorskip("torchjd.aggregation")
    pytest.importorskip("cvxpy")
    for j in jacobians(3):
        for c in (0.3, 0.5):
            ours, theirs = s.cagrad(j @ j.T, c=c) @ j / len(j), aggregation.CAGradWeighting(c)(j @ j.T) @ j
            torch.testing.assert_close(minimised(j, ours, c), minimised(j, theirs, c), rtol=1e-6, atol=1e-6)
            assert (j @ ours).min() >= (j @ theirs).min() - 1e-8
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)  # what is minimised is flat at its bottom


def minimised(j: Tensor, d: Tensor, c: float) -> Tensor:
    """gw . g0 + c |g0| |gw|, gw along d - g0; its length is the one that a w on the simplex gives it."""
    along, mean = d - j.mean(0), j.mean(0)
    w = torch.linalg.lstsq(j.T, along[:, None], driver="gelsd").solution[:, 0]
    gw = along / w.sum()
    return gw @ mean + c * mean.norm() * gw.norm()


def test_the_bridge() -> None:
    pytest.importorskip("torchjd.aggregation")
    pytest.importorskip("quadprog")
    told = form("torchjd", aggregator="PCGrad")
    j = jacobians()[-1]
    torch.testing.assert_close(told.weigh(j @ j.T, 7), s.pcgrad(j @ j.T, 7), rtol=1e-9, atol=1e-9)  # type: ignore[attr-defined]
    ours = fit(Setting(form("pcgrad"), steps=3, seed=4).run())
    theirs = fit(Setting(told, steps=3, seed=4).run())
    for name, value in learnt(ours).items():
        torch.testing.assert_close(learnt(theirs)[name], value, rtol=1e-4, atol=1e-4)
    with pytest.raises(Refusal, match="does not take"):
        form("torchjd", aggregator="UPGrad", arguments={"c": 1.0})
    fit(Setting(form("torchjd"), steps=2).run())


def test_without_torchjd_the_bridge_is_refused(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchjd", None)
    with pytest.raises(Refusal, match="torchjd") as refused:
        form("torchjd")
    assert "tunesmith[multitask]" in refused.value.fix


# ------------------------------------------------------------------------------------------------ a step


def gradient(setting: Setting) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Of one step, and its record."""
    run = replace(setting, plain=True).run()
    before = learnt(run)
    fit(run)
    return {n: before[n] - t for n, t in learnt(run).items()}, dict(run.log[0])


def alone(setting: Setting) -> dict[str, dict[str, Tensor]]:
    """The gradient of each task in such a step, the others' heads and losses left out."""
    run = replace(setting, form=form("descend"), plain=True).run()
    stage = run.stream[0]
    batches = stage.train.batches(run.net)
    micro = [next(batches) for _ in range(setting.accumulate or len(setting.names))]
    found = {}
    for name in setting.names:
        run.net.rest_below(run.delta.floor)
        form("descend")(run, [b for b in micro if b.task == name], 10**6, 0)
        found[name] = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in run.delta.parameters().items()}
        for p in run.delta.parameters().values():
            p.grad = None
    return found


def stacked(grads: dict[str, dict[str, Tensor]]) -> Tensor:
    """(K, N): what is shared."""
    return torch.stack([torch.cat([t.flatten() for n, t in g.items() if not n.startswith("heads.")]) for g in grads.values()]).double()


@pytest.mark.parametrize("method", [None, Full(), Layers(last=1)], ids=["lora", "full", "layers"])
@pytest.mark.parametrize("which", NATIVE)
def test_a_step_is_surgery_on_what_tasks_share(which: str, method) -> None:
    """And heads keep the gradient of their own task."""
    setting = Setting(form(which), method=method)
    found, record = gradient(setting)
    single = alone(setting)
    j = stacked(single)
    seed = 0  # of the first step
    wanted = WEIGH[which](j @ j.T, seed) @ j
    ours = torch.cat([t.flatten() for n, t in found.items() if not n.startswith("heads.")])
    torch.testing.assert_close(ours.double(), wanted, rtol=1e-4, atol=2e-6)
    for name in NAMES:
        for n, t in found.items():
            if n.startswith(f"heads.{name}."):
                torch.testing.assert_close(t, single[name][n], rtol=1e-4, atol=1e-6)
                assert t.abs().sum() > 0
    assert record["conflicts"] == int(((j @ j.T).triu(1) < 0).sum())


def test_these_tasks_conflict_and_surgery_changes_the_step() -> None:
    _, record = gradient(Setting(form("pcgrad")))
    assert record["conflicts"] >= 1
    plain = gradient(Setting(form("descend")))[0]
    for which in NATIVE:
        found = gradient(Setting(form(which)))[0]
        assert any((found[n] - plain[n]).abs().max() > 1e-3 for n in plain if not n.startswith("heads.")), which


def test_the_update_is_of_whole_tasks_not_of_their_batches() -> None:
    """Twelve rows of each task in one batch, in three, and in pieces: one step. Surgery at each batch would be another."""
    whole, record = gradient(Setting(form("pcgrad"), size=12))
    for more in ({"size": 4, "accumulate": 9}, {"size": 12, "micro": 14}, {"size": 5, "accumulate": 9, "micro": 9}):
        parts, other = gradient(Setting(form("pcgrad"), **more))
        for n, t in whole.items():
            torch.testing.assert_close(parts[n], t, rtol=1e-4, atol=2e-6)
        assert other["loss"] == pytest.approx(record["loss"], rel=1e-5)
        assert other["conflicts"] == record["conflicts"]
    run = replace(Setting(form("pcgrad"), accumulate=9), plain=True).run()
    batches = list(zip(range(9), run.stream[0].train.batches(run.net), strict=False))
    thirds: dict[str, Tensor] = {}
    for k in range(3):  # the wrong version
        form("pcgrad")(run, [b for i, b in batches if i // 3 == k], 10**6, 0)
        for n, p in run.delta.parameters().items():
            thirds[n] = thirds.get(n, 0) + p.grad / 3
            p.grad = None
    assert any((thirds[n] - t).abs().max() > 1e-3 for n, t in whole.items() if not n.startswith("heads."))


@pytest.mark.parametrize("which", [*NATIVE, "dwa", "famo", "gradnorm"])
def test_one_task_alone_is_plain_descent(which: str) -> None:
    """To the bit, dropout included."""
    plain, ours = (fit(Setting(form(kind), names=("a",), accumulate=2, steps=5, dropout=0.2, clip=1.0).run()) for kind in ("descend", which))
    for name, value in learnt(plain).items():
        assert torch.equal(learnt(ours)[name], value), name
    assert [r["loss"] for r in ours.log] == [r["loss"] for r in plain.log]


def test_clipping_comes_after() -> None:
    """The norm is of the gradient that surgery leaves, heads included."""
    found, record = gradient(Setting(form("mgda")))
    norm = math.sqrt(sum(float(t.square().sum()) for t in found.values()))
    assert record["norm"] == pytest.approx(norm, rel=1e-4)
    clipped, record = gradient(Setting(form("mgda"), clip=norm / 2))
    for n, t in clipped.items():
        torch.testing.assert_close(t, found[n] / 2, rtol=1e-3, atol=1e-6)


def test_where_nothing_is_shared_all_is_plain_descent() -> None:
    plain, ours = (gradient(Setting(form(kind), method=Head())) for kind in ("descend", "pcgrad"))
    assert all(torch.equal(plain[0][n], t) for n, t in ours[0].items())


def test_what_sleeps_takes_no_part() -> None:
    """Gradual unfreezing: the lower block joins in the second epoch."""
    run = fit(Setting(form("pcgrad"), method=Layers(last=2, unfreeze=1), steps=6).run())
    assert len(run.log) == 6 and all(math.isfinite(r["loss"]) for r in run.log)


def pairs(name: str, seed: int) -> Batch:
    """Eight pairs of texts."""
    ids = rows(*(3 + (7 * i) % 9 for i in range(16)), seed=seed)
    index = torch.arange(16)
    return Batch({"ids": ids, "group": index // 2, "side": index % 2, "text": index, "input": index}, name)


@pytest.mark.parametrize("which", ["pcgrad", "cagrad", "famo", "gradnorm", "uncertainty"])
def test_objectives_whose_rows_see_each_other(which: str) -> None:
    """The gradient of a task is formed through the cache; cut in pieces it is the same, and so are the losses."""
    found = []
    for tokens in (10**6, 30):
        run = replace(Setting(form(which), objective=Contrast("pairs")), plain=True).run()
        run.net.rest_below(run.delta.floor)
        losses, said = run.update.form(run, [pairs("a", 1), pairs("b", 2)], tokens, 3)  # type: ignore[attr-defined]
        found.append(({n: p.grad for n, p in run.delta.parameters().items() if p.grad is not None}, losses, said))
    (whole, losses, said), (cut, other, again) = found
    assert losses.keys() == {"a", "b"} == other.keys() and said == pytest.approx(again, rel=1e-4)
    for n, t in whole.items():
        torch.testing.assert_close(cut[n], t, rtol=1e-4, atol=1e-5)
    for n, t in losses.items():
        torch.testing.assert_close(other[n], t)


@pytest.mark.parametrize("which", NATIVE)
def test_surgery_learns(which: str) -> None:
    run = fit(Setting(form(which), steps=12, size=12, method=LoRA(rank=4)).run())
    assert run.log[-1]["loss"] < 0.6 * run.log[0]["loss"]


def test_a_run_that_continues_draws_the_same_orders() -> None:
    setting = Setting(form("pcgrad"), steps=6, dropout=0.1)
    complete = fit(setting.run())
    half = fit(setting.run(listeners=[Stop(3)]))
    rest = replace(setting, form=form("pcgrad")).run(done=3)
    rest.delta.load_state_dict(half.delta.state_dict())
    update: Descend = rest.update  # type: ignore[assignment]
    update.prepare(rest)
    update.load_state_dict(half.update.state_dict())
    fit(rest)
    assert [*half.log, *rest.log] == complete.log
    assert all(torch.equal(t, learnt(complete)[n]) for n, t in learnt(rest).items())
