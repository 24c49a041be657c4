"""Balancing: each way of weighting against its formula, torch's Adam and torchjd; the wrong versions that are about; what is logged; continuing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from several import NAMES, Setting, Stop, form, learnt
from tunesmith.core import Batch, Run
from tunesmith.engine import fit
from tunesmith.errors import Refusal
from tunesmith.methods import LoRA
from tunesmith.updates.balance import DWA, FAMO, UW, GradNorm, Numbers

WAYS = ("uncertainty", "dwa", "gradnorm", "famo")


def gradient(setting: Setting) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Of one step, and its record."""
    run = replace(setting, plain=True).run()
    before = learnt(run)
    fit(run)
    return {n: before[n] - t for n, t in learnt(run).items()}, dict(run.log[0])


def singles(**more: object) -> dict[str, dict[str, Tensor]]:
    """Each task's own gradient in such a step."""
    return {name: gradient(Setting(form("descend"), weights={n: float(n == name) for n in NAMES}, **more))[0] for name in NAMES}  # type: ignore[arg-type]


def near(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    for n, t in a.items():
        torch.testing.assert_close(b[n], t, rtol=tolerance, atol=tolerance / 50, msg=lambda text, n=n: f"{n}: {text}")


def weighed(said: dict[str, float]) -> dict[str, Tensor]:
    """What the weights in a record make of the single gradients."""
    single = singles()
    return {n: sum(said[f"weight.{name}"] * single[name][n] for name in NAMES) for n in single["a"]}


# ------------------------------------------------------------------------------------------------ common to all


def test_fixed_weights() -> None:
    """Heads too; and what is logged is not weighted."""
    found, record = gradient(Setting(form("descend"), weights={"a": 2.0, "b": 1.0, "c": 0.5}))
    near(found, weighed({"weight.a": 2.0, "weight.b": 1.0, "weight.c": 0.5}))
    plain = gradient(Setting(form("descend")))[1]
    assert {k: record[k] for k in ("loss", *NAMES)} == {k: plain[k] for k in ("loss", *NAMES)}


def test_equal_weights_are_plain_descent() -> None:
    """To the bit, in the first two epochs of DWA."""
    plain, ours = (fit(Setting(form(kind), steps=6, dropout=0.2).run()) for kind in ("descend", "dwa"))
    assert all(torch.equal(t, learnt(ours)[n]) for n, t in learnt(plain).items())


@pytest.mark.parametrize("way", WAYS)
def test_the_first_step_is_near_plain_descent(way: str) -> None:
    """Weights start equal, but for FAMO's, which are as 1 / L from the start; all sum to K."""
    found, record = gradient(Setting(form(way)))
    weights = {name: record[f"weight.{name}"] for name in NAMES}
    assert sum(weights.values()) == pytest.approx(3)
    assert way == "famo" or set(weights.values()) == {1.0}
    near(found, weighed(record))


@pytest.mark.parametrize("way", WAYS)
def test_pieces_and_batches_are_the_whole(way: str) -> None:
    """The second step, so that what was learnt of the first has its say."""
    runs = [
        fit(Setting(form(way), steps=2, method=LoRA(rank=2), **more).run()) for more in ({"size": 12}, {"size": 12, "micro": 14}, {"size": 4, "accumulate": 9})
    ]
    for run in runs[1:]:
        for step, whole in zip(run.log, runs[0].log, strict=True):
            assert {k: v for k, v in step.items() if k in (*NAMES, "loss") or "weight" in k} == pytest.approx(
                {k: v for k, v in whole.items() if k in (*NAMES, "loss") or "weight" in k}, rel=2e-3
            )


@pytest.mark.parametrize("way", WAYS)
def test_what_is_logged_is_unweighted(way: str) -> None:
    """Early stopping and the journal see losses that mean something; the sum that uncertainty weighting minimises goes below 0."""
    run = fit(Setting(form(way), steps=4).run())
    for record in run.log:
        assert record["loss"] == pytest.approx(sum(record[name] for name in NAMES))
        assert all(record[name] > 0 for name in NAMES)
    assert run.log[0]["a"] == pytest.approx(fit(Setting(form("descend")).run()).log[0]["a"])


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_continues_is_the_run(way: str) -> None:
    """Over epochs; what was learnt about the tasks lies in the update's state."""
    setting = Setting(form(way), steps=9, dropout=0.1)
    complete = fit(setting.run())
    half = fit(replace(setting, form=form(way)).run(listeners=[Stop(5)]))
    rest = replace(setting, form=form(way)).run(done=5)
    state = {k: t.clone() for k, t in half.update.state_dict().items()}
    assert any(k.startswith("form.") for k in state)
    rest.delta.load_state_dict(half.delta.state_dict())
    rest.update.prepare(rest)  # type: ignore[attr-defined]
    rest.update.load_state_dict(state)
    fit(rest)
    assert [*half.log, *rest.log] == complete.log
    assert all(torch.equal(t, learnt(complete)[n]) for n, t in learnt(rest).items())
    forgetful = replace(setting, form=form(way)).run(done=5)
    forgetful.delta.load_state_dict(half.delta.state_dict())
    forgetful.update.prepare(forgetful)  # type: ignore[attr-defined]
    forgetful.update.load_state_dict({k: t for k, t in state.items() if not k.startswith("form.")})
    fit(forgetful)
    assert [*half.log, *forgetful.log] != complete.log


@pytest.mark.parametrize("way", WAYS)
def test_it_learns(way: str) -> None:
    run = fit(Setting(form(way), steps=12, size=12, method=LoRA(rank=4)).run())
    assert run.log[-1]["loss"] < 0.5 * run.log[0]["loss"]


def test_numbers_are_moved_as_torch_moves_them() -> None:
    w = nn.Parameter(torch.tensor([0.3, -0.2], dtype=torch.float64))
    adam, ours = torch.optim.Adam([w], lr=0.025, weight_decay=1e-3), Numbers(0.025, decay=1e-3)
    ours.held = {"a": [0.3, 0.0, 0.0, 0.0], "b": [-0.2, 0.0, 0.0, 0.0]}
    for step in range(20):
        w.grad = torch.tensor([math.sin(step), 0.1 * step - 1], dtype=torch.float64)
        adam.step()
        ours.move("a", math.sin(step))
        ours.move("b", 0.1 * step - 1)
    assert [ours["a"], ours["b"]] == pytest.approx(w.tolist(), abs=1e-12)


# ------------------------------------------------------------------------------------------------ uncertainty weighting


def driven(way: UW | DWA | FAMO, losses: list[list[float]], monkeypatch, after: list[list[float]] | None = None, epochs: int = 1) -> list[list[float]]:
    """The weights of each step of a run whose tasks' losses are these; no network."""
    batches = [Batch({"ids": torch.zeros(1)}, name) for name in NAMES[: len(losses[0])]]
    tasks, found = [b.task for b in batches], []
    now = {}
    keyed = lambda own: {(b.task, b.task): torch.tensor(now[b.task], dtype=torch.float64) for b in own}
    monkeypatch.setattr("tunesmith.updates.balance.formed", lambda run, own, *a, **k: keyed(own))
    monkeypatch.setattr("tunesmith.updates.balance.each", lambda run, own, *a, **k: ((b.task, keyed([b])) for b in own))
    monkeypatch.setattr("tunesmith.updates.balance.told", lambda losses, tasks, device: {t: float(losses[t, t]) for t in tasks})
    run = Run.__new__(Run)
    run.__dict__["delta"] = type("Delta", (), {"epoch": 0})()
    monkeypatch.setattr(Run, "parameters", lambda self: {})
    for step, values in enumerate(losses):
        run.delta.epoch = step // epochs
        now.update(zip(tasks, values, strict=True))
        said = way(run, batches, 1, 0).said
        found.append([said[f"weight.{task}"] for task in tasks])
        now.update(zip(tasks, after[step] if after else values, strict=True))
        way.after(run, batches, 1, 0)
    return found


def test_uncertainty_comes_to_rest_at_log_l(monkeypatch) -> None:
    """Where L stands still, s = log L: no decay pulls it to 0."""
    way = UW(speed=0.02)
    driven(way, [[3.0, 0.2]] * 1500, monkeypatch)
    assert [way.s["a"], way.s["b"]] == pytest.approx([math.log(3.0), math.log(0.2)], abs=1e-3)
    wrong = UW(speed=0.02)
    wrong.s.decay = 0.1
    driven(wrong, [[3.0, 0.2]] * 1500, monkeypatch)
    assert abs(wrong.s["a"] - math.log(3.0)) > 0.05  # with decay it drifts off


def falling(steps: int = 40) -> list[list[float]]:
    return [[2.0 * 0.97**t + 0.1 * (t % 3), 0.5 * 0.9**t + 0.05, 1.0 + 0.02 * math.sin(t)] for t in range(steps)]


def test_uncertainty_is_torchjds(monkeypatch) -> None:
    scalarization = pytest.importorskip("torchjd.scalarization")
    theirs, losses = scalarization.UW(3).double(), falling()
    adam, wanted = torch.optim.Adam(theirs.parameters(), lr=0.01), []
    for row in losses:
        values = torch.tensor(row, dtype=torch.float64, requires_grad=True)
        adam.zero_grad()
        theirs(values).backward()
        wanted.append((2 * values.grad).tolist())
        adam.step()
    for mine, other in zip(driven(UW(), losses, monkeypatch), wanted, strict=True):
        assert mine == pytest.approx(other, abs=1e-6)


def test_uncertainty_moves_at_its_own_rate_without_decay_and_outside_the_norm() -> None:
    run = fit(Setting(form("uncertainty", speed=0.05), steps=3, rate=1e-6, clip=1.0).run())
    weights = run.log[-1]
    assert any(abs(weights[f"weight.{name}"] - 1) > 0.05 for name in NAMES)
    plain = fit(Setting(form("descend"), steps=1, rate=1e-6, clip=1.0).run())
    assert run.log[0]["norm"] == plain.log[0]["norm"]


# ------------------------------------------------------------------------------------------------ dynamic weight average


def test_dwa_is_torchjds(monkeypatch) -> None:
    """Four steps an epoch: weights from the means of the last two epochs, not of the last two steps."""
    scalarization = pytest.importorskip("torchjd.scalarization")
    theirs, losses, wanted = scalarization.DWA(2.0), falling(), []
    for step, row in enumerate(losses):
        values = torch.tensor(row, dtype=torch.float64, requires_grad=True)
        theirs(values).backward()
        wanted.append(values.grad.tolist())
        if step % 4 == 3:
            theirs.step()
    found = driven(DWA(), losses, monkeypatch, epochs=4)
    assert found[:8] == [[1.0] * 3] * 8
    for mine, other in zip(found, wanted, strict=True):
        assert mine == pytest.approx(other, abs=1e-6)


def test_dwa_by_hand(monkeypatch) -> None:
    """K exp(r / T) / sum: the task that fell less gets more, and T softens it."""
    losses = [[1.0, 1.0], [0.5, 0.9], [0.4, 0.8]]
    for temperature in (0.5, 2.0):
        e = [math.exp(0.5 / temperature), math.exp(0.9 / temperature)]
        assert driven(DWA(temperature), losses, monkeypatch)[2] == pytest.approx([2 * x / sum(e) for x in e])


# ------------------------------------------------------------------------------------------------ GradNorm


def test_gradnorm_sums_to_k_and_evens_out() -> None:
    """Tasks of equal pace: the one with the larger gradient loses weight. Alpha 0 evens the norms alone."""
    way = GradNorm(alpha=0.0)
    for name in NAMES:
        _ = way.w[name]
    lengths = dict(zip(NAMES, (4.0, 1.0, 0.5), strict=True))
    for _ in range(4000):
        way.turn(dict.fromkeys(NAMES, 1.0), {name: way.w[name] * lengths[name] for name in NAMES})
        assert sum(way.w[name] for name in NAMES) == pytest.approx(3)
    norms = [way.w[name] * lengths[name] for name in NAMES]
    assert max(norms) - min(norms) < 0.1 * max(norms)


def test_gradnorm_pulls_the_slow_task() -> None:
    """Equal norms, one task whose loss has not fallen since its first step: it gains; the more, the larger alpha."""
    found = []
    for alpha in (0.0, 0.5, 1.5):
        way = GradNorm(alpha=alpha)
        for t in range(200):
            norms = {name: way.w[name] for name in "ab"}
            way.turn({"a": 1.0 * 0.99**t, "b": 1.0}, norms)
        found.append(way.w["b"])
    assert found[0] == pytest.approx(1.0, abs=0.05) and found[0] < found[1] < found[2]


def test_gradnorms_reference_is_the_first_step() -> None:
    """LibMTL takes the mean of the first epoch; the paper, L(0)."""
    way = GradNorm()
    for name in "ab":
        _ = way.w[name]
    way.turn({"a": 4.0, "b": 2.0}, {"a": 1.0, "b": 1.0})
    way.turn({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 1.0})
    assert way.first == {"a": [4.0], "b": [2.0]}
    run = fit(Setting(form("gradnorm"), steps=5).run())
    first = run.update.form.first  # type: ignore[attr-defined]
    assert {name: first[name][0] for name in NAMES} == pytest.approx({name: run.log[0][name] for name in NAMES})


@pytest.mark.parametrize("over", ["last", "all"])
def test_gradnorm_reads_the_norms_of_what_is_shared(over: str, monkeypatch) -> None:
    """Of the last block, or of all; heads are nobody's concern."""
    heard: list[dict[str, float]] = []
    turn = GradNorm.turn
    monkeypatch.setattr(GradNorm, "turn", lambda self, losses, norms: (heard.append(dict(norms)), turn(self, losses, norms))[1])
    gradient(Setting(form("gradnorm", over=over), size=12, micro=20))
    single = singles(size=12)
    part = lambda n: not n.startswith("heads.") and (over == "all" or "layer.2." in n)
    for name in NAMES:
        wanted = math.sqrt(sum(float(t.square().sum()) for n, t in single[name].items() if part(n)))
        assert heard[0][name] == pytest.approx(wanted, rel=1e-4)


def test_gradnorms_weights_follow_the_published_gradient() -> None:
    """dL/dw_k of |G_k - target| with the target held constant, by autograd."""
    losses, first, bare = {"a": 1.0, "b": 0.4}, {"a": [2.0], "b": [0.5]}, {"a": 3.0, "b": 0.7}
    way = GradNorm()
    w = torch.tensor([way.w["a"], way.w["b"]], dtype=torch.float64, requires_grad=True)
    way.first = first
    norms = w * torch.tensor(list(bare.values()), dtype=torch.float64)
    ratios = torch.tensor([losses[k] / first[k][0] for k in "ab"], dtype=torch.float64)
    target = (norms.mean() * (ratios / ratios.mean()) ** 1.5).detach()
    (norms - target).abs().sum().backward()
    moved: list[float] = []
    way.w.move = lambda task, gradient: moved.append(gradient)  # type: ignore[method-assign]
    way.turn(losses, {k: float(n) for k, n in zip("ab", norms.detach(), strict=True)})
    assert moved == pytest.approx(w.grad.tolist())


# ------------------------------------------------------------------------------------------------ FAMO


def test_famo_is_torchjds(monkeypatch) -> None:
    scalarization = pytest.importorskip("torchjd.scalarization")
    theirs, losses, wanted = scalarization.FAMO(3).double(), falling(), []
    after = [[0.97 * a, 0.9 * b, 1.01 * c] for a, b, c in losses]
    for row, then in zip(losses, after, strict=True):
        values = torch.tensor(row, dtype=torch.float64, requires_grad=True)
        theirs(values).backward()
        wanted.append((3 * values.grad).tolist())
        theirs.update(torch.tensor(then, dtype=torch.float64))
    for mine, other in zip(driven(FAMO(), losses, monkeypatch, after), wanted, strict=True):
        assert mine == pytest.approx(other, abs=1e-6)


def test_famo_reads_the_same_batches_again_after_the_step() -> None:
    """With the same dropout: where nothing moves, no loss has fallen."""
    still = Setting(form("famo"), steps=3, rate=1e-12, dropout=0.3)
    run = fit(still.run())
    assert all(abs(first) < 1e-6 for _, first, _, _ in run.update.form.xi.held.values())  # type: ignore[attr-defined]
    moved = fit(replace(still, form=form("famo"), rate=1e-2).run())
    assert any(abs(first) > 1e-3 for _, first, _, _ in moved.update.form.xi.held.values())  # type: ignore[attr-defined]
    assert all(p.grad is None for p in moved.net.parameters())


def test_famo_needs_losses_above_its_least(monkeypatch) -> None:
    with pytest.raises(Refusal, match="logarithms"):
        driven(FAMO(), [[1.0, -0.2]], monkeypatch)
    found = driven(FAMO(least=-1.0), [[1.0, -0.2]], monkeypatch)[0]
    assert found == pytest.approx([2 * x / (0.5 + 1.25) for x in (0.5, 1.25)])


# ------------------------------------------------------------------------------------------------ recipes


def test_a_kind_has_its_options_beside_the_updates_own() -> None:
    from tunesmith.recipe import recipe

    base = {"model": "minilm", "tasks": {"a": {"task": "classify", "data": "desk"}, "b": {"task": "tag", "data": "desk"}}}
    made = recipe({**base, "update": {"kind": "gradnorm", "alpha": 1, "rate": 1e-3}})
    assert (made.update.kind, made.update.rate, made.built_update("descend")) == ("gradnorm", 1e-3, GradNorm(alpha=1.0))
    assert made.plain()["update"]["alpha"] == 1 and recipe(made.plain()) == made
    for update, words in (
        ({"kind": "gradnorm", "alpah": 1}, "did you mean `alpha`"),
        ({"kind": "gradnorm", "alpha": -1}, "greater than or equal to 0"),
        ({"kind": "pcgrad", "c": 1}, "unknown key `update.c`"),
        ("pcgard", "did you mean `pcgrad`"),
        ({"kind": "uncertainty", "s": 1}, "unknown key `update.s`"),
    ):
        with pytest.raises(Refusal) as refused:
            recipe({**base, "update": update})
        assert words in str(refused.value)
