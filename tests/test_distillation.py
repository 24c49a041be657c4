"""Distillation from a recipe: what may teach, who is asked what and once, answers that do not fit, students that continue, and every method as a student."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

import shop
from test_resume import Stop, same, train_with_stops
from tunesmith.advice.rehearsal import rehearse
from tunesmith.artifact import export, load
from tunesmith.ask import as_row, unanswered
from tunesmith.check import check
from tunesmith.comparison.arms import EIGHT
from tunesmith.comparison.compare import compare
from tunesmith.dataset import asked, read_data
from tunesmith.errors import Refusal
from tunesmith.job import assemble
from tunesmith.progress import Reporter
from tunesmith.recipe import recipe
from tunesmith.shared import Shared
from tunesmith.teaching import ask, teacher
from tunesmith.teaching.ask import number
from tunesmith.train import run

QUIET = Reporter(quiet=True)
OPTIONS = {"adapter": {"width": 4}, "prompt": {"length": 4}, "prefix": {"length": 4}, "layers": {"last": 1}, "lora": {"rank": 2}}
STEPS = {"update": {"batch": 8, "rate": 5e-3}, "budget": {"steps": 15}, "evaluate": {"every": 15, "samples": 0}}


def spec(method: str) -> dict:
    return {"kind": method, **OPTIONS.get(method, {})}


def teach(work: Path, shape: str, steps: int = 25, **more) -> Path:
    made = shop.recipe(
        work,
        shape,
        "full",
        out=str(work / f"teacher-{shape}"),
        update={"batch": 8, "rate": 1e-2},
        budget={"steps": steps},
        evaluate={"every": steps, "samples": 0},
        **more,
    )
    return run(recipe(made), QUIET).folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    work = tmp_path_factory.mktemp("encoder")
    shop.encoder(work / "model")
    for shape in ("classify", "tag", "score", "multi"):
        teach(work, shape)
    return work


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> Path:
    work = tmp_path_factory.mktemp("decoder")
    shop.decoder(work / "model")
    teach(work, "generate")
    return work


@pytest.fixture(scope="module")
def seq2seq(tmp_path_factory) -> Path:
    work = tmp_path_factory.mktemp("seq2seq")
    shop.seq2seq(work / "model")
    teach(work, "generate")
    return work


def student(work: Path, shape: str, out: Path, method: str = "lora", objective: dict | None = None, **more) -> dict:
    learn = {"kind": "distil", "teacher": str(work / f"teacher-{shape}"), "alpha": 1.0, **(objective or {})}
    return shop.recipe(work, shape, spec(method), objective=learn, out=str(out), **{**STEPS, **more})


def train(made: dict):
    return run(recipe(made), QUIET)


def job_of(made: dict):
    r = recipe(made)
    data = read_data(r)
    return assemble(r, data, Shared().dressed(r, data), QUIET)


def columns_of(made: dict) -> dict[str, torch.Tensor]:
    """By text: what the teacher answered, as training sees it."""
    job = job_of(made)
    source = job.run.stream[0].train
    found = {}
    for batch in source.once(job.net):
        rows = batch.ragged("teacher").rows() if made["task"] in ("tag", "generate") else batch["teacher"]
        found |= {asked(job.data.train.examples[i]): row for i, row in zip(batch["row"].tolist(), rows, strict=True)}
    return found


def never(*_: object) -> None:
    raise AssertionError("the teacher was loaded")


# ------------------------------------------------------------------------------------------------ students


@pytest.mark.parametrize("shape", ["classify", "generate"])
@pytest.mark.parametrize("method", EIGHT)
def test_every_method_can_be_the_student(encoder, decoder, method, shape, tmp_path):
    work = encoder if shape == "classify" else decoder
    result = train(student(work, shape, tmp_path / "run", method, {"cache": str(work / f"cache-{shape}"), "top": 8}))
    assert result["after"]["loss"] < result["before"]["loss"], "from the teacher alone: labels have no weight"
    assert {"parameters", "bytes", "latency_ms", "scores", "name"} == set(result["teacher"]) == set(result["student"])
    assert result["student"]["parameters"] == result["total_parameters"] and result["student"]["scores"] == result["after"]
    assert result["teacher"]["scores"]["loss"] < result["before"]["loss"]
    assert f"| teacher {work / f'teacher-{shape}'} |" in (result.folder / "README.md").read_text()


@pytest.mark.parametrize("shape", ["multi", "tag", "score"])
def test_the_other_tasks_learn_from_their_teachers(encoder, shape, tmp_path):
    more = {"states": {0: 0}, "relations": 0.1} if shape == "tag" else {}
    result = train(student(encoder, shape, tmp_path / "run", "full", {"alpha": 0.9, **more}))
    assert result["after"]["loss"] < result["before"]["loss"]


def test_an_encoder_decoder_learns_from_one(seq2seq, tmp_path):
    result = train(student(seq2seq, "generate", tmp_path / "run", "lora", {"loss": "jsd", "top": 8}))
    assert result["after"]["loss"] < result["before"]["loss"]
    with pytest.raises(Refusal, match="inside an encoder-decoder"):
        train(student(seq2seq, "generate", tmp_path / "b", objective={"states": {0: 0}}))


def test_a_shortened_student_learns_from_texts_without_labels_and_is_rebuilt(encoder, tmp_path):
    """Four labelled rows, sixty texts, one block of two; states and attention of the teacher's last block besides."""
    more = shop.rows(encoder / "more.jsonl", "classify", 60, seed=9)
    made = student(encoder, "classify", tmp_path / "run", "full", {"alpha": 0.8, "states": {0: 1}, "attention": {0: 1}}, budget={"steps": 40})
    made["model"] = {"name": made["model"], "blocks": [1]}
    made["data"] |= {"limit": 4, "unlabelled": str(more)}
    assert check(recipe(made), QUIET).facts["rows"]["train"] == 64
    result = train(made)
    assert result["after"]["accuracy"] > 0.8 > result["before"]["accuracy"]
    assert result["student"]["parameters"] < result["teacher"]["parameters"]
    tuned = load(result.folder)
    texts = ["w1 w2 w3", "w40 w41", "w5"]
    assert tuned.net.anatomy.depth == 1
    export(result.folder, tmp_path / "plain")
    assert hf.AutoModel.from_pretrained(tmp_path / "plain").config.num_hidden_layers == 1
    assert [p["label"] for p in tuned.predict(texts)] == ["a", "b", "a"]
    for wrong, match in ((lambda m: m.update(objective="supervised"), "learns from labels"), (lambda m: m["model"].update(blocks=[2]), "blocks 0 to 1")):
        bad = json.loads(json.dumps({**made, "out": str(tmp_path / "bad")}))
        wrong(bad)
        with pytest.raises(Refusal, match=match):
            train(bad)


