"""Preferences: values by hand, trl's values, gradients in closed form; the first loss compares the base with itself; a pair is never parted; the reference
is the base's and stays so; a run that continues, or is cut in pieces, is the run."""

from __future__ import annotations

import math
import types
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_training import Stop, descend, mounted, near, weights
from torch import Tensor

from tiny import network, rows, stir
from tunesmith.core import Batch, Delta, Method, Ragged, Run, Source, Stage
from tunesmith.engine import fit
from tunesmith.errors import Refusal
from tunesmith.job import enriched
from tunesmith.methods import METHODS, BitFit, Full, Layers, LoRA, Prefix
from tunesmith.networks.transformer import Transformer
from tunesmith.objectives import Prefer
from tunesmith.objectives.prefer import LOSSES, answer_logp
from tunesmith.reference import elsewhere, partners, reference
from tunesmith.sources.features import Features
from tunesmith.sources.table import Table
from tunesmith.updates import UPDATES, Descend

SIZES = (5, 9, 7, 12, 8, 6, 10, 6, 8, 5, 7, 11)  # six pairs
PAIRED = [name for name, row in LOSSES.items() if "preferred" in row.kinds]


def columns(name: str = "llama:lm", kind: str = "preferred") -> dict[str, Tensor | Ragged]:
    """Twelve rows: their last tokens, more of longer ones, are the answer. Rows of a pair begin alike."""
    ids = rows(*SIZES)
    found: dict[str, Tensor | Ragged] = {"ids": ids}
    answer = tuple(n // 2 for n in SIZES)
    if name.startswith("t5"):
        found |= dict.fromkeys(("target", "label"), rows(*answer, seed=2))
    else:
        found["at"] = Ragged(torch.cat([torch.arange(n - a - 1, n - 1) for n, a in zip(SIZES, answer, strict=True)]), answer)
        found["label"] = Ragged(torch.cat([row[-a:] for row, a in zip(ids.rows(), answer, strict=True)]), answer)
    if kind == "judged":
        return {**found, "good": (torch.arange(12) % 3 == 0).float()}
    return {**found, "group": torch.arange(6).repeat_interleave(2), "side": torch.arange(2).repeat(6)}


def source_of(delta: Delta, loss: Prefer, table: Table | Features) -> Any:
    """As job.py puts it together: of what a source may ask, these need the delta alone."""
    setting: Any = types.SimpleNamespace(delta=delta, told=lambda what: lambda done, total: None)
    return enriched(table, loss.needs, setting)


def run_of(net: Transformer, delta: Delta, loss: Prefer, source: Source, steps: int = 1, update: Descend | None = None, **more: object) -> Run:
    update = update or Descend(rate=1e-2)
    update = replace(update, form=UPDATES["gradcache" if loss.whole else "descend"]())
    return Run(net, delta, loss, [Stage("main", source, steps, 3)], update, **more)


def first_loss(name: str, method: Method, loss: Prefer, size: int = 6) -> float:
    net, delta = mounted(name, method)
    return fit(run_of(net, delta, loss, source_of(delta, loss, Table(columns(name), size=size)))).log[0]["loss"]


# ------------------------------------------------------------------------------------------------ values


def scored(loss: str, kind: str = "preferred", **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The sum over two pairs, with the signal it came from and its gradient. logp, reference and lengths are round numbers."""
    signal = torch.tensor([-4.0, -6.0, -9.0, -5.0], requires_grad=True)
    lengths = (2, 3, 3, 5)
    more = {"reference": torch.tensor([-5.0, -5.0, -8.0, -7.0]), "other_reference": torch.tensor([-9.0, -9.0, -9.0, -9.0])}
    batch = Batch({"ids": Ragged(torch.zeros(4), (1,) * 4), "label": Ragged(torch.zeros(13), lengths), "side": torch.tensor([0, 1, 0, 1]), **more})
    if kind == "judged":
        batch = batch.plus(good=torch.tensor([1.0, 0.0, 0.0, 1.0]))
    made = Prefer(kind, loss, **options)
    read = {"reward": signal} if loss == "reward" else {"logp": signal, "other": torch.tensor([-8.0, -9.0, -8.5, -9.0])}
    total = made.score(read, batch)["task"]
    total.backward()
    assert made.count(batch)["task"] == (4 if loss == "kto" else 2)
    return total.detach(), signal.detach(), signal.grad  # type: ignore[return-value]


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def odds(x: float) -> float:
    return x - math.log(1 - math.exp(x))


WANTED = {  # log-ratios are 1, -1, -1, 2; means a token -2, -2, -3, -1; z0 = 0.375
    "dpo": (dict(beta=0.5), softplus(-0.5 * 2) + softplus(0.5 * 3)),
    "dpo-smooth": (dict(beta=0.5, label_smoothing=0.2), 0.8 * (softplus(-1) + softplus(1.5)) + 0.2 * (softplus(1) + softplus(-1.5))),
    "dpo-sft": (dict(beta=0.5, sft=2.0), softplus(-1) + softplus(1.5) + 2 * (2 + 3)),
    "ipo": (dict(beta=0.25), (1 / 2 + 1 / 3 - 2) ** 2 + (-1 / 3 - 2 / 5 - 2) ** 2),
    "kto": (dict(beta=0.5, desirable=2.0), sum(
        w * sigmoid(s * 0.5 * (r - 0.375)) for w, s, r in ((2, -1, 1), (1, 1, -1), (2, -1, -1), (1, 1, 2))
    )),
    "orpo": (dict(beta=0.5), 2 + 3 + 0.5 * (softplus(odds(-2) - odds(-2)) + softplus(odds(-1) - odds(-3)))),
    "simpo": (dict(beta=2.0, gamma=0.5), softplus(-(0 - 0.5)) + softplus(-(2 * -2 - 0.5))),
    "reward": (dict(center=0.1), softplus(-2) + 0.1 * 100 + softplus(4) + 0.1 * 196),
}  # fmt: skip


@pytest.mark.parametrize("case", WANTED)
def test_values_by_hand(case: str) -> None:
    options, wanted = WANTED[case]
    loss = case.partition("-")[0]
    found, _, _ = scored(loss, "reward" if loss == "reward" else "preferred", **options)
    assert found.item() == pytest.approx(wanted, rel=1e-6)


def test_verdicts_by_hand() -> None:
    found, _, _ = scored("kto", "judged", beta=0.5, undesirable=3.0)
    wanted = sum(w * sigmoid(s * 0.5 * (r - 0.375)) for w, s, r in ((1, -1, 1), (3, 1, -1), (3, 1, -1), (1, -1, 2)))
    assert found.item() == pytest.approx(wanted, rel=1e-6)


def test_the_gradient_of_dpo_in_closed_form() -> None:
    """-beta sigmoid(-beta margin) (grad logp_w - grad logp_l), Rafailov et al. 2023, after eq. 7."""
    _, _, grad = scored("dpo", beta=0.5)
    pull = [0.5 * sigmoid(-0.5 * margin) for margin in (2, -3)]
    torch.testing.assert_close(grad, torch.tensor([-pull[0], pull[0], -pull[1], pull[1]]))


def test_a_mean_over_tokens_is_another_loss() -> None:
    """The wrong version: per-token averages in DPO forget that a long answer's ratio is the sum."""
    found, signal, _ = scored("dpo", beta=0.5)
    lengths, reference_ = torch.tensor([2.0, 3, 3, 5]), torch.tensor([-5.0, -5, -8, -7])
    ratio = (signal - reference_) / lengths
    wrong = -F.logsigmoid(0.5 * (ratio[0::2] - ratio[1::2])).sum()
    assert abs(wrong.item() - found.item()) > 0.1


@pytest.mark.parametrize("values", [(-3.0, -3.0), (-1e-4, -20.0)])
def test_odds_stay_finite(values: tuple[float, float]) -> None:
    """Where an answer is nearly certain, 1 - p is nearly 0."""
    signal = torch.tensor([values[0], values[1]], requires_grad=True)
    batch = Batch({"ids": Ragged(torch.zeros(2), (1, 1)), "label": Ragged(torch.zeros(2), (1, 1)), "side": torch.tensor([0, 1])})
    Prefer("preferred", "orpo").score({"logp": signal}, batch)["task"].backward()
    assert signal.grad is not None and signal.grad.isfinite().all()


def test_the_distance_of_kto_is_at_least_zero_and_takes_no_gradient() -> None:
    batch = Batch({"ids": Ragged(torch.zeros(2), (1, 1)), "good": torch.tensor([1.0, 0.0]), "reference": torch.zeros(2), "other_reference": torch.zeros(2)})
    learn, losses = Prefer("judged", desirable=2.0), []
    for other in (-4.0, 0.0, 4.0):
        far = torch.full((2,), other, requires_grad=True)
        total = learn.score({"logp": torch.zeros(2, requires_grad=True), "other": far}, batch)["task"]
        total.backward()
        assert far.grad is None
        losses.append(total.item())
    assert losses[0] == losses[1] == 1.5
    assert losses[2] == pytest.approx(2 * sigmoid(0.4) + sigmoid(-0.4))


# ------------------------------------------------------------------------------------------------ trl

POLICY = torch.tensor([[-1.0, -3.0, 0.0, 0.0], [-2.0, -5.0, -2.0, 0.0], [-2.0, -2.0, -2.0, 0.0], [-0.5, -1.5, -2.0, -1.0]])  # by token: w, w, l, l
REFERENCE = torch.tensor([-5.0, -8.0, -5.0, -7.0])
MASK = torch.tensor([[0, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 1]])


def ours(loss: str, kind: str = "preferred", **options: Any) -> float:
    """The mean over what TRL's tensors hold: its batch is all chosen, then all rejected; ours alternates."""
    order = torch.tensor([0, 2, 1, 3]) if kind == "preferred" else torch.arange(4)
    batch = {
        "ids": Ragged(torch.zeros(4), (1,) * 4),
        "reference": REFERENCE[order],
        "other_reference": torch.full((4,), -9.0),
        "side": torch.tensor([0, 1, 0, 1]),
    }
    lengths = tuple(MASK.sum(1)[order].tolist())
    batch |= {"label": Ragged(torch.zeros(sum(lengths)), lengths), **({"good": torch.tensor([1.0, 1, 0, 0])} if kind == "judged" else {})}
    learn = Prefer(kind, loss, **options)
    read = {"logp": POLICY.sum(1)[order], "other": torch.tensor([-8.0, -9.0, -8.5, -9.0])}
    return (learn.score(read, Batch(batch))["task"] / learn.count(Batch(batch))["task"]).item()


def trainer(cls: type, **attributes: Any) -> Any:
    """A trainer without a model or data: only what its loss looks at."""
    made = object.__new__(cls)
    same = lambda x: x
    accelerator = types.SimpleNamespace(device=torch.device("cpu"), gather=same, gather_for_metrics=same, unwrap_model=same)
    bag = __import__("collections").defaultdict(lambda: __import__("collections").defaultdict(list))
    base = dict(accelerator=accelerator, model=torch.nn.Linear(1, 1), _metrics=bag, aux_loss_enabled=False, _total_train_tokens=0, _tp_size=1)
    for name, value in {**base, "precompute_ref_logps": True, **attributes}.items():
        setattr(made, name, value)
    return made


def said(logp: Tensor) -> Any:
    """A model whose output is these log-probabilities."""
    zeros = torch.zeros_like(logp)
    return lambda **inputs: types.SimpleNamespace(log_probs=logp, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


@pytest.mark.parametrize(("theirs", "loss", "options"), [("sigmoid", "dpo", {}), ("ipo", "ipo", {}), ("sigmoid", "dpo", {"beta": 0.7})])
def test_pairs_cost_what_trl_says(theirs: str, loss: str, options: dict[str, float]) -> None:
    trl = pytest.importorskip("trl")
    beta = options.get("beta", 0.1)
    made = trainer(
        trl.DPOTrainer,
        beta=beta,
        loss_types=[theirs],
        loss_weights=[1.0],
        f_divergence_type="reverse_kl",
        ld_alpha=None,
        use_weighting=False,
        label_smoothing=0.0,
    )
    inputs = {"input_ids": torch.zeros(4, 5, dtype=torch.long), "attention_mask": torch.ones(4, 5), "completion_mask": MASK}
    inputs |= {"ref_chosen_logps": REFERENCE[:2], "ref_rejected_logps": REFERENCE[2:]}
    assert made._compute_loss(said(POLICY), inputs, False).item() == pytest.approx(ours(loss, **options), rel=1e-5)


def test_judged_answers_cost_what_trl_says() -> None:
    trl = pytest.importorskip("trl")
    made = trainer(trl.KTOTrainer, beta=0.3, loss_type="kto", calculate_KL=True, desirable_weight=1.5, undesirable_weight=0.5)
    made._compute_kl_logps = lambda model, batch: torch.tensor([-8.0, -9.0, -8.5, -9.0])
    inputs = {
        "input_ids": torch.zeros(4, 5, dtype=torch.long),
        "attention_mask": torch.ones(4, 5),
        "completion_mask": MASK,
        "label": torch.tensor([True, True, False, False]),
    }
    inputs |= {"ref_logps": REFERENCE, "ref_KL_logps": torch.full((4,), -9.0)}
    wanted = ours("kto", "judged", beta=0.3, desirable=1.5, undesirable=0.5)
    assert made._compute_loss(said(POLICY), inputs, False).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_simpo_costs_what_trl_says(smoothing: float) -> None:
    pytest.importorskip("trl")
    from trl.experimental.cpo import CPOTrainer

    made = trainer(CPOTrainer, beta=2.0, alpha=0.0, simpo_gamma=0.5, loss_type="simpo", label_smoothing=smoothing)
    means = POLICY.sum(1) / MASK.sum(1)
    assert made.cpo_loss(means[:2], means[2:])[0].mean().item() == pytest.approx(ours("simpo", label_smoothing=smoothing), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
def test_smoothed_pairs_cost_what_trl_says(smoothing: float) -> None:
    """CPO is DPO whose reference says the same of both, and knows smoothing."""
    pytest.importorskip("trl")
    from trl.experimental.cpo import CPOTrainer

    made = trainer(CPOTrainer, beta=0.1, alpha=0.0, loss_type="sigmoid", label_smoothing=smoothing)
    ratio = POLICY.sum(1) - REFERENCE
    assert made.cpo_loss(ratio[:2], ratio[2:])[0].mean().item() == pytest.approx(ours("dpo", label_smoothing=smoothing), rel=1e-5)


def test_odds_cost_what_trl_says() -> None:
    pytest.importorskip("trl")
    from trl.experimental.orpo import ORPOTrainer

    made = trainer(ORPOTrainer, beta=0.4)
    means = POLICY.sum(1) / MASK.sum(1)
    assert -made.odds_ratio_loss(means[:2], means[2:])[0].mean().item() == pytest.approx(ours("orpo", beta=0.4, sft=0.0), rel=1e-5)


# ------------------------------------------------------------------------------------------------ the reference

NEUTRAL = {
    name: made
    for name, made in {
        **{n: m() for n, m in METHODS.items() if n not in ("peft", "fusion", "mixture", "hard_prompt", "prompt", "prefix", "layers", "head")},
        "layers": Layers(last=1),
    }.items()
    if made.neutral
}


@pytest.mark.parametrize("method", NEUTRAL)
@pytest.mark.parametrize(("loss", "wanted"), [("dpo", math.log(2)), ("ipo", 25.0), ("kto", 0.5)])
def test_the_first_loss_compares_the_base_with_itself(method: str, loss: str, wanted: float) -> None:
    assert first_loss("llama:lm", NEUTRAL[method], Prefer("preferred", loss)) == pytest.approx(wanted, abs=2e-6 * wanted)


def test_with_dropout_it_would_not() -> None:
    """Why dropout is off: the wrong version compares two draws of masks."""
    net, delta = mounted("gpt2:lm", LoRA(), dropout=0.3)
    loss = Prefer("preferred")
    found = fit(run_of(net, delta, loss, source_of(delta, loss, Table(columns(), size=6)))).log[0]["loss"]
    assert abs(found - math.log(2)) > 1e-3


@pytest.mark.parametrize("name", ["llama:lm", "t5:lm"])
@pytest.mark.parametrize("method", [Full(), LoRA(rank=2), Prefix(length=3), BitFit()], ids=lambda m: type(m).__name__)
def test_the_reference_is_the_base_and_stays_so(name: str, method: Method) -> None:
    """Of a fresh base; asked again after training, and by a run that takes up the trained weights."""
    loss = Prefer("preferred")
    whole = Batch(columns(name))
    with torch.no_grad():
        wanted = answer_logp(network(name), whole)
    net, delta = mounted(name, method)
    source = source_of(delta, loss, Table(columns(name), size=3))
    before = {b["row"][0].item(): b["reference"] for b in source.once(net)}
    fit(run_of(net, delta, loss, source, 6, Descend(rate=0.1)))
    with torch.no_grad():
        assert not torch.allclose(answer_logp(net, whole), wanted, atol=1e-2)
    other, mark = mounted(name, method)
    mark.load_state_dict(delta.state_dict())
    for asked, at in ((source, net), (source_of(delta, loss, Table(columns(name), size=3)), net), (source_of(mark, loss, Table(columns(name), size=3)), other)):
        for batch in asked.once(at):
            assert torch.equal(batch["reference"], before[batch["row"][0].item()])
            torch.testing.assert_close(batch["reference"], wanted[batch["row"]], rtol=0, atol=1e-4)


def test_it_is_asked_once_a_row() -> None:
    net, delta = mounted("llama:lm", LoRA())
    asked: list[int] = []
    setting: Any = types.SimpleNamespace(delta=delta, told=lambda what: lambda done, total: asked.append(done))
    fit(run_of(net, delta, Prefer("preferred"), reference(Table(columns(), size=2), setting), 9))
    assert asked[-1] == 12 and asked == sorted(set(asked))


# ------------------------------------------------------------------------------------------------ answers to other prompts


def test_every_row_has_the_answer_to_another_prompt() -> None:
    made = columns()
    ids, at = made["ids"], made["at"]
    assert isinstance(ids, Ragged) and isinstance(at, Ragged)
    found = elsewhere(made)
    for i, (row, label, places) in enumerate(zip(found["other"].rows(), found["other_label"].rows(), found["other_at"].rows(), strict=True)):
        prompt, j = int(at.rows()[i][0]) + 1, (i + 2) % 12
        answer = ids.rows()[j][int(at.rows()[j][0]) + 1 :]
        assert torch.equal(row, torch.cat([ids.rows()[i][:prompt], answer])[: max(SIZES)])
        assert torch.equal(row[places + 1], label) and len(label) == min(len(answer), max(SIZES) - prompt)
    other = elsewhere(columns("t5:lm"))
    assert torch.equal(other["other_label"].rows()[0], columns("t5:lm")["label"].rows()[2])  # type: ignore[union-attr]


def test_a_partner_asks_something_else() -> None:
    asked = [(1,), (1,), (1,), (2,), (1,)]
    assert partners(asked, 1) == [3, 3, 3, 4, 3]
    with pytest.raises(Refusal, match="ask the same"):
        Prefer("judged").accept({"ids": rows(3, 3), "at": Ragged(torch.tensor([-1, -1]), (1, 1))}, 2)


# ------------------------------------------------------------------------------------------------ pieces, processes, continuing


def gradient(loss: Prefer, micro: int, kind: str = "preferred", form: str | None = None, dropout: float = 0.0) -> tuple[dict[str, Tensor], float]:
    net, delta = mounted("llama:lm", Full(), dropout)
    before = weights(net)
    stir(delta.parameters(), 0.05)  # away from the reference
    start = weights(net)
    assert before.keys() == start.keys()
    table = Table(columns(kind=kind), size=12)
    run = run_of(net, delta, loss, source_of(delta, loss, table), 1, descend(net, delta, micro))
    run.update = replace(run.update, form=UPDATES[form]()) if form else run.update  # type: ignore[type-var]
    fit(run)
    return {n: start[n] - t for n, t in weights(net).items()}, run.log[0]["loss"]


@pytest.mark.parametrize("loss", [*PAIRED, "judged"])
def test_pieces_are_the_whole(loss: str) -> None:
    """A limit of one token leaves a pair a piece; what sees the whole batch still does."""
    kind = "judged" if loss == "judged" else "preferred"
    learn = Prefer(kind, "auto" if loss == "judged" else loss)  # type: ignore[arg-type]
    whole, value = gradient(learn, 10**6, kind)
    for micro in (30, 1):
        parts, other = gradient(learn, micro, kind)
        near(parts, whole, 2e-6)
        assert other == pytest.approx(value, rel=1e-5)


def test_a_distance_a_piece_is_another_loss() -> None:
    """The wrong version of KTO: z0 of each micro-batch."""
    learn = Prefer("judged", beta=1.0)
    _, value = gradient(learn, 10**6, "judged")
    _, wrong = gradient(learn, 1, "judged", form="descend")
    assert abs(wrong - value) > 1e-4


def test_pairs_side_by_side_do_not_meet() -> None:
    net, delta = mounted("llama:lm", LoRA())
    stir(delta.parameters(), 0.1)
    for name in ("dpo", "ipo", "orpo", "simpo"):
        loss = Prefer("preferred", name)
        batch = next(iter(source_of(delta, loss, Table(columns(), size=12)).once(net, 10**6)))
        with torch.no_grad():
            together = loss(net, batch)["task"]
            alone = sum(loss(net, batch.take(i, i + 2))["task"] for i in range(0, 12, 2))
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", ["dpo", "kto", "simpo"])
def test_a_run_that_continues_is_the_run(loss: str) -> None:
    """Interrupted in the middle of an epoch; whoever continues asks the reference anew. Bit for bit."""
    learn = Prefer("preferred", loss)
    table = Table(columns(), size=2, seed=2)
    make = lambda: mounted("llama:lm", LoRA(rank=2, dropout=0.3))
    net, delta = make()
    complete = fit(run_of(net, delta, learn, source_of(delta, learn, table), 7))
    logs, state, moments = [], {}, {}
    for start, stop in ((0, 4), (4, 7)):
        part, mark = make()
        run = run_of(part, mark, learn, source_of(mark, learn, table), 7, done=start, listeners=[Stop(stop)])
        if start:
            mark.load_state_dict(state)
            run.update.prepare(run)  # type: ignore[attr-defined]
            run.update.load_state_dict(moments)
        fit(run)
        logs += run.log
        state = {n: t.clone() for n, t in mark.state_dict().items()}
        moments = {n: t.clone() for n, t in run.update.state_dict().items()}
    assert logs == complete.log
    assert all(torch.equal(t, state[n]) for n, t in delta.state_dict().items())


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_above_a_cached_trunk_it_is_the_run(loss: str) -> None:
    found = []
    for cached in (False, True):
        net, delta = mounted("llama:lm", Layers(last=1))
        learn, table = Prefer("preferred", loss), Table(columns(), size=3)
        source = source_of(delta, learn, Features(table, delta.lowest) if cached else table)
        found.append([r["loss"] for r in fit(run_of(net, delta, learn, source, 4)).log])
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert len({round(x, 5) for x in found[0]}) == 4
