"""Contrastive losses: exact identities, the wrong versions that are about, and sentence-transformers as oracle."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import related
import shop
from related import LOSSES
from tiny import network
from tunesmith.core import Batch
from tunesmith.errors import Refusal
from tunesmith.methods import Full, LoRA
from tunesmith.objectives.contrast import Contrast, drops


def vectors(n: int, width: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def mean(learn: Contrast, z: Tensor, batch: Batch, **more: Tensor) -> Tensor:
    """The loss as the update divides it."""
    return learn.score({"z": z, **more}, batch)["task"] / learn.count(batch)["task"]


def by_hand(z: Tensor, anchors: list[int], answers: list[int], temperature: float) -> Tensor:
    """InfoNCE as it stands in the papers: answer i is right for anchor i, all others are wrong."""
    u = F.normalize(z, dim=-1)
    return F.cross_entropy(u[anchors] @ u[answers].T / temperature, torch.arange(len(anchors)))


# ------------------------------------------------------------------------------------------------ identities


def test_infonce_is_its_formula():
    batch, z = related.kind("negatives"), vectors(24)
    anchors, positives = [*range(0, 24, 4)], [*range(1, 24, 4)]
    negatives = [i for i in range(24) if i % 4 > 1]
    torch.testing.assert_close(mean(Contrast("pairs"), z, batch), by_hand(z, anchors, positives + negatives, 0.05))
    both = (by_hand(z, anchors, positives + negatives, 0.1) + by_hand(z, positives, anchors, 0.1)) / 2
    torch.testing.assert_close(mean(Contrast("pairs", temperature=0.1, symmetric=True), z, batch), both)


def test_pairs_of_one_label_are_no_wrong_answers_to_each_other():
    """Labels 0, 1, 0, none, 1, none: answers of the asker's own label are left out both ways; negatives and pairs without a label stay wrong for all."""
    batch, z = related.kind("negatives"), vectors(24)
    about = [0, 1, 0, -1, 1, -1]
    marked = batch.plus(alike=torch.tensor([about[i // 4] if i % 4 < 2 else -1 for i in range(24)]))
    u = F.normalize(z, dim=-1)
    anchors, positives, negatives = [*range(0, 24, 4)], [*range(1, 24, 4)], [i for i in range(24) if i % 4 > 1]
    barred = torch.tensor([[i != j and about[i] == about[j] >= 0 for j in range(6)] for i in range(6)])
    cosines = u[anchors] @ u[positives + negatives].T / 0.05
    masked = cosines.masked_fill(torch.cat([barred, torch.zeros(6, len(negatives), dtype=torch.bool)], 1), -torch.inf)
    torch.testing.assert_close(mean(Contrast("pairs"), z, marked), F.cross_entropy(masked, torch.arange(6)))
    backwards = F.cross_entropy((u[positives] @ u[anchors].T / 0.05).masked_fill(barred, -torch.inf), torch.arange(6))
    both = (F.cross_entropy(masked, torch.arange(6)) + backwards) / 2
    torch.testing.assert_close(mean(Contrast("pairs", symmetric=True), z, marked), both)
    assert mean(Contrast("pairs"), z, batch) > mean(Contrast("pairs"), z, marked)


def test_equal_embeddings_lose_the_logarithm_of_the_answers():
    same = torch.ones(12, 8)
    assert mean(Contrast("pairs"), same, related.kind("pairs")).item() == pytest.approx(math.log(6))
    assert mean(Contrast("texts"), same[:6], related.kind("texts"), again=same[:6]).item() == pytest.approx(math.log(6))
    assert mean(Contrast("grouped"), same[:6], related.kind("grouped")).item() == pytest.approx(math.log(5))
    assert mean(Contrast("pairs", loss="triplet"), same, related.kind("pairs")).item() == pytest.approx(0.25)


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_examples_does_not_matter(name):
    which, options = LOSSES[name]
    if options.get("projection"):
        pytest.skip("its layer has to be there first")
    batch, learn = related.kind(which), Contrast(**options)
    z, again = vectors(len(batch), 32), vectors(len(batch), 32, seed=1)
    order = [i for group in reversed(batch.groups()) for i in group]
    more, moved = ({"again": again}, {"again": again[order]}) if name == "simcse" else ({}, {})
    torch.testing.assert_close(mean(learn, z[order], batch.pick(order), **moved), mean(learn, z, batch, **more))


def test_supcon_with_one_positive_is_infonce_among_all():
    batch, z = related.related([(i,) for i in range(6)], labels=[0, 0, 1, 1, 2, 2]), vectors(6)
    u = F.normalize(z, dim=-1)
    logits = (u @ u.T / 0.07).masked_fill(torch.eye(6, dtype=torch.bool), -torch.inf)
    torch.testing.assert_close(mean(Contrast("grouped"), z, batch), F.cross_entropy(logits, torch.tensor([1, 0, 3, 2, 5, 4])))


def test_supcon_averages_outside_the_logarithm():
    """Eq. 2, not eq. 3, of Khosla et al.: with the mean inside, the loss and its gradient are others."""
    batch, z = related.related([(i,) for i in range(6)], labels=[0, 0, 0, 1, 1, 1]), vectors(6)
    u = F.normalize(z, dim=-1)
    s = (u @ u.T / 0.07).masked_fill(torch.eye(6, dtype=torch.bool), -torch.inf)
    logp = s.log_softmax(1)
    rows = [[j for j in range(6) if j // 3 == i // 3 and j != i] for i in range(6)]
    outside = -torch.stack([logp[i, js].mean() for i, js in enumerate(rows)]).mean()
    inside = -torch.stack([logp[i, js].logsumexp(0) - math.log(2) for i, js in enumerate(rows)]).mean()
    found = mean(Contrast("grouped"), z, batch)
    torch.testing.assert_close(found, outside)
    assert (found - inside).abs() > 1e-2


def test_a_row_without_a_right_answer_is_no_unit():
    batch, z = related.related([(i,) for i in range(4)], labels=[0, 0, 1, 2]), vectors(4)
    learn = Contrast("grouped")
    assert learn.count(batch)["task"] == 2
    assert Contrast("grouped", loss="triplet").count(batch)["task"] == 2
    alone = related.related([(0,), (1,)], labels=[0, 1])
    z = vectors(2).requires_grad_()
    for loss in ("supcon", "triplet"):
        lone = Contrast("grouped", loss=loss)
        assert lone.count(alone)["task"] == 0
        value = lone.score({"z": z}, alone)["task"]
        value.backward()
        assert value.item() == 0 and z.grad.abs().max() == 0


def test_the_batch_hard_triplet_is_its_formula():
    batch, z = related.kind("grouped", 9), vectors(9)
    u = F.normalize(z, dim=-1)
    s, label = u @ u.T, batch["label"]
    want = []
    for i in range(9):
        same = [s[i, j] for j in range(9) if j != i and label[j] == label[i]]
        other = [s[i, j] for j in range(9) if label[j] != label[i]]
        want.append(F.relu(0.5 + max(other) - min(same)))
    torch.testing.assert_close(mean(Contrast("grouped", loss="triplet", margin=0.5), z, batch), torch.stack(want).mean())


@pytest.mark.parametrize("name", ["infonce", "cosent", "supcon", "simcse"])
def test_matryoshka_of_the_full_width_is_the_loss(name):
    which, options = LOSSES[name]
    batch = related.kind(which)
    z = vectors(len(batch), 32)
    more = {"again": vectors(len(batch), 32, 1)} if name == "simcse" else {}
    plain = mean(Contrast(**options), z, batch, **more)
    torch.testing.assert_close(mean(Contrast(**options, dims=(32,)), z, batch, **more), plain)
    halves = mean(Contrast(**options), z[:, :16], batch, **{k: v[:, :16] for k, v in more.items()})
    torch.testing.assert_close(mean(Contrast(**options, dims=(16, 32)), z, batch, **more), plain + halves)


def test_a_sharp_temperature_is_no_trouble_in_half_precision():
    """Logits over 65,504 are infinite in fp16; what is read is fp32, whatever the network computes in."""
    net = network("bert")
    net.compute = torch.bfloat16
    batch = related.kind("pairs")
    signals = Contrast("pairs").read(net, batch)
    assert signals["z"].dtype is torch.float32
    assert mean(Contrast("pairs", temperature=1e-5), signals["z"], batch).isfinite()


# ------------------------------------------------------------------------------------------------ duplicates


def test_a_duplicated_batch_is_the_batch():
    """Where most toolkits keep a floor of ln 2: a copy of the right answer is not a wrong one."""
    once, twice = related.kind("negatives"), related.related([e for e in ((2 * i, 2 * i + 1, 100 + 2 * i, 101 + 2 * i) for i in range(6)) for _ in (0, 1)])
    z = vectors(24)
    index = [once["text"].tolist().index(t) for t in twice["text"].tolist()]
    for options in ({}, {"symmetric": True}, {"loss": "triplet"}):
        torch.testing.assert_close(mean(Contrast("pairs", **options), z[index], twice), mean(Contrast("pairs", **options), z, once))
    naive = by_hand(z[index], [*range(0, 48, 4)], [*range(1, 48, 4), *(i for i in range(48) if i % 4 > 1)], 0.05)
    assert naive - mean(Contrast("pairs"), z[index], twice) > 0.5
    labelled = related.kind("grouped", 6)
    doubled = related.related([(i // 2,) for i in range(12)], labels=[i // 2 % 3 for i in range(12)])
    z = vectors(6)
    for loss in ("supcon", "triplet"):
        torch.testing.assert_close(mean(Contrast("grouped", loss=loss), z[doubled["text"]], doubled), mean(Contrast("grouped", loss=loss), z, labelled))


def test_no_partner_of_an_anchor_is_a_wrong_answer_to_it():
    """(a, b), (a, c): c is right for a as well; (d, a): the anchor's own text is not its wrong answer."""
    batch, z = related.related([(0, 1), (0, 2), (3, 0), (4, 5)]), vectors(6)
    u = F.normalize(z, dim=-1)
    rows = batch["text"]
    s = u @ u.T / 0.05
    want = [
        s[0, [1, 5]].logsumexp(0) - s[0, 1],
        s[0, [2, 5]].logsumexp(0) - s[0, 2],
        s[3, [1, 2, 0, 5]].logsumexp(0) - s[3, 0],
        s[4, [1, 2, 0, 5]].logsumexp(0) - s[4, 5],
    ]
    torch.testing.assert_close(mean(Contrast("pairs"), z[rows], batch), torch.stack(want).mean())


def test_repeated_texts_are_read_once_and_all_get_the_gradient():
    net = network("bert")
    seen: list[int] = []
    net.get_submodule(net.anatomy.embedding).register_forward_hook(lambda _m, args, _o: seen.append(args[0].numel()))
    batch = related.related([(0, 1), (0, 2), (3, 1)])
    z = Contrast("pairs").read(net, batch)["z"]
    texts = batch["text"].tolist()
    assert seen == [sum(n for i, n in enumerate(batch.ragged("ids").lengths) if texts.index(texts[i]) == i)] and len({*texts}) < len(texts)
    torch.testing.assert_close(z, net.pooled(batch), rtol=1e-5, atol=1e-6)
    assert torch.equal(z[0], z[2]) and torch.equal(z[1], z[5])


def test_two_prompts_are_two_inputs():
    """The same text as question and as answer: one text to the loss, two to the network."""
    batch = related.related([(0, 0), (1, 2)])
    apart = batch.plus(input=torch.tensor([0, 9, 1, 2]))
    net = network("bert").train()
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.3
    z = Contrast("pairs").read(net, apart)["z"]
    assert not torch.equal(z[0], z[1])
    assert torch.equal(*Contrast("pairs").read(net, batch)["z"][:2])


# ------------------------------------------------------------------------------------------------ the guide


def test_a_guide_hides_what_it_finds_nearer_than_the_right_answer():
    batch, z, g = related.kind("pairs"), vectors(12), vectors(12, seed=5)
    u, v = F.normalize(z, dim=-1), F.normalize(g, dim=-1)
    s, seen = u[::2] @ u[1::2].T / 0.05, v[::2] @ v[1::2].T
    for margin in (0.0, 0.2):
        hidden = (seen > seen.diagonal()[:, None] - margin) & ~torch.eye(6, dtype=torch.bool)
        assert hidden.any() and not hidden.all()
        want = F.cross_entropy(s.masked_fill(hidden, -torch.inf), torch.arange(6))
        found = mean(Contrast("pairs", guide="base", guide_margin=margin), z, batch.plus(guide=g))
        torch.testing.assert_close(found, want)
        assert not torch.allclose(found, mean(Contrast("pairs"), z, batch))


def test_a_guide_that_finds_all_alike_changes_nothing():
    batch, z = related.kind("pairs"), vectors(12)
    g = F.one_hot(torch.arange(12) // 2, 12).double()
    torch.testing.assert_close(mean(Contrast("pairs", guide="base"), z, batch.plus(guide=g)), mean(Contrast("pairs"), z, batch))


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("kind", "options", "said", "fix"),
    [
        ("pairs", {"loss": "cosent"}, "pairs with a score", "infonce or triplet"),
        ("pairs", {"loss": "supcon"}, "texts with a label", "infonce or triplet"),
        ("similar", {"loss": "infonce"}, "reads pairs", "cosent or cosine"),
        ("grouped", {"loss": "simcse"}, "texts alone", "supcon or triplet"),
        ("texts", {"loss": "infonce"}, "reads pairs", "simcse"),
        ("grouped", {"symmetric": True}, "symmetric", "infonce"),
        ("similar", {"guide": "base"}, "guide", "infonce"),
        ("pairs", {"guide_margin": 0.1}, "guide_margin", "guide: base"),
        ("pairs", {"dims": (8, 8)}, "dims", "once"),
        ("similar", {"loss": "cosine", "scores": (5.0, 0.0)}, "scores", "lowest"),
        ("similar", {"loss": "cosine", "temperature": 0.1}, "temperature", "leave"),
        ("pairs", {"margin": 0.1}, "margin", "triplet"),
        ("pairs", {"projection": True, "dims": (8,)}, "projection", "dims"),
    ],
)
def test_what_makes_no_sense_is_said(kind: str, options: dict[str, Any], said: str, fix: str):
    with pytest.raises(Refusal) as e:
        Contrast(kind, **options)
    assert said in e.value.what and fix in e.value.fix


def test_rows_that_teach_nothing_are_refused():
    with pytest.raises(Refusal, match=r"scores run from 0 to 5") as e:
        Contrast("similar", loss="cosine").accept(related.related([(0, 1), (2, 3)], scores=[0.0, 5.0]).columns, 8)
    assert "scores: [0, 5]" in e.value.fix
    Contrast("similar", loss="cosine", scores=(0, 5)).accept(related.related([(0, 1), (2, 3)], scores=[0.0, 5.0]).columns, 8)
    with pytest.raises(Refusal, match="same score"):
        Contrast("similar").accept(related.related([(0, 1), (2, 3)], scores=[1.0, 1.0]).columns, 8)
    for labels, texts in (([0, 1, 2], (0, 1, 2)), ([0, 0, 0], (0, 1, 2)), ([0, 0, 1], (5, 5, 2))):
        with pytest.raises(Refusal, match="no label has two"):
            Contrast("grouped").accept(related.related([(t,) for t in texts], labels=labels).columns, 8)
    with pytest.raises(Refusal, match="alone"):
        Contrast("pairs").accept(related.kind("pairs").columns, 1)
    Contrast("pairs").accept(related.kind("negatives").columns, 1)


def test_simcse_needs_dropout():
    """With none, both readings are equal and the loss sees nothing but the other texts."""
    net = network("bert")
    with pytest.raises(Refusal, match="dropout"):
        Contrast("texts").meet(net)
    LoRA(dropout=0.1).attach(net)
    Contrast("texts").meet(net)
    dropping = network("bert")
    assert not drops(dropping)
    next(m for m in dropping.modules() if isinstance(m, nn.Dropout)).p = 0.1
    assert drops(dropping)


def test_two_readings_differ_by_dropout_alone():
    net = network("bert")
    Full().attach(net)
    batch, learn = related.kind("texts"), Contrast("texts")
    still = learn.read(net.train(), batch)
    torch.testing.assert_close(still["z"], still["again"])
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    moved = learn.read(net, batch)
    assert (moved["z"] - moved["again"]).abs().max() > 1e-3


def test_dimensions_beyond_the_width_are_refused():
    with pytest.raises(Refusal, match="32 components"):
        Contrast("pairs", dims=(32, 64)).meet(network("bert"))


# ------------------------------------------------------------------------------------------------ sentence-transformers


class Fixed(nn.Module):
    """Stands where sentence-transformers expects a model; gives back the embeddings that it is fed."""

    def __init__(self, width: int, key: str = "z"):
        super().__init__()
        self.width, self.key, self.tokenizer, self.max_seq_length = width, key, shop.tokenizer(), 64

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features[self.key]}

    def get_embedding_dimension(self) -> int:
        return self.width


def theirs(name: str, columns: list[Tensor], labels: Tensor, wrap: Any = None, **options: Any) -> Tensor:
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer import losses

    model: Any = Fixed(columns[0].shape[1])
    loss = getattr(losses, name)(model, **options)
    if wrap:
        loss = losses.MatryoshkaLoss(model, loss, list(wrap))
    return loss([{"z": column} for column in columns], labels)


def sides(z: Tensor, batch: Batch) -> list[Tensor]:
    return [z[batch["side"] == side] for side in range(int(batch["side"].max()) + 1)]


@pytest.mark.parametrize("dims", [(), (8, 4, 2)])
@pytest.mark.parametrize(
    ("which", "options", "name", "peers"),
    [
        ("pairs", {}, "MultipleNegativesRankingLoss", {}),
        ("negatives", {"temperature": 0.02}, "MultipleNegativesRankingLoss", {"scale": 50.0}),
        ("negatives", {"symmetric": True}, "MultipleNegativesRankingLoss", {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}),
        ("similar", {}, "CoSENTLoss", {}),
        ("similar", {"loss": "cosine"}, "CosineSimilarityLoss", {}),
    ],
)
def test_losses_and_gradients_are_those_of_sentence_transformers(which, options, name, peers, dims):
    batch = related.kind(which)
    mine, other = (vectors(len(batch)).requires_grad_() for _ in (0, 1))
    kind = "similar" if which == "similar" else "pairs"
    ours = mean(Contrast(kind, dims=dims, **options), mine, batch)
    labels = batch["score"][batch["side"] == 0].double() if "score" in batch else torch.zeros(6)
    peer = theirs(name, sides(other, batch), labels, dims, **peers)
    torch.testing.assert_close(ours, peer, rtol=1e-9, atol=1e-9)
    ours.backward()
    peer.backward()
    torch.testing.assert_close(mine.grad, other.grad, rtol=1e-7, atol=1e-9)


def test_the_hard_triplet_is_theirs():
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.losses import BatchHardTripletLoss, BatchHardTripletLossDistanceFunction

    batch, z = related.kind("grouped", 9), vectors(9)
    peer = BatchHardTripletLoss(Fixed(8), BatchHardTripletLossDistanceFunction.cosine_distance, 0.3)([{"z": z}], batch["label"])  # type: ignore[arg-type]
    torch.testing.assert_close(mean(Contrast("grouped", loss="triplet", margin=0.3), z, batch), peer)


@pytest.mark.parametrize("margin", [0.0, 0.2])
def test_the_guide_is_theirs(margin: float):
    """Without the contrasts of anchors with anchors and positives with positives, which we have not."""
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.losses import GISTEmbedLoss

    batch = related.related([(3 * i, 3 * i + 1, 3 * i + 2) for i in range(6)])
    z, g = vectors(18), vectors(18, seed=5)
    models: list[Any] = [Fixed(8), Fixed(8, "g")]
    peer = GISTEmbedLoss(*models, temperature=0.05, margin=margin, contrast_anchors=False, contrast_positives=False)
    features = [{"z": a, "g": b} for a, b in zip(sides(z, batch), sides(g, batch), strict=True)]
    torch.testing.assert_close(mean(Contrast("pairs", guide="base", guide_margin=margin), z, batch.plus(guide=g)), peer(features, torch.zeros(6)))
