"""Distillation, exactly: a student like its teacher learns nothing, T^2 keeps a gradient's size, buckets are the whole distribution, pieces are the batch,
what is matched inside is what the published class computes; and the wrong versions that are about, each of which fails here."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from test_training import SIZES, columns, descend, learner, near, weights
from torch import Tensor

from tiny import CLASSES, FAMILIES, SEQ2SEQ, VOCABULARY, built, network, rows, spoken, stir, texts, writer
from tunesmith.core import Batch, Ragged, Run, Stage
from tunesmith.engine import fit
from tunesmith.errors import Refusal
from tunesmith.networks.buckets import bucket_logp, buckets_of
from tunesmith.networks.shorten import keep_blocks
from tunesmith.objectives.distil import Distil
from tunesmith.objectives.divergence import DIVERGENCES, kl
from tunesmith.objectives.inner import Shape, again, attention, relations
from tunesmith.sources.table import Table
from tunesmith.teaching.ask import answers
from tunesmith.teaching.teacher import shape_of

LOSSES = tuple(DIVERGENCES)
KINDS = ("single", "multi", "tag", "score", "generate", "generate-seq2seq")


def taught(kind: str, net, learn: Distil, batch: Batch) -> Batch:
    """The batch with what `net` answers as a teacher."""
    net.eval()
    with torch.no_grad():
        return batch.plus(**answers(learn, net, batch, range(CLASSES), learn.top))


def distil(kind: str, **options) -> Distil:
    return Distil(kind.removesuffix("-seq2seq"), "nobody", **options)


def grads(net, learn: Distil, batch: Batch, term: str = "teacher") -> tuple[float, dict[str, Tensor]]:
    net.zero_grad()
    loss = learn(net, batch)[term]
    loss.backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


def size(found: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(g.square().sum()) for g in found.values()))


# ------------------------------------------------------------------------------------------------ the teacher itself


@pytest.mark.parametrize(("kind", "loss"), [(kind, loss) for kind in KINDS for loss in LOSSES if kind != "score" or loss == "forward"])
def test_a_student_like_its_teacher_learns_nothing(kind, loss):
    net, _ = learner(kind)
    learn = distil(kind, loss=loss, alpha=1.0, top=7)
    batch = taught(kind, net, learn, Batch(columns(kind)))
    value, found = grads(net, learn, batch)
    assert abs(value) < 1e-4
    assert size(found) < 1e-4
    stir(dict(net.named_parameters()), 0.1)
    assert grads(net, learn, batch)[0] > 1e-3, "and one unlike it does"


@pytest.mark.parametrize("kind", ["single", "tag", "generate"])
def test_t_squared_keeps_the_size_of_the_gradient(kind):
    """Within 30 % from T = 2 to 8 (Hinton et al. 2015, section 2.1); without it the teacher's share is lost when T is raised."""
    found = {}
    for temperature in (2.0, 8.0):
        net, _ = learner(kind)
        learn = distil(kind, alpha=1.0, temperature=temperature, top=VOCABULARY)
        batch = taught(kind, net, learn, Batch(columns(kind)))
        stir(dict(net.named_parameters()), 0.02)
        found[temperature] = size(grads(net, learn, batch)[1])
    assert found[8.0] == pytest.approx(found[2.0], rel=0.3)
    assert found[8.0] / 64 < found[2.0] / 4 / 5, "the wrong version, which leaves T^2 out"


def test_the_loss_is_summed_over_classes_and_divided_by_units():
    """Not `F.kl_div(reduction="mean")`, which divides by the classes too."""
    learn = distil("single", alpha=1.0, temperature=3.0)
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 4), torch.randn(5, 4)
    mine = float(learn.score({"logits": student}, Batch({"ids": rows(*[3] * 5), "teacher": teacher}))["teacher"]) / 5
    p, q = (teacher / 3).softmax(-1), (student / 3).log_softmax(-1)
    assert mine == pytest.approx(9 * float(F.kl_div(q, p, reduction="batchmean")), rel=1e-5)
    assert mine != pytest.approx(9 * float(F.kl_div(q, p, reduction="mean")), rel=0.5)
    assert learn.count(Batch({"ids": rows(*[3] * 5), "teacher": teacher})) == {"teacher": 5.0}


