"""Runs that embed, from end to end: every method, every kind of rows, judged, asked, exported; hard negatives mined."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import related
import shop
from tunesmith import listeners
from tunesmith.advice.rehearsal import rehearse
from tunesmith.artifact import export, load
from tunesmith.ask import evaluate, predictions
from tunesmith.check import check
from tunesmith.comparison.arms import EIGHT
from tunesmith.dataset import read_data
from tunesmith.errors import Refusal
from tunesmith.evaluate.embedding import pairs, ranked
from tunesmith.evaluate.evaluate import Probe
from tunesmith.mining import Rule, mine, search
from tunesmith.progress import Reporter
from tunesmith.recipe import recipe
from tunesmith.sources.text.examples import Related
from tunesmith.train import run

OPTIONS = {"adapter": {"width": 4}, "prompt": {"length": 4}, "prefix": {"length": 4}, "layers": {"last": 1}, "lora": {"rank": 2}}
QUIET = Reporter(quiet=True)


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(shape: str, n: int = 40, seed: int = 0) -> list[dict]:
    """Texts of one half of the vocabulary belong together."""
    texts = shop.texts(2 * n, seed)
    halves = [[t for t, h in texts if h == half] for half in (0, 1)]
    pairs = [{"anchor": halves[i % 2][i // 2], "positive": halves[i % 2][n // 2 + i // 2]} for i in range(n)]
    return {
        "pairs": pairs,
        "negatives": [row | {"negative": halves[1 - i % 2][i // 2]} for i, row in enumerate(pairs)],
        "similar": [{"sentence1": halves[0][i], "sentence2": halves[i % 2][(i + 7) % n], "score": float(1 - i % 2)} for i in range(n)],
        "grouped": [{"text": t, "label": "ab"[h]} for t, h in texts[:n]],
        "texts": [{"text": t} for t, _ in texts[:n]],
    }[shape]


def embed(work: Path, shape: str, method: str = "lora", **more) -> dict:
    """A recipe; texts alone are judged on scored pairs."""
    train = write(work / f"{shape}.jsonl", rows(shape))
    judge = write(work / "similar.jsonl", rows("similar")) if shape == "texts" else train
    base = {
        "model": str(work / "model"), "task": "embed", "data": {"train": train, "eval": judge}, "method": {"kind": method, **OPTIONS.get(method, {})},
        "budget": {"steps": 20}, "update": {"batch": 8, "rate": 5e-3}, "evaluate": {"every": 20, "best": False}, "checkpoint": {"every": 100}, "dtype": "fp32",
        "kernel": "matmul", "threads": 1, "out": str(work / "run"),
    }  # fmt: skip
    return {**base, **more}


def train(made: dict):
    return run(recipe(made), QUIET)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("embed")
    shop.encoder(folder / "model")
    return folder


# ------------------------------------------------------------------------------------------------ methods and rows


def test_pairs_say_what_they_are_about_where_the_recipe_names_it(work, tmp_path):
    """Of sentence pairs a column `label` usually says how the two relate: it is read as what both are about only where it is asked for."""
    path = write(tmp_path / "pairs.jsonl", [row | {"label": "ab"[i % 2]} for i, row in enumerate(rows("negatives"))])
    made = embed(work, "pairs", data={"train": path, "eval": path})
    assert "alike" not in read_data(recipe(made)).train.encoded.columns
    named = recipe({**made, "data": {**made["data"], "columns": {"anchor": "anchor", "positive": "positive", "negative": "negative", "label": "label"}}})
    data = read_data(named)
    assert data.task.kind == "pairs" and data.train.encoded.columns["alike"].tolist()[:6] == [0, 0, -1, 1, 1, -1]
    assert train({**named.plain(), "out": str(tmp_path / "run")}).record["steps"] == 20


@pytest.mark.parametrize("shape", ["pairs", "similar", "grouped", "texts"])
@pytest.mark.parametrize("method", EIGHT)
def test_every_method_trains_on_every_kind_of_rows_or_is_refused_before_loading(work, shape, method, tmp_path, monkeypatch):
    """All rows a batch, so that losses can be compared; texts alone keep the published dropout, of which they live."""
    made = embed(work, shape, method, out=str(tmp_path / "run"), budget={"steps": 10}, dropout=None if shape == "texts" else 0.0)
    made |= {"update": {"batch": 40, "rate": 3e-2 if method in ("prompt", "prefix") else 3e-3}}
    if method == "head":
        monkeypatch.setattr("tunesmith.shared.load_network", lambda *_, **__: pytest.fail("loaded"))
        with pytest.raises(Refusal, match="no head"):
            train(made)
        return
    result = train(made)
    losses = [json.loads(line)["loss"] for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-3:]) < sum(losses[:3]) and all(np.isfinite(losses))
    assert result["metric"] == {"pairs": "ndcg@10", "similar": "spearman", "grouped": "accuracy", "texts": "spearman"}[shape]
    assert result["before"].keys() == result["after"].keys() and result["after"]["loss"] > 0
    scores = evaluate(result.folder, made["data"]["eval"])
    assert scores["loss"] == pytest.approx(result["after"]["loss"], abs=1e-5)
    (vector,) = (r["vector"] for r in predictions(result.folder, ["w1 w2 w3"], 1, 0.0))
    assert len(vector) == 32 and np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "objective",
    [
        {"loss": "infonce", "symmetric": True, "dims": [32, 8]}, {"loss": "triplet"}, {"guide": "base", "guide_margin": 0.1}, {"guide": "minilm"},
    ],
    ids=lambda o: "-".join(map(str, o)),
)  # fmt: skip
def test_options_of_the_objective_run_and_pieces_are_the_whole(work, objective, tmp_path):
    """A pass of 60 tokens at a time gives the weights of one pass: dropout is 0 here, so that both can be compared."""
    found = []
    for micro in (16384, 60):
        made = embed(work, "negatives", "lora", out=str(tmp_path / str(micro)), objective={"kind": "contrast", **objective}, dropout=0.0)
        result = train({**made, "update": {"batch": 8, "rate": 5e-3, "micro": micro}, "budget": {"steps": 8}})
        found.append([json.loads(line)["loss"] for line in (result.folder / "metrics.jsonl").read_text().splitlines()])
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_a_guide_is_foreseen(work, tmp_path, monkeypatch):
    """One that is none is refused before a weight is loaded; one that is counts while it is asked."""
    monkeypatch.setattr("tunesmith.shared.load_network", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refusal):
        train(embed(work, "negatives", out=str(tmp_path / "run"), objective={"kind": "contrast", "guide": str(tmp_path / "empty")}))
    needs = {}
    for guide in ("base", "minilm"):
        made = recipe(embed(work, "negatives", objective={"kind": "contrast", "guide": guide}))
        needs[guide] = rehearse(made, read_data(made))
    assert needs["base"].beside == 0
    assert needs["minilm"].beside == 4 * 22_713_216


def test_it_learns_what_can_be_learnt_and_nothing_from_shuffled_labels(work, tmp_path):
    """Nearest neighbours of unseen texts; the control has the same texts with labels dealt anew."""
    held, made = write(tmp_path / "held.jsonl", rows("grouped", seed=5)), embed(work, "grouped", "full", out=str(tmp_path / "a"))
    made |= {"data": {"train": made["data"]["train"], "eval": held}, "budget": {"steps": 60}, "update": {"batch": 16, "rate": 1e-3}}
    result = train(made)
    assert result["before"]["accuracy"] < 0.95 and result["after"]["accuracy"] > result["before"]["accuracy"] + 0.04
    dealt = write(tmp_path / "dealt.jsonl", [row | {"label": "ab"[i // 2 % 2]} for i, row in enumerate(rows("grouped"))])
    control = train(made | {"out": str(tmp_path / "b"), "data": {"train": dealt, "eval": held}})
    assert control["after"]["accuracy"] < result["after"]["accuracy"] - 0.04


def test_a_run_that_continues_is_the_run(work, tmp_path):
    """With simcse, whose dropout has to come out as it would have, and a projection whose weights are the objective's own."""
    made = embed(work, "texts", "lora", objective={"kind": "contrast", "projection": True}, update={"batch": 8, "rate": 5e-3, "micro": 60})
    made |= {"checkpoint": {"every": 1}}
    whole = train(made | {"out": str(tmp_path / "whole")})
    steps = iter(range(100))
    stop = listeners.Journal.step

    def broken(self, run, record):
        stop(self, run, record)
        if next(steps) == 7:
            raise KeyboardInterrupt

    listeners.Journal.step = broken  # type: ignore[method-assign]
    try:
        with pytest.raises(KeyboardInterrupt):
            train(made | {"out": str(tmp_path / "cut")})
    finally:
        listeners.Journal.step = stop  # type: ignore[method-assign]
    again = train(made | {"out": str(tmp_path / "cut")})
    losses = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "cut")]
    assert [json.loads(line)["loss"] for line in losses[0].splitlines()] == [json.loads(line)["loss"] for line in losses[1].splitlines()]
    assert again["after"] == whole["after"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"update": {"kind": "descend"}}, "see each other"),
        ({"objective": "supervised"}, "task: embed"),
        ({"head": {"kind": "mlp"}}, "pooled states are the embedding"),
        ({"dropout": 0.0}, "dropout"),
        ({"objective": {"kind": "contrast", "temprature": 1}}, "unknown key"),
        ({"objective": {"kind": "contrast", "temperature": 0}}, "temperature"),
    ],
)
def test_refusals(work, tmp_path, change, said):
    with pytest.raises(Refusal) as e:
        train(embed(work, "texts", out=str(tmp_path / "run")) | change)
    assert said in str(e.value)


