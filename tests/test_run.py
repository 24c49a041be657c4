"""Whole runs on a tiny workshop: every task by every method, the artifact asked again, written for peft, folded into a plain model."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

import shop
import tunesmith
from tunesmith.artifact import export, load
from tunesmith.comparison.arms import EIGHT
from tunesmith.errors import Refusal
from tunesmith.progress import Reporter
from tunesmith.recipe import recipe
from tunesmith.train import run

OPTIONS = {"adapter": {"width": 4}, "prompt": {"length": 4}, "prefix": {"length": 4}, "layers": {"last": 1}, "lora": {"rank": 2}}


def spec(method: str) -> dict:
    return {"kind": method, **OPTIONS.get(method, {})}


def train(made: dict, **more):
    return run(recipe({**made, **more}), Reporter(quiet=True))


@pytest.mark.parametrize("shape", ["classify", "multi", "pair", "tag", "score"])
@pytest.mark.parametrize("method", EIGHT)
def test_an_encoder_learns_every_task_by_every_method(encoder, method, shape, tmp_path):
    made = shop.recipe(encoder, shape, spec(method), out=str(tmp_path / "run"), update={"batch": 8, "rate": 5e-3}, budget={"steps": 30}, evaluate={"every": 30})
    result = train(made)
    assert result["after"]["loss"] < result["before"]["loss"]
    for key in ("task", "model", "method", "objective", "stream", "seed", "metric", "train_seconds", "real_tokens_per_second", "peak_memory_bytes"):
        assert result.record[key] is not None, key
    written = sum(p.stat().st_size for p in (result.folder / "artifact").glob("*.safetensors"))
    assert result["artifact_bytes"] == written
    texts = ["w1 w2 w3", "w40 w41"] if shape != "pair" else [["w1 w2", "w3"], ["w40", "w41"]]
    assert len(load(result.folder).predict(texts)) == 2


@pytest.mark.parametrize("shape", ["generate", "messages", "plain"])
@pytest.mark.parametrize("method", EIGHT)
def test_a_decoder_learns_to_write(decoder, method, shape, tmp_path):
    made = shop.recipe(decoder, shape, spec(method), out=str(tmp_path / "run"), update={"batch": 8, "rate": 1e-2}, budget={"steps": 30})
    result = train({**made, "evaluate": {"every": 30, "samples": 2, "max_new_tokens": 3}})
    assert result["after"]["perplexity"] < result["before"]["perplexity"]
    assert len(load(result.folder).predict(["w1 w2"])[0]["text"]) >= 0


@pytest.mark.parametrize("method", [m for m in EIGHT if m != "head"])
def test_an_encoder_decoder_learns_to_answer(seq2seq, method, tmp_path):
    made = shop.recipe(seq2seq, "generate", spec(method), out=str(tmp_path / "run"), update={"batch": 8, "rate": 1e-2}, budget={"steps": 30})
    result = train({**made, "evaluate": {"every": 30, "samples": 2, "max_new_tokens": 3}})
    assert result["after"]["perplexity"] < result["before"]["perplexity"]
    assert isinstance(load(result.folder).predict(["w1 w2"])[0]["text"], str)


def test_learning_what_is_learnable_reaches_it(encoder, tmp_path):
    """Two halves of the vocabulary, two classes: a method that learns separates them; shuffled labels (the control) it cannot."""
    result = train(shop.recipe(encoder, "classify", "full", out=str(tmp_path / "a"), budget={"steps": 80}, update={"batch": 8, "rate": 1e-3}))
    assert result["after"]["accuracy"] == 1.0
    lines = [json.loads(line) for line in (encoder / "classify.jsonl").read_text().splitlines()]
    held = shop.rows(tmp_path / "held.jsonl", "classify", seed=9)
    shuffled = tmp_path / "shuffled.jsonl"
    shuffled.write_text("".join(json.dumps({**row, "label": "ab"[(i // 2) % 2]}) + "\n" for i, row in enumerate(lines)))
    made = shop.recipe(encoder, "classify", "full", out=str(tmp_path / "b"), budget={"steps": 80}, update={"batch": 8, "rate": 1e-3})
    control = train({**made, "data": {"train": str(shuffled), "eval": str(held)}})
    assert control["after"]["accuracy"] < 0.8


@pytest.mark.parametrize(
    "method", ["lora", {"kind": "lora", "dora": True}, {"kind": "lora", "start": "pissa"}, {"kind": "prompt", "length": 4}, {"kind": "prefix", "length": 4}]
)
def test_peft_reads_what_we_write(decoder, method, tmp_path):
    peft = pytest.importorskip("peft")
    result = train(shop.recipe(decoder, "generate", method, out=str(tmp_path / "run"), update={"batch": 8, "rate": 1e-2}))
    ours = load(result.folder)
    base = AutoModelForCausalLM.from_pretrained(decoder / "model")
    theirs = peft.PeftModel.from_pretrained(base, str(result.folder / "artifact")).eval()
    from tunesmith.core import Batch, Ragged
    from tunesmith.networks.vocabulary import logits_of

    ids = torch.arange(4, 12)
    with torch.no_grad():
        batch = Batch({"ids": Ragged(ids, (8,))})
        mine = logits_of(ours.net.states(batch).values, *ours.net.vocabulary())
        other = theirs(input_ids=ids[None]).logits[0][-8:]
    torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ["full", "head", "layers", "lora", "bitfit"])
def test_what_merges_becomes_a_plain_model(encoder, decoder, method, tmp_path):
    for work, shape, auto in ((encoder, "classify", AutoModel), (decoder, "generate", AutoModelForCausalLM)):
        result = train(shop.recipe(work, shape, spec(method), out=str(tmp_path / shape), update={"batch": 8, "rate": 1e-2}))
        files = export(result.folder, tmp_path / f"{shape}-plain")
        assert "model.safetensors" in files
        plain = auto.from_pretrained(tmp_path / f"{shape}-plain").eval()
        ids = torch.arange(4, 12)[None]
        tuned = load(result.folder)
        from tunesmith.core import Batch, Ragged

        with torch.no_grad():
            want = tuned.net.states(Batch({"ids": Ragged(ids[0], (8,))})).values
            got = plain.base_model(input_ids=ids).last_hidden_state[0] if shape == "generate" else plain(input_ids=ids).last_hidden_state[0]
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("method", ["adapter", "prompt", "prefix"])
def test_what_cannot_merge_says_so(encoder, method, tmp_path):
    result = train(shop.recipe(encoder, "classify", spec(method), out=str(tmp_path / "run")))
    with pytest.raises(Refusal, match="cannot be folded"):
        export(result.folder, tmp_path / "plain")


@pytest.mark.parametrize("method", EIGHT)
def test_the_artifact_alone_rebuilds_the_tuned_network(encoder, method, tmp_path):
    made = shop.recipe(encoder, "classify", spec(method), out=str(tmp_path / "run"))
    result = train(made)
    outcome = load(result.folder)
    from tunesmith.ask import evaluate

    scores = evaluate(result.folder, str(encoder / "classify.jsonl"))
    assert scores["loss"] == pytest.approx(result["after"]["loss"], abs=1e-5)
    assert outcome.task.labels == ("a", "b")


def test_python_and_command_line_share_one_door(encoder, tmp_path):
    result = tunesmith.run(shop.recipe(encoder, "classify", out=str(tmp_path / "run")))
    assert tunesmith.load(result.folder).predict(["w1"])[0]["label"] in ("a", "b")
    again = tunesmith.run(shop.recipe(encoder, "classify", out=str(tmp_path / "run")))
    assert again.record == result.record