def test_jsd_at_its_ends_and_in_the_middle():
    torch.manual_seed(0)
    p, q = (torch.randn(6, 9).double().log_softmax(-1) for _ in range(2))
    jsd = DIVERGENCES["jsd"]
    torch.testing.assert_close(jsd(p, q, 0.5), jsd(q, p, 0.5))
    torch.testing.assert_close(jsd(p, q, 0.0), kl(p, q))
    torch.testing.assert_close(jsd(p, q, 1.0), kl(q, p))
    torch.testing.assert_close(jsd(p, q, 1e-7) / 1e-7, kl(p, q), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(jsd(p, q, 1 - 1e-7) / 1e-7, kl(q, p), rtol=1e-4, atol=1e-6)
    m = (0.3 * p.exp() + 0.7 * q.exp()).log()  # as trl's generalized_jsd_loss writes it
    by_hand = 0.3 * F.kl_div(m, p, log_target=True, reduction="none").sum(-1) + 0.7 * F.kl_div(m, q, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(jsd(p, q, 0.3), by_hand)


def test_skew_is_bounded_where_the_student_has_no_mass():
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 1e-30]]).log()
    assert float(DIVERGENCES["skew"](p, q, 0.1)) < -math.log(0.1) < float(kl(p, q))


# ------------------------------------------------------------------------------------------------ buckets


@pytest.mark.parametrize("loss", LOSSES)
def test_all_tokens_as_buckets_are_the_whole_distribution(loss):
    net, _ = learner("generate")
    learn = distil("generate", loss=loss, alpha=1.0, top=10_000)
    batch = taught("generate", net, learn, Batch(columns("generate")))
    teacher = net.logits(batch).detach()
    assert batch["teacher_ids"].shape[1] == batch["teacher"].shape[1] == VOCABULARY
    stir(dict(net.named_parameters()))
    value, found = grads(net, learn, batch)
    net.zero_grad()
    p, q = ((x / 2).log_softmax(-1) for x in (teacher, net.logits(batch)))
    dense = 4 * DIVERGENCES[loss](p, q, learn.share).sum()
    dense.backward()
    assert value == pytest.approx(float(dense), rel=1e-5)
    near(found, {n: p.grad for n, p in net.named_parameters() if p.grad is not None}, 1e-5)


@pytest.mark.parametrize("cap", [None, 1.5])
def test_the_gradient_of_buckets_is_that_of_plain_logits(cap, monkeypatch):
    monkeypatch.setattr("tunesmith.networks.vocabulary.CHUNK", 3 * 31)
    torch.manual_seed(0)
    h, w, b = (torch.randn(*s, dtype=torch.double, requires_grad=True) for s in ((11, 8), (31, 8), (31,)))
    ids, label = torch.stack([torch.randperm(31)[:5] for _ in range(11)]), torch.randint(31, (11,))
    weight, own = torch.randn(11, 6), torch.randn(11)

    def found(how) -> tuple[float, list[Tensor]]:
        _, logp, mine = how()
        loss = (logp * weight).sum() + (mine * own).sum()
        return float(loss.detach()), list(torch.autograd.grad(loss, (h, w, b)))

    def plain():
        raw = h @ w.mT + b
        return buckets_of(raw if cap is None else cap * torch.tanh(raw / cap), ids, label, 2.0)

    ours, theirs = found(lambda: bucket_logp(h, w, b, ids, label, 2.0, cap)), found(plain)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    for a, c in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-5)