def test_texts_alone_are_nothing_to_judge_by(work, tmp_path):
    made = embed(work, "texts", out=str(tmp_path / "run"))
    for judge in (0.2, made["data"]["train"]):
        with pytest.raises(Refusal, match="texts alone"):
            train(made | {"data": {"train": made["data"]["train"], "eval": judge}})


# ------------------------------------------------------------------------------------------------ prompts, export


PROMPTS = {"anchor": "w1 w2 ", "positive": "w3 "}


@pytest.mark.parametrize("pool", ["mean", "cls", "last"])
@pytest.mark.parametrize("prompts", [{}, PROMPTS, {"text": "w4 "}], ids=["none", "sides", "text"])
def test_sentence_transformers_loads_it_with_equal_embeddings(work, tmp_path, pool, prompts):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    made = embed(work, "grouped" if "text" in prompts else "pairs", "lora", out=str(tmp_path / "run"), head={"pool": pool})
    result = train({**made, "data": {**made["data"], "prompts": prompts, "max_length": 8}, "budget": {"steps": 2}})
    tuned = load(result.folder)
    export(result.folder, tmp_path / "st")
    model = sentence_transformers.SentenceTransformer(str(tmp_path / "st"), device="cpu")
    texts = ["w1 w2 w3", "w9", "w5 w6 w7 w8 w9 w10 w11 w12 w13"]
    mine = lambda asked: np.array([r["vector"] for r in tuned.predict(asked)])
    if "text" in prompts:
        np.testing.assert_allclose(model.encode(texts), mine(texts), atol=1e-5)
        return
    np.testing.assert_allclose(model.encode_query(texts), mine(texts), atol=1e-5)
    np.testing.assert_allclose(model.encode_document(texts), mine([{"positive": t} for t in texts]), atol=1e-5)
    assert np.allclose(mine(texts), mine([{"positive": t} for t in texts])) == (not prompts)