# ------------------------------------------------------------------------------------------------ asked once


def test_a_teacher_is_asked_once_and_never_loaded_again(encoder, tmp_path, monkeypatch):
    made = student(encoder, "classify", tmp_path / "a", objective={"cache": str(tmp_path / "cache")})
    first = train(made)
    monkeypatch.setattr(teacher, "taught_by_run", never)
    again = train({**made, "out": str(tmp_path / "b")})
    assert same(first.folder, again.folder)
    assert {k: v for k, v in again["teacher"].items() if k != "latency_ms"} == {k: v for k, v in first["teacher"].items() if k != "latency_ms"}
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == ["teacher.json", "teacher.safetensors"]


def test_check_asks_nobody_and_a_comparison_asks_once(encoder, tmp_path, monkeypatch):
    loads = []
    real = teacher.taught_by_run
    monkeypatch.setattr(teacher, "taught_by_run", lambda *a: loads.append(1) or real(*a))
    made = student(encoder, "classify", tmp_path / "run", objective={"states": {1: 1}, "alpha": 0.5})
    assert check(recipe(made), QUIET).facts["predicted_peak_memory_bytes"] > 0
    assert not loads and not (tmp_path / "run" / "teacher").exists()
    found = compare(recipe(student(encoder, "classify", tmp_path / "arms")), ["bitfit", "lora"], seeds=1, reporter=QUIET)
    assert len(loads) == 1 and len(found.table) >= 2