def test_the_tail_is_kept_and_nothing_is_renormalised():
    """Relative error of the gradient against the whole distribution, V = 1000, little of the mass in the top: the bucket is closer by far."""
    torch.manual_seed(0)
    teacher, start = torch.randn(64, 1000) * 1.5, torch.randn(64, 1000) * 1.5
    ids = teacher.topk(20).indices
    kept = float(teacher.softmax(-1).gather(-1, ids).sum(-1).mean())
    assert 0.1 < kept < 0.6

    def grad(of) -> Tensor:
        x = start.clone().requires_grad_()
        of(x).sum().backward()
        return x.grad

    p = teacher.log_softmax(-1)
    dense = grad(lambda x: kl(p, x.log_softmax(-1)))
    label = torch.zeros(64, dtype=torch.long)
    bucket = grad(lambda x: kl(buckets_of(teacher, ids, label, 1.0).logp, buckets_of(x, ids, label, 1.0).logp))
    top = p.gather(-1, ids).log_softmax(-1)  # the wrong version: the top as if it were all
    renormalised = grad(lambda x: (top.exp() * (top - x.log_softmax(-1).gather(-1, ids))).sum(-1))
    error = lambda g: float((g - dense).norm() / dense.norm())
    assert error(bucket) < 0.6 and error(renormalised) > 2.5 * error(bucket), (error(bucket), error(renormalised))
    without = buckets_of(teacher, ids, label, 1.0).logp[:, :-1]  # stored by others: without a bucket for the rest
    learn = distil("generate", alpha=1.0, temperature=1.0)
    q = {"logp": buckets_of(start, ids, label, 1.0).logp, "own": torch.zeros(64)}
    batch = Batch({"ids": rows(65), "label": label, "teacher": without})
    assert float(learn.score(q, batch)["teacher"]) == pytest.approx(float(kl(buckets_of(teacher, ids, label, 1.0).logp, q["logp"]).sum()), rel=1e-4)


def test_rows_of_the_embedding_behind_the_tokenizer_mean_nothing():
    """Qwen2.5 pads 151,665 tokens to 151,936 or 152,064 rows: both are cut to the tokens before the softmax."""
    teacher, student = writer(FAMILIES["llama"]), writer(FAMILIES["llama"], seed=1)
    learn = distil("generate", alpha=1.0, top=5)
    batch = spoken(*SIZES)
    plain = learn(student, taught("generate", teacher, learn, batch))["teacher"]
    for net, more in ((teacher, 7), (student, 3)):
        head = net.model.get_output_embeddings()
        head.weight = torch.nn.Parameter(torch.cat([head.weight, torch.full((more, head.weight.shape[1]), 0.7)]))
    assert float(learn(student, taught("generate", teacher, learn, batch))["teacher"]) == pytest.approx(float(plain), rel=1e-5)


# ------------------------------------------------------------------------------------------------ pieces, labels, units


