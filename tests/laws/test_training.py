"""Training: pieces of a batch are the batch; a run above a cached trunk is the run; a run that continues is the run; the order of
rows is a function of seed and epoch; what is no number stops a run with its weights still good."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor, nn

from tiny import CLASSES, SEQ2SEQ, network, rows, spoken, stir, texts
from tunesmith.core import Batch, Delta, Listener, Method, Ragged, Run, Source, Stage
from tunesmith.engine import fit
from tunesmith.errors import Diverged, Refusal
from tunesmith.methods import Adapter, Full, Head, Layers, LoRA
from tunesmith.methods.lora import Fused, fused
from tunesmith.networks.transformer import Transformer
from tunesmith.objectives import Supervised
from tunesmith.sources.features import Features
from tunesmith.sources.table import Table
from tunesmith.updates import Descend
from tunesmith.updates.descend import pieces

SIZES = (5, 9, 3, 12, 7, 4, 10, 6, 8, 5, 3, 11)
KINDS = ("single", "multi", "score", "tag", "generate", "generate-seq2seq")


def columns(kind: str) -> dict[str, Tensor | Ragged]:
    """Twelve rows with the labels that this kind of task has."""
    if kind == "generate":
        return dict(spoken(*SIZES).columns)
    ids = rows(*SIZES)
    if kind == "tag":
        at = tuple(n // 2 for n in SIZES)
        return {"ids": ids, "at": Ragged(torch.cat([torch.arange(n) * 2 for n in at]), at), "label": Ragged(torch.arange(sum(at)) % CLASSES, at)}
    if kind == "generate-seq2seq":
        target = rows(*(1 + n % 4 for n in SIZES), seed=2)
        return {"ids": ids, "target": target, "label": target}
    torch.manual_seed(4)
    labels = {"single": torch.arange(12) % CLASSES, "multi": torch.randint(2, (12, CLASSES)).float(), "score": torch.randn(12)}
    return {"ids": ids, "label": labels[kind]}


def learner(kind: str, method: Method | None = None, dropout: float = 0.0) -> tuple[Transformer, Delta]:
    """A network for this kind of task with a method attached."""
    name = {"generate": "llama:lm", "generate-seq2seq": "t5:lm"}.get(kind, "bert")
    return mounted(name, method or Full(), dropout)


def mounted(name: str, method: Method, dropout: float = 0.0) -> tuple[Transformer, Delta]:
    net = network(name)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    torch.manual_seed(1)
    return net, method.attach(net)


def objective(kind: str) -> Supervised:
    return Supervised(kind.removesuffix("-seq2seq"))


def run_of(net: Transformer, delta: Delta, kind: str, source: Source, steps: int, update: Descend | None = None, **more: object) -> Run:
    period = -(-12 // 4)
    return Run(net, delta, objective(kind), [Stage("main", source, steps, period)], update or Descend(rate=1e-3, clip=0), **more)


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in net.named_parameters()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(t, b[n]) for n, t in a.items())


def near(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float) -> None:
    assert a.keys() == b.keys()
    for n, t in a.items():
        torch.testing.assert_close(t, b[n], rtol=tolerance, atol=tolerance, msg=lambda text, n=n: f"{n}: {text}")


# ------------------------------------------------------------------------------------------------ pieces and the whole


def descend(net: Transformer, delta: Delta, micro: int = 10**6) -> Descend:
    """Plain gradient descent at rate 1: what a weight loses in a step is its gradient."""
    params = list(delta.parameters().values())
    return Descend(1.0, "constant", 0.0, clip=0, micro=micro, optimizer=torch.optim.SGD([{"params": params, "pace": 1.0}], lr=1.0))


def gradients(kind: str, batches: int, micro: int) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Of all twelve rows in one step, which come in `batches` batches, cut into pieces of `micro` tokens."""
    net, delta = learner(kind)
    before = weights(net)
    run = run_of(net, delta, kind, Table(columns(kind), size=12 // batches), 1, descend(net, delta, micro))
    run.stream = [replace(run.stream[0], accumulate=batches)]
    fit(run)
    return {n: before[n] - t for n, t in weights(net).items()}, dict(run.log[0])


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_is_the_whole_batch(kind: str) -> None:
    """One batch, the same cut in pieces of 14 tokens, and three batches a step: one gradient and one loss."""
    whole, record = gradients(kind, 1, 10**6)
    for batches, micro in ((1, 14), (1, 1), (3, 10**6), (4, 14)):
        parts, other = gradients(kind, batches, micro)
        near(parts, whole, 2e-6)
        assert other["loss"] == pytest.approx(record["loss"], rel=1e-5)
        assert (other["tokens"], other["rows"]) == (sum(SIZES), 12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_of_the_mean_over_units(kind: str) -> None:
    """Rows or labelled tokens: as torch's own mean loss over all of them."""
    found, record = gradients(kind, 3, 14)
    net, delta = learner(kind)
    batch = Batch(columns(kind))
    net.rest_below(delta.floor)
    label = batch["label"]
    if kind.startswith("generate"):
        loss = -net.label_logp(batch).mean()
    elif kind == "multi":
        loss = nn.functional.binary_cross_entropy_with_logits(net.logits(batch), label)
    elif kind == "score":
        loss = nn.functional.mse_loss(net.logits(batch)[:, 0], label)
    else:
        loss = nn.functional.cross_entropy(net.logits(batch), label)
    loss.backward()
    assert record["loss"] == pytest.approx(loss.item(), rel=1e-5)
    near(found, {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in net.named_parameters()}, 2e-6)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_losses_are_sums_over_rows(kind: str) -> None:
    net, _ = learner(kind)
    batch, loss = Batch(columns(kind)), objective(kind)
    together = loss(net, batch)["task"]
    alone = sum(loss(net, batch.take(i, i + 1))["task"] for i in range(12))
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert loss.count(batch)["task"] == sum(loss.count(batch.take(i, i + 1))["task"] for i in range(12))


@pytest.mark.parametrize("micro", [1, 7, 12, 20, 83])
def test_pieces(micro: int) -> None:
    """Whole rows, in order, no piece above the limit but for a longer row."""
    batch = Batch(columns("tag"))
    cut = list(pieces(batch, micro))
    for name in ("ids", "at", "label"):
        assert torch.equal(torch.cat([piece[name] for piece in cut]), batch[name])
    assert sum((piece.ragged("ids").lengths for piece in cut), ()) == SIZES
    assert all(len(piece["ids"]) <= micro or len(piece) == 1 for piece in cut)
    assert all(len(a["ids"]) + b.ragged("ids").lengths[0] > micro for a, b in zip(cut, cut[1:], strict=False))


def test_a_step_in_which_nothing_is_labelled_moves_nothing() -> None:
    net, delta = learner("tag")
    before = weights(net)
    empty = Ragged(torch.empty(0, dtype=torch.long), (0,) * 12)
    run = fit(run_of(net, delta, "tag", Table({**columns("tag"), "at": empty, "label": empty}, size=4), 1, descend(net, delta)))
    assert run.log[0]["loss"] == 0
    assert equal(weights(net), before)


def test_label_smoothing() -> None:
    """That share of each label's mass is spread over all classes."""
    logits, label = torch.randn(5, CLASSES), torch.arange(5) % CLASSES
    target = 0.9 * nn.functional.one_hot(label, CLASSES) + 0.1 / CLASSES
    found = Supervised("single", 0.1).score({"logits": logits}, Batch({"label": label}))["task"]
    torch.testing.assert_close(found, -(target * logits.log_softmax(-1)).sum())


# ------------------------------------------------------------------------------------------------ the cached trunk

CACHED = {
    "bert": ("bert", Layers(last=1), "single"),
    "bert-pooled": ("bert", Head(), "single"),
    "bert-tags": ("bert", Head(), "tag"),
    "gpt2": ("gpt2", Layers(last=2), "single"),
    "deberta-v2": ("deberta-v2", Layers(last=1), "single"),
    "bart": ("bart", Layers(blocks=(2,)), "single"),
    "unfreezing": ("bert", Layers(last=2, unfreeze=1, decay=0.5), "single"),
    "llama": ("llama:lm", Layers(last=1), "generate"),
}


@pytest.mark.parametrize("which", CACHED)
def test_a_run_above_a_cached_trunk_is_the_run(which: str) -> None:
    """Four epochs, with dropout above the floor."""
    name, method, kind = CACHED[which]
    found, logs = [], []
    for cached in (False, True):
        net, delta = mounted(name, method, dropout=0.2)
        table = Table(columns(kind), size=4, seed=3)
        source = Features(table, delta.lowest, pooled=which == "bert-pooled") if cached else table
        run = fit(run_of(net, delta, kind, source, 12, replace(descend(net, delta), rate=0.05)))
        found.append(weights(net))
        logs.append([record["loss"] for record in run.log])
    assert delta.lowest >= 1
    assert logs[0] == pytest.approx(logs[1], rel=1e-5)
    assert len({round(x, 6) for x in logs[0]}) == 12
    near(found[1], found[0], 1e-5)


def test_stages_above_a_cached_trunk_are_the_stages() -> None:
    """A later stage fills its store while the network trains: what lies under the floor rests all the same."""
    found = []
    for cached in (False, True):
        net, delta = mounted("bert", Layers(last=1), dropout=0.2)
        tables = [Table({"ids": rows(*SIZES, seed=i), "label": torch.arange(12) % CLASSES}, size=4) for i in (1, 2)]
        sources = [Features(table, delta.floor) if cached else table for table in tables]
        stages = [Stage(str(i), source, 4, 3) for i, source in enumerate(sources)]
        fit(Run(net, delta, Supervised("single"), stages, replace(descend(net, delta), rate=0.05)))
        found.append(weights(net))
    near(found[1], found[0], 1e-5)


def test_the_store_is_filled_once_and_says_so() -> None:
    net, delta = mounted("bert", Layers(last=1))
    seen: list[int] = []
    net.get_submodule(next(iter(net.anatomy.linears))).register_forward_hook(lambda *_: seen.append(1))
    told: list[tuple[int, int]] = []
    source = Features(Table(columns("single"), size=4), delta.floor, told=lambda done, total: told.append((done, total)))
    fit(run_of(net, delta, "single", source, 9))
    assert told[-1] == (12, 12)
    assert seen == [1]
    assert source.gives == {"ids", "label", "row", "trunk", "floor"}
    assert replace(source, pooled=True).gives == {"ids", "label", "row", "pooled"}
    batch = next(source.batches(net))
    assert source.gives == set(batch.columns)


@torch.no_grad()
def test_every_row_once_above_a_cached_trunk() -> None:
    """Evaluation."""
    net, delta = mounted("bert", Layers(last=1))
    table = Table(columns("single"), size=4)
    sources = table.once(tokens=30), Features(table, delta.floor).once(net, 30)
    plain, cached = ({i: x for b in source for i, x in zip(b["row"].tolist(), net.logits(b), strict=True)} for source in sources)
    assert plain.keys() == cached.keys() == set(range(12))
    for i, x in plain.items():
        torch.testing.assert_close(cached[i], x, rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------ order, and continuing


def order(source: Source, start: int, count: int) -> list[list[int]]:
    batches = source.batches(None, start)  # type: ignore[arg-type]
    return [next(batches)["row"].tolist() for _ in range(count)]


@pytest.mark.parametrize("size", [4, 5, 12, 50])
def test_order_is_a_function_of_seed_and_epoch(size: int) -> None:
    table = Table(columns("single"), size=size, seed=7)
    period = -(-12 // size)
    seen = order(table, 0, 3 * period)
    torch.manual_seed(123)
    assert order(Table(columns("single"), size=size, seed=7), 0, 3 * period) == seen
    epochs = [sum(seen[i * period : (i + 1) * period], []) for i in range(3)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    for start in range(2 * period):
        assert order(table, start, period) == seen[start : start + period]
    if size < 12:
        assert epochs[0] != epochs[1] != epochs[2]
        assert order(Table(columns("single"), size=size, seed=8), 0, period) != seen[:period]


def test_a_batch_holds_its_rows() -> None:
    """Every column, from short to long."""
    whole = Batch(columns("tag"))
    for batch in (next(Table(columns("tag"), size=5).batches(None)), *Table(columns("tag")).once(tokens=20)):  # type: ignore[arg-type]
        lengths = batch.ragged("ids").lengths
        assert list(lengths) == sorted(lengths)
        for name in ("ids", "at", "label"):
            for i, row in zip(batch["row"].tolist(), batch.ragged(name).rows(), strict=True):
                assert torch.equal(row, whole.ragged(name).rows()[i])
        spots = zip(batch.ragged("ids").rows(), batch.ragged("at").rows(), strict=True)
        assert torch.equal(batch["ids"][batch.labelled()], torch.cat([row[at] for row, at in spots]))


@pytest.mark.parametrize("tokens", [1, 20, 10**6])
def test_once_is_every_row_within_the_limit(tokens: int) -> None:
    found = list(Table(columns("single")).once(tokens=tokens))
    assert sorted(i for batch in found for i in batch["row"].tolist()) == list(range(12))
    assert all(max(batch.ragged("ids").lengths) * len(batch) <= tokens or len(batch) == 1 for batch in found)


@pytest.mark.parametrize("name", ["bert", "llama:lm"])
@pytest.mark.parametrize("method", [LoRA(rank=2, dropout=0.3), Adapter(width=4), Layers(last=2, unfreeze=1)], ids=["lora", "adapter", "layers"])
def test_a_run_that_continues_is_the_run(name: str, method: Method) -> None:
    """Interrupted after four steps of eleven, in the middle of an epoch, and again after five: bit for bit, dropout included."""
    kind = "generate" if ":" in name else "single"
    whole, delta = mounted(name, method, dropout=0.2)
    table = Table(columns(kind), size=4, seed=2)
    complete = fit(run_of(whole, delta, kind, table, 11, Descend(rate=1e-2)))
    state: dict[str, Tensor] = {}
    moments: dict[str, Tensor] = {}
    logs: list[dict[str, float]] = []
    for start, stop in ((0, 4), (4, 5), (5, 11)):
        net, mark = mounted(name, method, dropout=0.2)
        stir(mark.parameters())  # whatever was there is overwritten
        run = run_of(net, mark, kind, Table(columns(kind), size=4, seed=2), 11, Descend(rate=1e-2), done=start, listeners=[Stop(stop)])
        torch.manual_seed(stop)
        if start:
            mark.load_state_dict(state)
            run.update.prepare(run)
            run.update.load_state_dict(moments)
        else:
            mark.load_state_dict(mounted(name, method)[1].state_dict())
        fit(run)
        logs += run.log
        state = {n: t.clone() for n, t in mark.state_dict().items()}
        moments = {n: t.clone() for n, t in run.update.state_dict().items()}
    assert logs == complete.log
    assert equal(weights(net), weights(whole))
    assert equal(moments, complete.update.state_dict())


@dataclass
class Stop(Listener):
    """Halts a run after so many steps, and writes down what it heard."""

    after: int
    heard: list[tuple[str, int]] = field(default_factory=list)

    def step(self, run: Run, record) -> None:
        self.heard.append(("step", run.done))
        if run.done == self.after:
            run.halt = "enough"

    def end(self, run: Run, stage: Stage) -> None:
        self.heard.append((stage.name, run.done))


def test_a_halt_ends_the_stage_it_happens_in() -> None:
    """The stages behind it neither run nor end."""
    net, delta = learner("single")
    stages = [Stage(name, Table(columns("single"), size=4), 2, 3) for name in "ab"]
    steps = [("step", 1), ("step", 2), ("a", 2), ("step", 3)]
    for after, heard in ((1, [*steps[:1], ("a", 1)]), (2, steps[:3]), (3, [*steps, ("b", 3)])):
        stop = Stop(after)
        fit(Run(net, delta, Supervised("single"), stages, Descend(rate=1e-3), [stop]))
        assert stop.heard == heard


def test_what_an_objective_needs_and_no_source_gives_is_refused() -> None:
    net, delta = learner("single")
    table = Table({"ids": rows(*SIZES)})
    with pytest.raises(Refusal, match="label"):
        fit(run_of(net, delta, "single", table, 3))
    with pytest.raises(Refusal, match="no steps"):
        fit(run_of(net, delta, "single", Table(columns("single")), 0))


# ------------------------------------------------------------------------------------------------ the step


@pytest.mark.parametrize(
    ("schedule", "warmup", "wanted"),
    [
        ("constant", 0.0, [1, 1, 1, 1]),
        ("linear", 0.0, [1, 0.75, 0.5, 0.25]),
        ("linear", 0.5, [0.5, 1, 1, 0.5]),
        ("constant", 0.5, [0.5, 1, 1, 1]),
        ("cosine", 0.0, [1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]),
        ("linear", 1.0, [0.25, 0.5, 0.75, 1]),
    ],
)
def test_schedule(schedule: str, warmup: float, wanted: Sequence[float]) -> None:
    """Of the peak rate, at each of four steps: rising to the peak in the warm-up, falling towards 0 behind it."""
    net, delta = learner("single")
    run = fit(run_of(net, delta, "single", Table(columns("single"), size=4), 4, Descend(0.01, schedule, warmup)))
    assert [record["rate"] for record in run.log] == pytest.approx([0.01 * x for x in wanted])


def test_clipping_and_decay() -> None:
    """The norm of the whole gradient; decay pulls at matrices only."""
    net, delta = learner("single")
    before = weights(net)
    clipped = replace(descend(net, delta), clip=0.25)
    run = fit(run_of(net, delta, "single", Table(columns("single"), size=12), 1, clipped))
    moved = math.sqrt(sum(float((before[n] - t).square().sum()) for n, t in weights(net).items()))
    assert run.log[0]["norm"] > 0.25
    assert moved == pytest.approx(0.25, rel=1e-4)
    groups = Descend(rate=1.0, decay=0.3).prepare(run).param_groups
    assert {p.dim() > 1: g["weight_decay"] for g in groups for p in g["params"]} == {True: 0.3, False: 0.0}
    assert sum(len(g["params"]) for g in groups) == len(delta.trains)


class Late(Supervised):
    """A loss whose gradient, or value, is no number from the third step on."""

    def __init__(self, poison: str):
        super().__init__("single")
        self.poison, self.calls = poison, 0

    def score(self, signals, batch):
        self.calls += 1
        loss = super().score(signals, batch)["task"]
        if self.calls <= 2:
            return {"task": loss}
        if self.poison == "loss":
            return {"task": loss * float("nan")}
        return {"task": loss + (signals["logits"].sum() * 0).sqrt()}  # 0, with an infinite slope


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_what_is_no_number_stops_before_the_update(poison: str) -> None:
    net, delta = learner("single")
    run = run_of(net, delta, "single", Table(columns("single"), size=4), 6, Descend(rate=1e-3))
    run.objective = Late(poison)
    states: list[dict[str, Tensor]] = []

    class Keep(Listener):
        def step(self, run: Run, record) -> None:
            states.append(weights(net))

    run.listeners = [Keep()]
    with pytest.raises(Diverged, match="step 3") as diverged:
        fit(run)
    assert (run.done, len(states)) == (2, 2)
    assert equal(weights(net), states[-1])
    assert all(t.isfinite().all() for t in states[-1].values())
    assert all(p.grad is None for p in net.parameters())
    assert "nan" in str(diverged.value)
    assert "rate=1e-04" in diverged.value.fix
    assert str(order(run.stream[0].train, 2, 1)[0]) in diverged.value.why
    assert diverged.value.code == 3


# ------------------------------------------------------------------------------------------------ fused LoRA


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(7, 6), (2, 3, 6)])
@pytest.mark.parametrize("reads", [True, False], ids=["x learns", "x rests"])
def test_fused_lora_is_the_plain_formula(biased: bool, shape: tuple[int, ...], reads: bool) -> None:
    """x W^T + b + s (x A^T) B^T and its gradients, against float64 and autograd."""
    torch.manual_seed(0)
    x, w, b, down, up = torch.randn(shape), torch.randn(5, 6), torch.randn(5) if biased else None, torch.randn(2, 6), torch.randn(5, 2)
    weight = torch.randn(*shape[:-1], 5)
    ours = [t.clone().requires_grad_() for t in (x, down, up)]
    ours[0].requires_grad_(reads)
    y = Fused.apply(ours[0], w, b, ours[1], ours[2], 0.7)
    with torch.no_grad():
        assert torch.equal(fused(ours[0], w, b, ours[1], ours[2], 0.7), y)  # sampling without gradients, to the bit
    (y * weight).sum().backward()
    theirs = [t.double().requires_grad_() for t in (x, down, up)]
    plain = theirs[0] @ w.double().T + 0.7 * (theirs[0] @ theirs[1].T) @ theirs[2].T + (0 if b is None else b.double())
    (plain * weight).sum().backward()
    torch.testing.assert_close(y.double(), plain, rtol=1e-5, atol=1e-5)
    assert (ours[0].grad is not None) == reads
    for mine, other in list(zip(ours, theirs, strict=True))[0 if reads else 1 :]:
        torch.testing.assert_close(mine.grad.double(), other.grad, rtol=1e-5, atol=1e-5)


def test_fused_lora_under_autocast() -> None:
    """Products in bf16, gradients in the dtype of what they belong to."""
    torch.manual_seed(0)
    x, w, down, up = torch.randn(7, 6, requires_grad=True), torch.randn(5, 6), torch.randn(2, 6, requires_grad=True), torch.randn(5, 2, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = Fused.apply(x, w, None, down, up, 0.7)
    assert y.dtype is torch.bfloat16
    y.float().square().sum().backward()
    mine = [t.grad for t in (x, down, up)]
    assert {g.dtype for g in mine} == {torch.float32}
    for t in (x, down, up):
        t.grad = None
    (x @ w.T + 0.7 * (x @ down.T) @ up.T).square().sum().backward()
    for g, t in zip(mine, (x, down, up), strict=True):
        assert nn.functional.cosine_similarity(g.flatten(), t.grad.flatten(), 0).item() > 0.999


@pytest.mark.parametrize("name", ["bert", "gpt2", *SEQ2SEQ])
def test_fused_lora_in_a_network(name: str) -> None:
    """Dropout of probability nearly 0 takes the plain path: the same gradients."""
    found = []
    for dropout in (0.0, 1e-9):
        net, delta = mounted(name, LoRA(rank=2, dropout=dropout))
        stir(delta.parameters(), 0.2)
        net.rest_below(0)
        net.logits(texts(*SIZES)).square().sum().backward()
        found.append({n: p.grad for n, p in delta.parameters().items()})
    near(found[0], found[1], 1e-4)