def test_answers_go_with_their_examples_however_the_rows_lie(encoder, tmp_path):
    made = student(encoder, "classify", tmp_path / "a", objective={"cache": str(tmp_path / "cache")})
    first = columns_of(made)
    lines = Path(made["data"]["train"]).read_text().splitlines(keepends=True)
    (tmp_path / "turned.jsonl").write_text("".join(reversed(lines)) + lines[3])
    made["data"] = {**made["data"], "train": str(tmp_path / "turned.jsonl")}
    second = columns_of(made)
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    with torch.no_grad():
        tuned = load(encoder / "teacher-classify")
        expected = {p: tuned.predict([p])[0] for p in list(first)[:5]}
    for text, said in expected.items():
        share = first[text].softmax(-1)
        assert ("a", "b")[int(share.argmax())] == said["label"] and float(share.max()) == pytest.approx(said["probability"], abs=2e-4)


def test_a_cache_that_does_not_fit_is_refused_with_what_differs(encoder, decoder, tmp_path):
    cache = {"cache": str(tmp_path / "cache")}
    train(student(decoder, "generate", tmp_path / "a", objective={**cache, "top": 4}, budget={"steps": 2}))
    for changed, match in (({"temperature": 3.0}, "temperature: 2.0 there, 3.0 here"), ({"top": 5}, "top: 4 there, 5 here")):
        with pytest.raises(Refusal) as refused:
            train(student(decoder, "generate", tmp_path / "b", objective={**cache, "top": 4, **changed}))
        assert match in refused.value.why and refused.value.where == "objective.cache"
    other = student(decoder, "generate", tmp_path / "c", objective={**cache, "top": 4})
    shop.rows(tmp_path / "other.jsonl", "generate", 50, seed=8)
    other["data"] = {**other["data"], "train": str(tmp_path / "other.jsonl")}
    with pytest.raises(Refusal, match="no answer for 50 of 50 examples"):
        train(other)
    file = tmp_path / "cache" / "teacher.safetensors"
    stored = load_file(file)
    save_file({**stored, "teacher": stored["teacher"].flip(0).contiguous()}, file)  # a permuted cache
    with pytest.raises(Refusal, match="is not what was written"):
        train(student(decoder, "generate", tmp_path / "d", objective={**cache, "top": 4}))


def test_an_asking_that_was_killed_half_way_is_not_taken_for_whole(encoder, tmp_path, monkeypatch):
    made = student(encoder, "tag", tmp_path / "a")
    put, count = ask.Writer.put, []

    def dying(self, place, answer):
        count.append(place)
        if len(count) == 20:
            raise Stop
        put(self, place, answer)

    monkeypatch.setattr(ask.Writer, "put", dying)
    with pytest.raises(Stop):
        train(made)
    assert not (tmp_path / "a" / "teacher" / "teacher.json").exists()
    monkeypatch.setattr(ask.Writer, "put", put)
    assert same(train(made).folder, train({**made, "out": str(tmp_path / "b")}).folder)


@pytest.mark.parametrize(
    "objective", [{"states": {0: 1}, "alpha": 0.5}, {"on_policy": 0.5, "alpha": 0.5, "max_new_tokens": 4}, {"on_policy": 1.0, "max_new_tokens": 4}], ids=str
)
def test_a_student_that_was_stopped_ends_in_the_same_bits(decoder, objective, tmp_path, monkeypatch):
    made = student(
        decoder,
        "generate",
        tmp_path / "straight",
        "lora",
        {"top": 6, **objective},
        budget={"steps": 8},
        checkpoint={"every": 2},
        evaluate={"every": 4, "samples": 0},
    )
    straight = train(made).folder
    assert same(straight, train_with_stops({**made, "out": str(tmp_path / "broken")}, monkeypatch, [3, 5]))


# ------------------------------------------------------------------------------------------------ who may teach