def test_a_decoder_embeds_by_its_last_token(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    shop.decoder(tmp_path / "model")
    result = train(embed(tmp_path, "pairs", "lora", out=str(tmp_path / "run")))
    export(result.folder, tmp_path / "st")
    model = sentence_transformers.SentenceTransformer(str(tmp_path / "st"), device="cpu")
    texts = ["w1 w2 w3", "w9"]
    np.testing.assert_allclose(model.encode(texts), [r["vector"] for r in load(result.folder).predict(texts)], atol=1e-5)


def test_prompts_stand_in_the_training_rows_and_are_refused_where_no_row_has_their_role(work, tmp_path):
    made = embed(work, "pairs", out=str(tmp_path / "run"))
    plain = check(recipe(made), QUIET).facts["tokens"]["train"]["per_epoch"]
    longer = check(recipe({**made, "data": {**made["data"], "prompts": PROMPTS}}), QUIET).facts["tokens"]["train"]["per_epoch"]
    assert longer == plain + 40 * 3
    with pytest.raises(Refusal, match="these rows have anchor and positive"):
        check(recipe({**made, "data": {**made["data"], "prompts": {"text": "w1 "}}}), QUIET)
    with pytest.raises(Refusal, match=r"data\.prompts"):
        recipe({**shop.recipe(work, "classify"), "data": {"train": "x", "prompts": {"text": "w1 "}}})


# ------------------------------------------------------------------------------------------------ how it is judged


def test_retrieval_is_what_sentence_transformers_finds(work, tmp_path):
    """Its InformationRetrievalEvaluator on the same vectors: anchors with several positives, negatives among the documents."""
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    generator = torch.Generator().manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn(60, 8, generator=generator), dim=-1)
    examples = [(i, 20 + i, 40 + i) for i in range(20)] + [(0, 21), (0, 22), (3, 25)]
    batch = related.related(examples)
    net = type("Net", (), {"pooled": lambda self, b: z[b["text"]]})()
    probe = Probe("eval", lambda net: iter([batch.plus(row=torch.arange(len(batch)))]), "pairs", (), [1] * len(examples))
    found = pairs(probe, net)  # type: ignore[arg-type]
    queries = {str(a): str(a) for a, *_ in examples}
    documents = {str(t): str(t) for e in examples for t in e[1:]}
    relevant = {q: {str(e[1]) for e in examples if str(e[0]) == q} for q in queries}
    judge = InformationRetrievalEvaluator(queries, documents, relevant, mrr_at_k=[1000], ndcg_at_k=[10], precision_recall_at_k=[1, 10], map_at_k=[10])
    embed_of = lambda texts: z[[int(t) for t in texts]]
    scores = embed_of(queries) @ embed_of(documents).T
    ids = list(documents)
    ranked_lists = [[{"corpus_id": ids[k], "score": float(s[k])} for k in s.argsort(descending=True).tolist()] for s in scores]
    theirs = judge.compute_metrics(ranked_lists)
    assert found.scores.values["ndcg@10"] == pytest.approx(theirs["ndcg@k"][10], abs=1e-6)
    assert found.scores.values["mrr"] == pytest.approx(theirs["mrr@k"][1000], abs=1e-6)
    assert found.scores.values["recall@1"] == pytest.approx(theirs["recall@k"][1], abs=1e-6)
    assert found.scores.values["recall@10"] == pytest.approx(theirs["recall@k"][10], abs=1e-6)
    a, b = (sum(x) for x in zip(*found.shares, strict=True))
    assert a / b == pytest.approx(found.scores.values["ndcg@10"])