def inside(kind: str) -> dict:
    return {} if kind == "generate-seq2seq" else {"states": {0: 1, 2: 2}, "attention": {1: 1}, "relations": 0.5}


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_a_batch_are_the_batch(kind):
    """With everything that can be matched, one row without a label, and one without an answer."""

    def run(batches: int, micro: int) -> tuple[dict[str, Tensor], dict]:
        net, delta = learner(kind)
        learn = distil(kind, alpha=0.6, top=5, **inside(kind))
        shape = shape_of(net.model.config)
        learn.equip(shape, shape)
        whole = taught(kind, net, learn, Batch(columns(kind)))
        gone = {"single": ("label", -1), "multi": ("label", -1.0), "score": ("label", math.nan), "tag": ("label", -1)}.get(kind)
        found = dict(whole.columns)
        if gone:
            values = whole[gone[0]].clone()
            values[2] = gone[1]
            found["label"] = Ragged(values, whole.ragged("label").lengths) if kind == "tag" else values
        if kind == "tag":
            whole["teacher"][1] = math.nan
        stir(dict(net.named_parameters()))
        before = weights(net)
        source = Table(found, size=12 // batches)
        fitted = fit(Run(net, delta, learn, [Stage("main", source, 1, 1, batches)], descend(net, delta, micro)))
        return {n: before[n] - t for n, t in weights(net).items()}, fitted.log[0]

    whole, record = run(1, 10**6)
    assert record["teacher"] > 0 and math.isfinite(record["loss"])
    for batches, micro in ((1, 14), (3, 10**6), (4, 14)):
        parts, other = run(batches, micro)
        near(parts, whole, 3e-6)
        assert {k: other[k] for k in record if k in ("teacher", "label", "states", "relations")} == pytest.approx(
            {k: record[k] for k in record if k in ("teacher", "label", "states", "relations")}, rel=1e-4
        )


def test_a_row_without_a_label_adds_to_the_teachers_term_alone():
    learn, batch = distil("single", alpha=0.5), texts(5, 6, 7)
    teacher, logits = torch.randn(3, CLASSES), torch.randn(3, CLASSES)
    lone = Batch({"ids": batch.columns["ids"], "label": torch.tensor([-1, 2, -1]), "teacher": teacher})
    assert learn.count(lone) == {"teacher": 3.0, "label": 1.0}
    assert float(learn.score({"logits": logits}, lone)["label"]) == pytest.approx(0.5 * float(F.cross_entropy(logits[1:2], torch.tensor([2]))), rel=1e-5)
    none = Batch({**lone.columns, "label": torch.tensor([-1, -1, -1])})
    assert float(learn.score({"logits": logits}, none)["label"]) == 0.0


def test_what_the_student_wrote_is_no_label():
    learn = distil("generate", alpha=0.5, on_policy=0.5)
    batch = spoken(5, 9)
    made = batch.plus(written=torch.tensor([1.0, 0.0]), teacher=Ragged(torch.zeros(len(batch["label"]), 3), batch.ragged("label").lengths))
    lengths = batch.ragged("label").lengths
    own = torch.randn(sum(lengths))
    assert learn.count(made)["label"] == lengths[1]
    signals = {"own": own, "logp": torch.zeros(sum(lengths), 3)}
    assert float(learn.score(signals, made)["label"]) == pytest.approx(-0.5 * float(own[lengths[0] :].sum()), rel=1e-5)


# ------------------------------------------------------------------------------------------------ inside


@pytest.mark.parametrize("name", ["bert", "llama", "deberta-v2", "gpt2", "distilbert", "modernbert"])
def test_what_is_heard_is_what_the_class_computes(name):
    """States against the published class's own `output_hidden_states`, a row at a time."""
    net = network(name)
    batch = texts(5, 11, 3)
    _, heard = net.overheard(lambda: net.logits(batch), batch, [0, 1], [])
    start = 0
    for row in batch.ragged("ids").rows():
        states = net.model(row[None], output_hidden_states=True).hidden_states
        for block in (0, 1):
            torch.testing.assert_close(heard.states[block][start : start + len(row)], states[block + 1][0], rtol=1e-4, atol=1e-4)
        start += len(row)


def test_heads_are_the_attention_of_the_class():
    net = network("bert")
    batch = texts(5, 9)
    _, heard = net.overheard(lambda: net.logits(batch), batch, [], [2])
    q, k, _ = (x[:5].transpose(0, 1) for x in heard.heads[2])
    net.model.set_attn_implementation("eager")
    theirs = net.model(batch.ragged("ids").rows()[0][None], output_attentions=True).attentions[2][0]
    torch.testing.assert_close((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1), theirs, rtol=1e-4, atol=1e-5)


def test_a_class_that_keeps_its_attention_is_refused():
    net, batch = network("deberta-v2"), texts(4, 5)
    with pytest.raises(Refusal, match="keeps its attention to itself"):
        net.overheard(lambda: net.logits(batch), batch, [], [0])


@pytest.mark.parametrize(
    "options",
    [{"states": {0: 0}}, {"states": {1: 1}, "states_loss": "cosine"}, {"attention": {0: 0, 2: 2}}, {"relations": 1.0}, {"relations": 1.0, "relation_heads": 8}],
)
@pytest.mark.parametrize("kind", ["single", "generate"])
def test_inside_a_student_like_its_teacher_there_is_nothing_to_learn(kind, options):
    """Up to bf16, in which a teacher's states are kept."""
    net, _ = learner(kind)
    learn = distil(kind, alpha=0.0, top=5, **options)
    shape = shape_of(net.model.config)
    learn.equip(shape, shape)
    batch = taught(kind, net, learn, Batch(columns(kind)))
    term = next(k for k in learn(net, batch) if k not in ("teacher", "label"))
    same = float(learn(net, batch)[term]) / sum(SIZES)
    stir(dict(net.named_parameters()), 0.2)
    assert same < 1e-3 and float(learn(net, batch)[term]) / sum(SIZES) > 10 * same


def test_relations_are_those_of_the_papers():
    """MiniLM's, a row at a time and by its formulas; v2's do not ask for the same number of heads, v1's are refused then."""
    torch.manual_seed(0)
    s, t = ([torch.randn(7, 4, 8) for _ in range(3)] for _ in range(2))
    expected, v2 = 0.0, 0.0
    for a, b in ((0, 3), (3, 7)):
        part = lambda x: x[a:b].transpose(0, 1)
        dist = lambda x, y: (part(x) @ part(y).mT / x.shape[-1] ** 0.5).softmax(-1)
        for x, y in ((dist(t[0], t[1]), dist(s[0], s[1])), (dist(t[2], t[2]), dist(s[2], s[2]))):
            expected += float(F.kl_div(y.log(), x, reduction="sum")) / 4
        for x, y in zip(t, s, strict=True):
            p, q = (dist(again(z, 2), again(z, 2)) for z in (x, y))
            v2 += float(F.kl_div(q.log(), p, reduction="sum")) / 2
    assert float(relations(tuple(s), tuple(t), (3, 4), False, None)) == pytest.approx(expected, rel=1e-4)
    assert float(relations(tuple(s), tuple(t), (3, 4), False, 2)) == pytest.approx(v2, rel=1e-4)
    narrow = [torch.randn(7, 2, 8) for _ in range(3)]
    assert float(relations(tuple(narrow), tuple(t), (3, 4), True, 2)) > 0
    four, two = Shape(32, 4, 4, 8, False), Shape(16, 2, 2, 8, False)
    with pytest.raises(Refusal, match="different numbers of heads"):
        distil("single", relations=1.0).equip(two, four)
    with pytest.raises(Refusal, match="2 heads, the teacher 4"):
        distil("single", attention={0: 0}).equip(two, four)
    with pytest.raises(Refusal, match="do not part"):
        distil("single", relations=1.0, relation_heads=3).equip(two, four)
    distil("single", relations=1.0, relation_heads=8).equip(two, four)


def test_attention_looks_at_no_token_of_another_row_nor_ahead():
    torch.manual_seed(0)
    s, t = (tuple(torch.randn(7, 2, 4) for _ in range(3)) for _ in range(2))
    for causal in (False, True):
        whole = attention(s, t, (3, 4), causal)
        parts = [attention(tuple(x[a:b] for x in s), tuple(x[a:b] for x in t), (b - a,), causal) for a, b in ((0, 3), (3, 7))]
        torch.testing.assert_close(whole, sum(parts))
    late = tuple(x.clone() for x in t)
    late[1][2] += 5  # the last key of the first row: in a decoder only its own token sees it
    changed = (attention(s, t, (3, 4), True) - attention(s, late, (3, 4), True)).abs()
    assert float(changed) > 0
    cut = lambda heads: tuple(x[:2] for x in heads)
    torch.testing.assert_close(attention(cut(s), cut(t), (2,), True), attention(cut(s), cut(late), (2,), True))


def test_projections_lead_from_one_width_to_the_other_and_train():
    learn = distil("single", alpha=0.5, states={0: 0, 2: 1})
    learn.equip(Shape(32, 4, 4, 8, False), Shape(48, 6, 6, 8, False))
    assert {n: tuple(p.shape) for n, p in learn.named_parameters()} == {"projections.0.weight": (48, 32), "projections.2.weight": (48, 32)}
    net, delta = learner("single")
    batch = Batch(columns("single"))
    wide = Ragged(torch.randn(sum(SIZES), 2, 48), SIZES)
    source = Table({**batch.columns, "teacher": torch.randn(12, CLASSES), "teacher_states": wide}, size=12)
    run = Run(net, delta, learn, [Stage("main", source, 4, 1)], update(1e-2))
    before = {n: p.detach().clone() for n, p in learn.named_parameters()}
    fit(run)
    assert all(not torch.equal(p, before[n]) for n, p in learn.named_parameters()), "they are among the run's parameters"
    assert run.log[-1]["states"] < run.log[0]["states"]


def update(rate: float):
    from tunesmith.updates import Descend

    return Descend(rate=rate)


# ------------------------------------------------------------------------------------------------ dropped layers


@pytest.mark.parametrize("name", FAMILIES)
def test_a_shortened_model_is_what_its_class_builds_and_saves(name, tmp_path):
    """Blocks 0 and 2 of three: the output is that of the whole model with block 1 passed over, and saved and loaded it is the same."""
    import transformers as hf

    config = FAMILIES[name]
    auto = hf.AutoModelForSeq2SeqLM if name in SEQ2SEQ else hf.AutoModel
    whole = built(auto, config, "eager", 0)
    short = copy.deepcopy(whole)
    keep_blocks(short, (0, 2))
    assert short.config.num_hidden_layers == 2
    short.save_pretrained(tmp_path)
    again = auto.from_pretrained(tmp_path, attn_implementation="eager").eval()
    ids = torch.arange(3, 12)[None]
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if name in SEQ2SEQ else {})}
    out = lambda model: model(**inputs).logits if name in SEQ2SEQ else model(**inputs).last_hidden_state
    torch.testing.assert_close(out(short), out(again), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(out(short), out(whole), atol=1e-3)
    if name not in SEQ2SEQ:
        hidden = whole(**inputs, output_hidden_states=True).hidden_states
        assert len(hidden) == 4
        first = short(**inputs, output_hidden_states=True).hidden_states
        torch.testing.assert_close(first[1], hidden[1], rtol=1e-5, atol=1e-5)


def test_blocks_that_are_not_there_or_cannot_stand_alone_are_refused():
    import transformers as hf

    for kept in ((3,), (1, 0), (0, 0), ()):
        with pytest.raises(Refusal, match="blocks 0 to 2"):
            keep_blocks(built(hf.AutoModel, FAMILIES["bert"], "eager", 0), kept)
    for name, auto in (("t5", hf.AutoModelForSeq2SeqLM), ("modernbert", hf.AutoModel)):
        with pytest.raises(Refusal, match="keep block 0|first block"):
            keep_blocks(built(auto, FAMILIES[name], "eager", 0), (1, 2))


@pytest.mark.parametrize("options", [{"alpha": 0.0}, {"loss": "reverse", "kind": "score"}, {"align": "uld", "kind": "single"}, {"on_policy": 0.5, "kind": "tag"},
                                     {"align": "uld", "kind": "generate", "states": {0: 0}}, {"align": "uld", "kind": "generate", "on_policy": 0.1}, {"kind": "preferred"}])  # fmt: skip
def test_what_makes_no_sense_is_refused_by_a_sentence(options):
    kind = options.pop("kind", "single")
    with pytest.raises(Refusal) as refused:
        Distil(kind, "nobody", **options)
    assert refused.value.where.startswith("objective") and refused.value.fix