def published(folder: Path, auto, labels: dict[int, str], seed: int = 3) -> Path:
    torch.manual_seed(seed)
    config = hf.BertConfig(vocab_size=len(shop.WORDS), pad_token_id=0, id2label=labels, label2id={v: k for k, v in labels.items()}, **shop.SIZE)
    model = auto(config)
    with torch.no_grad():
        model.classifier.bias.copy_(torch.arange(len(labels)) * 2.0)
    model.save_pretrained(folder)
    shop.tokenizer().save_pretrained(folder)
    return folder


def test_a_published_classifier_teaches_whatever_the_order_of_its_labels(encoder, tmp_path):
    folder = published(tmp_path / "hub", hf.BertForSequenceClassification, {0: "b", 1: "a"})
    answers = columns_of(student(encoder, "classify", tmp_path / "run", objective={"teacher": str(folder)}))
    model, tokenizer = hf.BertForSequenceClassification.from_pretrained(folder).eval(), shop.tokenizer()
    for text, said in list(answers.items())[:5]:
        with torch.no_grad():
            own = model(**tokenizer(text, return_tensors="pt")).logits[0]
        torch.testing.assert_close(said, own.flip(0), rtol=1e-4, atol=1e-5)
    with pytest.raises(Refusal, match="has the labels"):
        train(
            student(
                encoder, "classify", tmp_path / "x", objective={"teacher": str(published(tmp_path / "odd", hf.BertForSequenceClassification, {0: "a", 1: "z"}))}
            )
        )
    with pytest.raises(Refusal, match="has no head for classify"):
        train(student(encoder, "classify", tmp_path / "y", objective={"teacher": str(encoder / "model")}))
    with pytest.raises(Refusal, match="was trained for tag"):
        train(student(encoder, "classify", tmp_path / "z", objective={"teacher": str(encoder / "teacher-tag")}))


def test_a_published_tagger_teaches_words(encoder, tmp_path):
    folder = published(tmp_path / "hub", hf.BertForTokenClassification, {0: "O", 1: "B-b", 2: "I-b", 3: "B-a", 4: "I-a"})
    assert train(student(encoder, "tag", tmp_path / "run", objective={"teacher": str(folder)}))["after"]["loss"] > 0


def test_words_that_the_teacher_has_not_read_have_no_answer(encoder, tmp_path):
    short = teach(encoder, "tag", 2) if not (encoder / "short").exists() else encoder / "short"
    made = student(encoder, "tag", tmp_path / "run", objective={"teacher": str(short)})
    about = json.loads((short / "artifact" / "tunesmith.json").read_text())
    about["reader"]["max_length"] = 5
    copy = tmp_path / "teacher"
    import shutil

    shutil.copytree(short, copy)
    (copy / "artifact" / "tunesmith.json").write_text(json.dumps(about))
    made["objective"]["teacher"] = str(copy)
    answers = columns_of(made)
    long = next(v for k, v in answers.items() if len(k.split()) > 6)
    assert not long[:3].isnan().any() and long[4:].isnan().all()
    assert train(made)["after"]["loss"] > 0


def test_stored_answers_teach_by_their_ids(encoder, decoder, tmp_path):
    """A .safetensors file of anybody's: `example` says whose answer each is; nothing is taken by place."""
    made = student(encoder, "classify", tmp_path / "run")
    texts = [json.loads(line)["text"] for line in Path(made["data"]["train"]).read_text().splitlines()]
    logits, order = torch.randn(len(texts), 2), torch.randperm(len(texts))
    file = tmp_path / "said.safetensors"
    ids = torch.tensor([number(t.encode()) for t in texts])
    save_file({"example": ids[order], "teacher": logits[order]}, file, {"labels": json.dumps(["a", "b"])})
    made["objective"]["teacher"] = str(file)
    answers = columns_of(made)
    assert all(torch.equal(answers[t], logits[i]) for i, t in enumerate(texts))
    assert train(made)["teacher"]["name"] == str(file)
    wrongs = (({"teacher": logits}, {}, "does not say which example"), ({"example": ids[:3], "teacher": logits[:3]}, {}, "no answer for 37 of 40"),
              ({"example": ids, "teacher": logits}, {"labels": json.dumps(["b", "a"])}, "in this order"), ({"example": ids}, {}, "holds no teacher"))  # fmt: skip
    for tensors, metadata, match in wrongs:
        save_file(tensors, file, metadata or None)
        with pytest.raises(Refusal, match=match):
            train({**made, "out": str(tmp_path / "bad")})
    with pytest.raises(Refusal, match="holds no teacher_states"):
        save_file({"example": ids, "teacher": logits}, file)
        train(student(encoder, "classify", tmp_path / "s", objective={"teacher": str(file), "states": {0: 0}}))
    train(student(decoder, "generate", tmp_path / "g", objective={"cache": str(tmp_path / "cache")}))
    with pytest.raises(Refusal, match="stored at temperature 2"):
        train(student(decoder, "generate", tmp_path / "h", objective={"teacher": str(tmp_path / "cache"), "temperature": 1.0}))
    assert train(student(decoder, "generate", tmp_path / "i", objective={"teacher": str(tmp_path / "cache")}))["after"]["loss"] > 0


