"""Advantages and the surrogate over them: identities of the literature, each with the wrong version that it would not pass (docs: research of RL)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tunesmith.core import Batch, Ragged
from tunesmith.errors import Refusal
from tunesmith.objectives import Reinforce
from tunesmith.objectives.algorithms import ALGORITHMS
from tunesmith.objectives.reinforce import DIVERGENCES
from tunesmith.sources.advantages import Estimator, adapted, gae, group_mean, others_mean, spread, sums, token_rewards, whitened

LENGTHS = (3, 1, 5, 2, 4, 4, 2, 3)
N, R = sum(LENGTHS), len(LENGTHS)


def rows(seed: int, scale: float = 1.0) -> Ragged:
    return Ragged(torch.randn(N, generator=torch.Generator().manual_seed(seed)) * scale, LENGTHS)


# ------------------------------------------------------------------------------------------------ advantages


@pytest.mark.parametrize(("discount", "trace"), [(1.0, 0.95), (0.9, 0.7), (1.0, 1.0), (0.5, 0.0)])
def test_gae_is_the_sum_of_all_later_surprises(discount: float, trace: float) -> None:
    """Brute force over the definition: A_t = sum_k (gamma lambda)^k delta_{t+k}."""
    rewards, values = rows(0), rows(1)
    for r, v, a in zip(rewards.rows(), values.rows(), gae(rewards, values, discount, trace).rows(), strict=True):
        after = torch.cat([v[1:], torch.zeros(1)])
        delta = r + discount * after - v
        want = torch.stack([sum((discount * trace) ** k * delta[t + k] for k in range(len(r) - t)) for t in range(len(r))])
        torch.testing.assert_close(a, want)


def test_with_lambda_and_gamma_one_it_is_return_minus_value() -> None:
    rewards, values = rows(0), rows(1)
    to_go = torch.cat([r.flip(0).cumsum(0).flip(0) for r in rewards.rows()])
    torch.testing.assert_close(gae(rewards, values, 1.0, 1.0).values, to_go - values.values)


def test_rows_do_not_see_each_other() -> None:
    rewards, values = rows(0), rows(1)
    together = gae(rewards, values, 0.9, 0.9)
    for i in range(R):
        torch.testing.assert_close(gae(rewards.pick([i]), values.pick([i]), 0.9, 0.9).values, together.rows()[i])


def test_the_rewards_of_a_sample_sum_to_its_score_less_the_divergence() -> None:
    """sum_t r_t = score - beta KL, with the score on the last written token (not on what follows it, which is in no loss)."""
    logp, reference, score = rows(2), rows(3), torch.randn(R)
    placed = Ragged(torch.zeros(N), LENGTHS)
    placed.values[placed.starts() + torch.tensor(LENGTHS) - 1] = score
    found = token_rewards(placed, logp.values, reference.values, 0.3)
    torch.testing.assert_close(sums(found), score - 0.3 * sums(Ragged(logp.values - reference.values, LENGTHS)))


@given(st.integers(0, 10_000), st.sampled_from([2, 4, 8]), st.floats(-5, 5))
@example(1841, 2, 3.4865220308218348)  # two samples whose rewards differ by less than a thousandth
@settings(max_examples=60, deadline=None)
def test_a_constant_added_to_all_rewards_of_a_group_changes_nothing(seed: int, size: int, constant: float) -> None:
    """In fp64: a sum of constant and reward that is rounded to fp32 differs by what a near tie, divided by its spread, shows."""
    scores = torch.zeros(N, dtype=torch.float64)
    ends = Ragged(scores, LENGTHS).starts() + torch.tensor(LENGTHS) - 1
    scores[ends] = torch.randn(R, generator=torch.Generator().manual_seed(seed)).double()
    more = scores.clone()
    more[ends] += constant
    for kind, scale in (("group", True), ("group", False), ("others", False), ("mean", False)):
        estimate = Estimator(kind, scale)  # type: ignore[arg-type]
        one, two = (estimate(Ragged(s, LENGTHS), None, size, torch.ones(R, dtype=torch.float64))[0].values for s in (scores, more))
        torch.testing.assert_close(one, two, atol=1e-9, rtol=1e-9)


def test_leave_one_out_is_the_group_mean_times_g_over_g_minus_one() -> None:
    total = torch.randn(R)
    for size in (2, 4, 8):
        torch.testing.assert_close(total - others_mean(total, size, torch.ones(R)), size / (size - 1) * (total - group_mean(total, size, torch.ones(R))))


@pytest.mark.parametrize(("kind", "scale"), [("group", True), ("group", False), ("others", False)])
def test_a_group_of_one_and_a_group_without_spread_say_nothing(kind: str, scale: bool) -> None:
    """The wrong version returns the raw score of a group of one, or divides by 0."""
    scores = rows(5)
    alone = Estimator(kind, scale)(scores, None, 1, torch.ones(R))[0].values  # type: ignore[arg-type]
    assert torch.equal(alone, torch.zeros(N))
    flat = Ragged(torch.cat([torch.full((n,), 1.0 / n) for n in LENGTHS]), LENGTHS)
    found = Estimator(kind, scale)(flat, None, 4, torch.ones(R))[0].values  # type: ignore[arg-type]
    assert found.abs().max() < 5e-3 and found.isfinite().all()


def test_grpo_divides_by_the_deviation_of_the_group() -> None:
    total = torch.tensor([1.0, 0, 0, 1, 5, 5, 5, 9])
    want = total.view(2, 4).std(1, keepdim=True).expand(-1, 4).reshape(-1)
    torch.testing.assert_close(spread(total, 4, torch.ones(8)), want)


def test_what_cannot_be_scored_is_in_no_mean() -> None:
    counted = torch.tensor([1.0, 0, 1, 1, 1, 1, 1, 1])
    with_it, without = rows(5), rows(5)
    without.values[3] = 1000.0  # the one token of row 1
    for kind in ("group", "others", "mean"):
        one, two = (Estimator(kind, whiten=True)(r, None, 4, counted)[0] for r in (with_it, without))  # type: ignore[arg-type]
        assert torch.equal(one.values, two.values)
        assert torch.equal(one.rows()[1], torch.zeros(1))


def test_whitening_is_over_the_whole_rollout_and_through_the_mask() -> None:
    """Not by micro-batch, and not over what is masked: both wrong versions give other numbers."""
    x, mask = torch.randn(40) * 3 + 2, (torch.arange(40) % 3 > 0).float()
    found = whitened(x, mask)
    kept = found[mask.bool()]
    torch.testing.assert_close(kept.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(kept.var(unbiased=False), torch.tensor(1.0))
    assert not found[mask == 0].any()
    halves = torch.cat([whitened(x[:20], mask[:20]), whitened(x[20:], mask[20:])])
    assert not torch.allclose(found, halves, atol=1e-2)
    assert not torch.allclose(found, whitened(x, torch.ones(40)) * mask, atol=1e-2)


def test_an_adaptive_beta_holds_the_divergence() -> None:
    assert adapted(0.1, 6.0, 6.0, 1000, 100) == 0.1
    assert adapted(0.1, 60.0, 6.0, 1000, 100) == pytest.approx(0.1 * 1.02)
    assert adapted(0.1, 0.0, 6.0, 1000, 100) == pytest.approx(0.1 * 0.98)


# ------------------------------------------------------------------------------------------------ the surrogate


def learner(**options: object) -> Reinforce:
    return Reinforce("generate", reward="exact", **options)  # type: ignore[arg-type]


def batch_of(lengths: tuple[int, ...] = LENGTHS, seed: int = 0, drift: float = 0.2, beta: float = 0.0) -> tuple[Batch, Tensor]:
    """Columns as rollouts give them, and the log-probabilities of a policy that has moved."""
    draw = lambda s, scale: Ragged(torch.randn(sum(lengths), generator=torch.Generator().manual_seed(seed + s)) * scale, lengths)
    old = draw(0, 1.0)
    columns = {
        "ids": Ragged(torch.zeros(sum(lengths) + len(lengths), dtype=torch.long), tuple(n + 1 for n in lengths)),
        "label": Ragged(torch.zeros(sum(lengths), dtype=torch.long), lengths),
        "old": old, "reference": Ragged(old.values + draw(1, 0.3).values, lengths), "advantage": draw(2, 1.0), "value": draw(3, 1.0), "return": draw(4, 1.0),
        "weight": torch.ones(len(lengths)), "beta": torch.full((len(lengths),), beta),
    }  # fmt: skip
    return Batch(columns), old.values + draw(5, drift).values


def loss(objective: Reinforce, batch: Batch, logp: Tensor, value: Tensor | None = None) -> Tensor:
    signals = {"logp": logp} | ({"value": batch["value"] * 0.5 if value is None else value} if objective.values else {})
    count = objective.count(batch)
    return sum(v / count[k] for k, v in objective.score(signals, batch).items())  # type: ignore[return-value]


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("mean", ["token", "sequence", "constant", "sum"])
def test_every_mean_is_the_same_however_rows_are_cut(name: str, mean: str) -> None:
    """Sums over shards, divided once by the units of all: a local denominator would give another loss."""
    objective = learner(algorithm=name, mean=mean)
    batch, logp = batch_of(beta=0.05)
    whole = loss(objective, batch, logp)
    count = objective.count(batch)
    parts, start = torch.zeros(()), 0
    for first, stop in ((0, 2), (2, 3), (3, 8)):
        piece = batch.take(first, stop)
        own = logp[start : start + len(piece["label"])]
        start += len(own)
        signals = {"logp": own, **({"value": piece["value"] * 0.5} if objective.values else {})}
        parts = parts + sum(v / count[k] for k, v in objective.score(signals, piece).items())
    torch.testing.assert_close(parts, whole)


def test_means_by_hand() -> None:
    lengths = (10, 100)
    batch, _ = batch_of(lengths)
    advantage = torch.cat([torch.full((10,), 1.0), torch.full((100,), 3.0)])
    batch = batch.plus(advantage=Ragged(advantage, lengths))
    at = lambda mean: -float(loss(learner(algorithm="dr_grpo", mean=mean, length=200), batch, batch["old"]))
    assert at("token") == pytest.approx((10 * 1 + 100 * 3) / 110)
    assert at("sequence") == pytest.approx((1 + 3) / 2)
    assert at("constant") == pytest.approx((10 * 1 + 100 * 3) / (2 * 200))
    assert at("sum") == pytest.approx((10 * 1 + 100 * 3) / 2)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_masked_rows_are_in_neither_the_sum_nor_the_units(name: str) -> None:
    objective = learner(algorithm=name)
    batch, logp = batch_of(beta=0.05)
    kept = [0, 1, 3, 4, 6, 7]
    weight = torch.tensor([1.0, 1, 0, 1, 1, 0, 1, 1])
    rest = Ragged(logp, LENGTHS).pick(kept).values
    torch.testing.assert_close(loss(objective, batch.plus(weight=weight), logp), loss(objective, batch.pick(kept), rest))


def test_without_clipping_the_first_step_is_the_policy_gradient() -> None:
    """PPO with epsilon = inf, at ratio 1: the gradient of sum A log pi, to 1e-6."""
    batch, _ = batch_of()
    logp = batch["old"].clone().requires_grad_()
    loss(learner(algorithm="ppo", low=math.inf, high=math.inf, value_weight=0.0), batch, logp).backward()
    torch.testing.assert_close(logp.grad, -batch["advantage"] / N, atol=1e-6, rtol=1e-6)


def test_the_ratio_is_to_the_policy_that_wrote_and_not_to_this_one() -> None:
    """`logp - logp.detach()` for a log ratio is 0 in every epoch, and clips nothing ever."""
    objective = learner(algorithm="grpo", beta=0.0)
    batch, _ = batch_of()
    logp = (batch["old"] + 1.0).requires_grad_()  # ratio e
    loss(objective, batch, logp).backward()
    assert logp.grad is not None
    up = batch["advantage"] > 0
    assert torch.equal(logp.grad[up], torch.zeros_like(logp.grad[up])), "gains beyond the clip are not rewarded"
    assert (logp.grad[~up] > 0).all()
    wrong = (logp.detach() - logp.detach()).exp() * batch["advantage"]
    assert not torch.allclose(wrong, torch.minimum(math.e * batch["advantage"], 1.2 * batch["advantage"]))


def test_dual_clip_bounds_what_a_bad_sample_can_count() -> None:
    batch, _ = batch_of()
    far = batch["old"] + 5.0
    plain, dual = (-float(loss(learner(algorithm="dapo", **o), batch, far)) for o in ({}, {"dual": 3.0}))
    bad = batch["advantage"].clamp(max=0).sum() / N
    good = 1.28 * batch["advantage"].clamp(min=0).sum() / N
    assert plain == pytest.approx(float(good + math.exp(5) * bad), rel=1e-4)
    assert dual == pytest.approx(float(good + 3 * bad), rel=1e-4)


def test_one_ratio_a_sample_sums_or_averages_its_tokens() -> None:
    batch, logp = batch_of(drift=0.05)
    log = Ragged(logp - batch["old"], LENGTHS)
    advantage = Ragged(torch.arange(1.0, R + 1).repeat_interleave(torch.tensor(LENGTHS)), LENGTHS)
    batch = batch.plus(advantage=advantage)
    for name, pool in (("rloo", sums(log)), ("gspo", sums(log) / torch.tensor(LENGTHS))):
        want = -(pool.exp() * torch.arange(1.0, R + 1)).mean()
        torch.testing.assert_close(loss(learner(algorithm=name, low=9.0, high=9.0, beta=0.0), batch, logp), want)


def test_the_critic_is_clipped_around_what_it_said() -> None:
    objective = learner(algorithm="ppo", value_weight=1.0, value_clip=0.2)
    batch, _ = batch_of()
    old, returns = batch["value"], batch["return"]
    value = (old + torch.randn(N)).requires_grad_()
    found = objective.score({"logp": batch["old"], "value": value}, batch)["value"] / N
    near = old + (value - old).clamp(-0.2, 0.2)
    torch.testing.assert_close(found, 0.5 * torch.maximum((value - returns) ** 2, (near - returns) ** 2).mean())


# ------------------------------------------------------------------------------------------------ estimates of the KL


def exact(logits: Tensor, base: Tensor) -> Tensor:
    logp = logits.log_softmax(-1)
    return (logp.exp() * (logp - base.log_softmax(-1))).sum()


@pytest.mark.parametrize("epochs", ["first", "later"])
@pytest.mark.parametrize("estimate", ["k1", "k2", "k3", "k3 without the ratio"])
def test_only_k2_and_ratio_times_k3_have_the_gradient_of_the_divergence(estimate: str, epochs: str) -> None:
    """Expectations over a small categorical policy, exactly. k1 in the loss has none; k3 alone that of KL(ref | pi)."""
    torch.manual_seed(0)
    logits, base = torch.randn(6, requires_grad=True), torch.randn(6)
    old = (logits.detach() if epochs == "first" else logits.detach() + 0.3 * torch.randn(6)).log_softmax(-1)
    logp = logits.log_softmax(-1)
    r, ratio = base.log_softmax(-1) - logp, (logp - old).exp()
    forms = {**DIVERGENCES, "k1": lambda r, ratio: -ratio.detach() * r, "k3 without the ratio": lambda r, ratio: ratio.detach() * (r.exp() - r - 1)}
    (found,) = torch.autograd.grad((old.exp() * forms[estimate](r, ratio)).sum(), logits, retain_graph=True)
    (want,) = torch.autograd.grad(exact(logits, base), logits, retain_graph=True)
    (reverse,) = torch.autograd.grad(exact(base, logits), logits)
    close = lambda a, b: torch.allclose(a, b, atol=1e-6)
    assert close(found, want) == (estimate in ("k2", "k3"))
    if estimate == "k1":
        assert close(found, torch.zeros(6))
    if estimate.endswith("ratio"):
        assert close(found, reverse)


def test_the_value_of_ratio_times_k3_is_the_divergence_in_every_epoch() -> None:
    torch.manual_seed(0)
    logits, base, old = torch.randn(6), torch.randn(6), torch.randn(6).log_softmax(-1)
    logp = logits.log_softmax(-1)
    found = (old.exp() * DIVERGENCES["k3"](base.log_softmax(-1) - logp, (logp - old).exp())).sum()
    torch.testing.assert_close(found, exact(logits, base))


def test_the_divergence_holds_the_policy_and_is_not_a_constant() -> None:
    """Under no_grad or with its sign turned it would not."""
    batch, logp = batch_of(beta=0.05)
    logp = logp.clone().requires_grad_()
    objective = learner(algorithm="grpo", estimate="k2")
    objective.score({"logp": logp}, batch)["divergence"].backward()
    assert logp.grad is not None
    far = logp.detach() > batch["reference"]
    assert (logp.grad[far] > 0).all() and (logp.grad[~far] < 0).all()


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kl": "loss", "estimate": "k1"}, "k1 in the loss"),
        ({"kl": "reward", "estimate": "k3"}, "k3 in the reward"),
        ({"group": 1}, "compares the samples of one prompt"),
        ({"environment": "tictactoe"}, "one of them"),
        ({"reward": None}, "needs a reward"),
        ({"target": 3.0, "beta": 0.0}, "stays at 0"),
    ],
)
def test_what_is_senseless_is_refused(options: dict, words: str) -> None:
    with pytest.raises(Refusal, match=words):
        Reinforce("generate", **{"reward": "exact", **options})


def test_rows_of_another_kind_are_refused() -> None:
    with pytest.raises(Refusal, match="prefer"):
        try:
            Reinforce("preferred", reward="exact")
        except Refusal as e:
            raise Refusal(str(e)) from e


def test_groups_must_fill_a_rollout() -> None:
    learner(group=8).accept({}, 32)
    with pytest.raises(Refusal, match="no whole number of groups"):
        learner(group=8).accept({}, 20)


# ------------------------------------------------------------------------------------------------ it learns


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo", "rloo", "reinforce"])
def test_a_two_armed_bandit_converges(name: str) -> None:
    """Arm 0 pays with probability 0.3, arm 1 with 0.7; the control, where both pay 0.5, does not run away by more than chance does."""
    objective = learner(algorithm=name, beta=0.0)
    estimator = Estimator(objective.row.baseline, objective.row.scale)  # type: ignore[arg-type]
    torch.manual_seed(0)
    for pays, least in (((0.3, 0.7), 0.9), ((0.7, 0.3), 0.9)):
        logits = torch.zeros(2, requires_grad=True)
        for _ in range(150):
            logp = logits.log_softmax(-1)
            arm = torch.multinomial(logp.detach().exp(), 64, replacement=True)
            score = (torch.rand(64) < torch.tensor(pays)[arm]).float()
            one = tuple([1] * 64)
            advantage, _ = estimator(Ragged(score, one), None, objective.row.group, torch.ones(64))
            columns = {"label": Ragged(arm, one), "old": Ragged(logp.detach()[arm], one), "reference": Ragged(logp.detach()[arm], one), "advantage": advantage}
            batch = Batch({**columns, "ids": Ragged(arm, one), "weight": torch.ones(64), "beta": torch.zeros(64)})
            (grad,) = torch.autograd.grad(loss(objective, batch, logp[arm]), logits)
            with torch.no_grad():
                logits -= (100.0 if objective.row.mean == "constant" else 1.0) * grad
        assert logits.detach().softmax(-1)[int(pays[1] > pays[0])] > least