def test_a_constant_embedding_has_no_luck():
    assert ranked(torch.ones(2), torch.ones(5)).places == (6, 7)
    assert ranked(torch.tensor([0.5, 0.9]), torch.tensor([0.7, 0.1])).places == (1, 3)


# ------------------------------------------------------------------------------------------------ hard negatives


def test_negatives_are_near_but_not_too_near():
    """A unit circle: the anchor at 0 degrees, its positive at 20; documents at 5 (too near), 25, 40, 90; the rule wants below 95 % of the positive."""
    at = lambda *degrees: torch.tensor([[np.cos(np.radians(d)), np.sin(np.radians(d))] for d in degrees], dtype=torch.float32)
    texts = ["right", "near", "close", "next", "far"]
    documents = at(20, 5, 25, 40, 90)
    pairs = [Related(("asked", "right"), 0)]
    find = lambda **rule: search(at(0), documents, pairs, texts, Rule(**rule))[0]
    assert [texts[k] for k in find(negatives=2).chosen] == ["next", "far"] and find().near == 2
    assert [texts[k] for k in find(negatives=2, margin=0.0).chosen] == ["close", "next"]
    assert [texts[k] for k in find(negatives=1, skip=3).chosen] == ["far"]
    assert [texts[k] for k in find(negatives=3, among=3).chosen] == ["next"]
    both = [Related(("asked", "right"), 0), Related(("asked", "next"), 1)]
    assert all(3 not in f.chosen and 0 not in f.chosen for f in search(at(0, 0), documents, both, texts, Rule()))


def test_mined_rows_are_trained_on(work, tmp_path):
    made = embed(work, "pairs", out=str(tmp_path / "run"))
    said = mine(made["data"]["train"], tmp_path / "mined.jsonl", model=str(work / "model"), rule=Rule(negatives=2))
    lines = [json.loads(line) for line in (tmp_path / "mined.jsonl").read_text().splitlines()]
    assert len(lines) == 40 == said["pairs"] and sum(len(line) - 2 for line in lines) == said["negatives"] > 0
    positives = {(row["anchor"], row["positive"]) for row in lines}
    assert not any((line["anchor"], line[k]) in positives or line[k] == line["anchor"] for line in lines for k in line if k.startswith("negative"))
    first = train(made)
    result = train({**made, "data": {"train": str(tmp_path / "mined.jsonl"), "eval": made["data"]["eval"]}, "out": str(tmp_path / "again")})
    assert result["after"]["ndcg@10"] is not None
    by_run = mine(made["data"]["train"], tmp_path / "by-run.jsonl", model=str(first.folder))
    assert by_run["positive_cosine"] > said["negative_cosine"]
    with pytest.raises(Refusal, match="exists"):
        mine(made["data"]["train"], tmp_path / "mined.jsonl", model="minilm")
    with pytest.raises(Refusal, match="no pairs"):
        mine(write(tmp_path / "texts.jsonl", rows("texts")), tmp_path / "none.jsonl", model="minilm")