# ------------------------------------------------------------------------------------------------ tokenizers


@pytest.fixture(scope="module")
def stranger(tmp_path_factory) -> Path:
    """A decoder whose tokenizer has the same words under other numbers, and one more: equal sizes would not be equal tokenizers."""
    work = tmp_path_factory.mktemp("stranger")
    words = [*shop.WORDS[:4], *reversed(shop.WORDS[4:]), "more"]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(1)
    config = hf.LlamaConfig(
        vocab_size=len(words), num_key_value_heads=1, tie_word_embeddings=False, pad_token_id=0, bos_token_id=1, eos_token_id=2, **shop.SIZE
    )
    hf.LlamaForCausalLM(config).save_pretrained(work / "model")
    hf.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", eos_token="[SEP]", model_max_length=64).save_pretrained(
        work / "model"
    )
    teach(work, "generate")
    return work


def test_another_tokenizer_is_refused_or_aligned(decoder, stranger, tmp_path):
    other = {"teacher": str(stranger / "teacher-generate")}
    with pytest.raises(Refusal, match="another tokenizer") as refused:
        train(student(decoder, "generate", tmp_path / "a", objective=other))
    assert "align: uld" in refused.value.fix
    result = train(student(decoder, "generate", tmp_path / "b", "full", {**other, "align": "uld", "alpha": 0.5, "top": 16}))
    assert result["after"]["loss"] < result["before"]["loss"]
    answers = columns_of(student(decoder, "generate", tmp_path / "c", objective={**other, "align": "uld", "top": 16}))
    assert all(not said.isnan().any() and (said[:, :-1].diff(dim=-1) <= 0).all() for said in answers.values()), "all aligned here; sorted"


# ------------------------------------------------------------------------------------------------ a teacher's text


def test_what_a_teacher_writes_is_a_file_to_learn_from(decoder, encoder, tmp_path, capsys):
    """Sequence-level distillation (Kim & Rush 2016): no logits, hence any two tokenizers."""
    from typer.testing import CliRunner

    from tunesmith.cli import app

    prompts = shop.rows(tmp_path / "prompts.jsonl", "generate", 12, seed=4)
    done = CliRunner().invoke(app, ["predict", str(decoder / "teacher-generate"), "--file", str(prompts), "--rows", "--max-new-tokens", "4"])
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    tuned = load(decoder / "teacher-generate")
    assert 6 < len(rows) <= 12 and all(row["completion"] for row in rows)
    assert rows[0] == {"prompt": rows[0]["prompt"], "completion": tuned.predict([rows[0]["prompt"]])[0]["text"]}
    (tmp_path / "taught.jsonl").write_text(done.stdout)
    made = shop.recipe(decoder, "generate", "lora", out=str(tmp_path / "run"), **STEPS)
    made["data"] = {"train": str(tmp_path / "taught.jsonl"), "eval": made["data"]["eval"]}
    assert train(made)["after"]["loss"] < train(made)["before"]["loss"]
    talk = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]
    assert unanswered(talk) == talk[:1] and as_row(talk[:1], {"text": "w2"}) == {"messages": talk}
    assert as_row(["w1", "w2"], {"label": "a", "probability": 0.9}) == {"text": "w1", "pair": "w2", "label": "a"}
    assert as_row("w1", {"entities": [{"label": "x", "start": 0, "end": 2, "text": "w1"}]}) == {"text": "w1", "spans": [{"start": 0, "end": 2, "label": "x"}]}


# ------------------------------------------------------------------------------------------------ on-policy


def test_what_the_student_writes_follows_the_prompt_and_is_a_function_of_the_step(decoder, tmp_path):
    made = student(decoder, "generate", tmp_path / "run", objective={"on_policy": 0.5, "max_new_tokens": 5, "top": 6})
    first, second = (batches_of(made, start) for start in (0, 3))
    assert [b["written"].tolist() for b in first[3:]] == [b["written"].tolist() for b in second]
    assert all(torch.equal(a["ids"], b["ids"]) and torch.equal(a["teacher"], b["teacher"]) for a, b in zip(first[3:], second, strict=True))
    assert {float(b["written"][0]) for b in first} == {0.0, 1.0}
    data = read_data(recipe(made))
    for batch in (b for b in first if b["written"][0]):
        for i, ids, at, label in zip(batch["row"].tolist(), *(batch.ragged(n).rows() for n in ("ids", "at", "label")), strict=True):
            prompt = int(data.train.encoded.columns["at"].rows()[i][0]) + 1
            assert torch.equal(ids[:prompt], data.train.encoded.columns["ids"].rows()[i][:prompt])
            assert at.tolist() == list(range(prompt - 1, len(ids) - 1)) and torch.equal(label, ids[prompt:]), "loss on the completion alone"
            assert 1 <= len(label) <= 5 and (label[:-1] != 2).all(), "nothing behind EOS"


def batches_of(made: dict, start: int) -> list:
    from itertools import islice

    job = job_of(made)
    return list(islice(job.run.stream[0].train.batches(job.net, start), 10 - start))


@pytest.mark.parametrize(("shape", "objective", "method", "match"), [
    ("classify", {"states": {0: 0}}, "head", "nothing under block 2 moves"),
    ("classify", {"states": {0: 0}}, "layers", "nothing under block 1 moves"),
    ("classify", {"states": {2: 0}}, "full", "blocks 0 to 1, and 2"),
    ("classify", {"attention": {0: 5}}, "full", "blocks 0 to 1, and 5"),
    ("classify", {"teacher": "/nowhere/at/all"}, "full", "cannot load"),
    ("plain", {"on_policy": 1.0}, "full", "no prompt to answer"),
    ("plain", {"align": "uld"}, "full", "needs dialogues"),
])  # fmt: skip
def test_what_cannot_be_taught_is_refused(encoder, decoder, shape, objective, method, match, tmp_path):
    work = encoder if shape == "classify" else decoder
    teacher_of = {"teacher": str(work / ("teacher-classify" if shape == "classify" else "teacher-generate"))}
    made = student(work, shape, tmp_path / "run", method, {**teacher_of, **objective})
    with pytest.raises(Refusal, match=match):
        train(made)


def test_a_forecast_counts_the_teacher(encoder, decoder, tmp_path):
    """While it is asked it lies beside the student; one that is asked about what the student writes stays. Stored answers weigh nothing."""
    bare = recipe(shop.recipe(encoder, "classify", spec("lora"), **STEPS))
    once = recipe(student(encoder, "classify", tmp_path / "once"))
    stays = recipe(student(decoder, "generate", tmp_path / "stays", objective={"on_policy": 0.5}))
    none, beside, along = (rehearse(r, read_data(r)) for r in (bare, once, stays))
    weights = sum(p.nbytes for p in load(encoder / "teacher-classify").net.model.parameters())
    assert (none.beside, beside.beside) == (0, weights) and none.weights == beside.weights
    assert replace(beside, step=replace(beside.step, bytes=0)).peak == beside.weights + weights
    written = recipe(shop.recipe(decoder, "generate", spec("lora"), **STEPS))
    teacher = sum(p.nbytes for p in load(decoder / "teacher-generate").net.model.parameters())
    assert along.weights - rehearse(written, read_data(written)).weights == teacher and along.beside == 0
