"""Prompts in words: scores are sums of token log-probabilities, calibration levels what has no content, a search is never worse, a result is a text."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as hf

import shop
import tiny
import worded
from tunesmith import artifact
from tunesmith import shared as shared_module
from tunesmith.ask import evaluate
from tunesmith.check import check
from tunesmith.comparison.arms import EIGHT
from tunesmith.core import Batch, Listener, Ragged
from tunesmith.dataset import read_data
from tunesmith.errors import Interrupted, Refusal
from tunesmith.job import assemble
from tunesmith.networks.load import Origin, attention_for, load_network, load_tokenizer, look_over
from tunesmith.objectives.cloze import Cloze, own_words
from tunesmith.progress import Reporter
from tunesmith.prompting.asking import scored, under
from tunesmith.prompting.offer import blanks, edits
from tunesmith.prompting.reading import asking
from tunesmith.recipe import recipe
from tunesmith.shared import Shared
from tunesmith.sources.table import Table
from tunesmith.sources.text.encode import Reader
from tunesmith.sources.text.examples import Classified
from tunesmith.sources.text.task import Task
from tunesmith.sources.text.wording import Wording
from tunesmith.train import Company, run
from tunesmith.updates.descend import pieces

QUIET = Reporter(quiet=True)
MODELS = {"masked": worded.masked, "decoder": shop.decoder}
TEXTS = ["w1 w2 w3", "w4", "w5 w1 w31 w7 w9"]
WORDS = {"a": ("w5 w6 w7", "w9"), "b": ("w5 w8",), "c": ("w40",)}
TASK = Task("classify", "cloze", ("a", "b", "c"))
HARD = {"kind": "hard_prompt", "template": "{text} w2 {label}", "words": {"a": "w3", "b": "w33"}}
CLOZE = {"kind": "cloze", "template": "{text} w2 {label}", "words": {"a": "w3", "b": "w33"}}


@pytest.fixture(params=MODELS)
def model(request, tmp_path):
    """(kind, reader, network, the same model as transformers computes it)."""
    folder = MODELS[request.param](tmp_path / "model")
    source = Origin(str(folder), "model")
    tokenizer = load_tokenizer(source)
    net = load_network(source, generates=False, worded=True, tokenizer=tokenizer)
    net.labels = TASK.labels
    auto = hf.AutoModelForMaskedLM if request.param == "masked" else hf.AutoModelForCausalLM
    return request.param, Reader(tokenizer, 60, masked=request.param == "masked"), net, auto.from_pretrained(folder).eval()


def rows(texts=TEXTS, label="a") -> list[Classified]:
    return [Classified(text, None, (label,), i) for i, text in enumerate(texts)]


def worded_reader(reader: Reader, template: str = "{text} w2 {label}", **more) -> Reader:
    return asking(reader, Wording(template, more.pop("words", WORDS), **more))


def scores(learn: Cloze, net, reader: Reader, examples, task=TASK) -> torch.Tensor:
    found = scored(learn, net, under(reader, task, examples, learn, net)[0].once())
    return torch.stack([found[i] for i in range(len(examples))])


def by_hand(kind: str, tokenizer, model, text: str, word: str) -> list[float]:
    """Token log-probabilities of a label word, one pass of the published class a word."""
    parts = word.split()
    if kind == "masked":
        ids = tokenizer(f"{text} w2 {' '.join(['[MASK]'] * len(parts))}", return_tensors="pt").input_ids
        at = (ids[0] == tokenizer.mask_token_id).nonzero()[:, 0]
    else:
        ids = tokenizer(f"{text} w2 {word}", return_tensors="pt").input_ids
        at = torch.arange(ids.shape[1] - len(parts) - 1, ids.shape[1] - 1)
    with torch.no_grad():
        logp = model(input_ids=ids).logits[0].log_softmax(-1)
    return [float(logp[t, tokenizer.convert_tokens_to_ids(w)]) for t, w in zip(at.tolist(), parts, strict=True)]


# ------------------------------------------------------------------------------------------------ scores


def test_a_word_of_several_tokens_is_the_sum_of_its_tokens(model):
    kind, reader, net, plain = model
    found = {
        (gather, length): scores(Cloze("cloze", gather=gather, length=length), net, worded_reader(reader), rows())
        for gather in ("sum", "mean") for length in ("sum", "mean")
    }  # fmt: skip
    for i, text in enumerate(TEXTS):
        logp = {label: [by_hand(kind, reader.tokenizer, plain, text, w) for w in words] for label, words in WORDS.items()}
        for (gather, length), table in found.items():
            word = [[math.fsum(t) / (len(t) if length == "mean" else 1) for t in words] for words in logp.values()]
            want = [math.log(math.fsum(map(math.exp, w))) if gather == "sum" else math.fsum(w) / len(w) for w in word]
            assert table[i].tolist() == pytest.approx(want, abs=2e-5)


def test_words_that_begin_alike_share_a_row_and_one_token_words_need_one(model):
    kind, reader, net, _ = model
    columns = worded_reader(reader).encode(rows(TEXTS[:1]), TASK).columns
    assert len(columns["ids"].lengths) == {"masked": 3, "decoder": 1}[kind]  # 1, 2 and 3 masks; all but the last token of "w5 w6 w7", which holds the rest
    apart = worded_reader(reader, words={"a": ("w5 w6",), "b": ("w8 w6",), "c": ("w40",)}).encode(rows(TEXTS[:1]), TASK).columns
    assert len(apart["ids"].lengths) == 2
    one = worded_reader(reader, words={"a": ("w5", "w6"), "b": ("w8",), "c": ("w40",)}).encode(rows(), TASK).columns
    assert len(one["ids"].lengths) == len(TEXTS)


@pytest.mark.parametrize("kind", ["byte", "meta"])
@pytest.mark.parametrize("template", ["{text} It was {label}", "{text}\nSentiment: {label}", "{text} It was{label}", "({label}) {text}"])
def test_a_word_is_tokenised_where_it_stands(kind, template):
    """Alone, or with its space cut off or left behind in the prompt, it would be other tokens."""
    tokenizer, masked = worded.spaced(kind), template.startswith("(")
    reader = worded_reader(Reader(tokenizer, 200, masked=masked), template, words={"a": ("good",), "b": ("very bad",), "c": ("bad",)})
    columns = reader.encode(rows(["A film:"]), TASK).columns
    for c, word in enumerate(("good", "very bad", "bad")):
        whole = tokenizer(template.replace("{text}", "A film:").replace("{label}", word)).input_ids
        mine = columns["token"].values[columns["side"].values == c].tolist()
        start = next(i for i in range(len(whole)) if whole[i : i + len(mine)] == mine)
        assert tokenizer.decode(mine).strip().strip(" It was()") == word if not masked else word in tokenizer.decode(mine)
        if not masked:
            assert whole[start:] == mine
            row = next(
                r.tolist() for r in columns["ids"].rows() if r.tolist() == whole[: max(start, len(whole) - 1)] or r.tolist()[: len(whole) - 1] == whole[:-1]
            )
            assert row[:start] == whole[:start]
    if " {label}" in template and kind == "byte":
        assert columns["token"].values[0].item() != tokenizer("good", add_special_tokens=False).input_ids[0]


def test_scores_do_not_depend_on_what_stands_in_the_batch(model):
    _, reader, net, _ = model
    learn = Cloze("cloze")
    alone = torch.cat([scores(learn, net, worded_reader(reader), rows([text])) for text in TEXTS])
    torch.testing.assert_close(scores(learn, net, worded_reader(reader), rows()), alone, atol=1e-5, rtol=0)


def test_pieces_are_the_whole(model):
    _, reader, net, _ = model
    learn = Cloze("cloze", loss="tfew")
    whole = Table(worded_reader(reader).encode(rows(), TASK).columns, "classify").batch([0, 1, 2])
    cut = list(pieces(whole, 12))
    assert len(cut) > 1
    added = {k: sum(learn(net, piece)[k] for piece in cut) for k in learn.count(whole)}
    for key, value in learn(net, whole).items():
        torch.testing.assert_close(added[key], value, atol=1e-5, rtol=1e-5)


def test_tfew_is_written_out(model):
    """Unlikelihood is a mean over the wrong words' tokens alone; the padding that T-Few's own code guards against with 100 does not exist."""
    kind, reader, net, plain = model
    learn = Cloze("cloze", loss="tfew")
    batch = Table(worded_reader(reader).encode(rows(TEXTS[:1]), TASK).columns, "classify").batch([0])
    terms = learn(net, batch)
    logp = {label: [t for w in words for t in by_hand(kind, reader.tokenizer, plain, TEXTS[0], w)] for label, words in WORDS.items()}
    wrong = logp["b"] + logp["c"]
    assert float(terms["language"]) == pytest.approx(-math.fsum(logp["a"]) / len(logp["a"]), abs=1e-4)
    assert float(terms["unlikely"]) == pytest.approx(-math.fsum(math.log1p(-math.exp(t)) for t in wrong) / len(wrong), abs=1e-5)


@pytest.mark.parametrize("name", tiny.ENCODERS)
def test_every_masked_family_says_what_its_class_says(name):
    config = tiny.ENCODERS[name]
    net = look_over(tiny.built(hf.AutoModelForMaskedLM, config, attention_for(config), 0), True, None, tiny.Letters())
    ids = tiny.rows(5, 11)
    ours = net.logits(Batch({"ids": ids, "at": Ragged(torch.cat([torch.arange(n) for n in ids.lengths]), ids.lengths)}))
    theirs = torch.cat([tiny.plain(net)(input_ids=row[None]).logits[0] for row in ids.rows()])
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------------------------------------ calibration


@pytest.mark.parametrize("blank", ["N/A", "", "w7 w8"])
def test_a_text_without_content_says_nothing_once_calibrated(model, blank):
    _, reader, net, _ = model
    learn, plain = Cloze("cloze"), worded_reader(reader)
    raw = scores(learn, net, plain, rows([blank])).softmax(-1)
    assert float((raw - 1 / 3).abs().max()) > 1e-3
    level = scores(learn, net, worded_reader(reader, blanks=(blank,)), rows([blank])).softmax(-1)
    torch.testing.assert_close(level, torch.full((1, 3), 1 / 3), atol=1e-6, rtol=0)


def test_the_prior_is_the_mean_share_of_all_blanks(model):
    """Not the mean of scores: shares are averaged, as Zhao et al. do."""
    _, reader, net, _ = model
    learn, texts = Cloze("cloze"), ("N/A", "", "w7 w8 w9")
    share = scores(learn, net, worded_reader(reader), rows(texts)).softmax(-1).mean(0)
    raw, level = (scores(learn, net, worded_reader(reader, blanks=b), rows()) for b in ((), texts))
    torch.testing.assert_close(level, raw - share.log(), atol=1e-5, rtol=0)


def test_random_texts_are_of_the_domain_and_as_long_as_its_texts():
    pool = (("one two three four", None, "a"), ("退款 吧", None, "b"))
    made = blanks("domain", pool, 3)
    assert len(made) == 20 and len(set(made)) > 1 and made == blanks("domain", pool, 3) != blanks("domain", pool, 4)
    assert {len(text.split()) for text in made} == {4} and {w for text in made for w in text.split()} <= {"one", "two", "three", "four", "退", "款", "吧"}


# ------------------------------------------------------------------------------------------------ demonstrations and texts


def test_demonstrations_never_hold_the_row_that_is_judged(model):
    _, reader, _, _ = model
    shots = (("w1 w2 w3", None, "a"), ("w20", None, "b"))
    asked = worded_reader(reader, shots=shots)
    text = reader.tokenizer.decode(asked.encode(rows(), TASK).columns["ids"].rows()[0])
    assert text.count("w1 w2 w3") == 1 and "w20" in text
    for e in rows():
        assert all(shot[0] != e.text for shot in asked.wording.without(e.text, None))


def test_the_nearest_stand_last_and_are_others(tmp_path):
    pool = (("my parcel is late", None, "a"), ("where is my parcel", None, "a"), ("the lamp is broken", None, "b"), ("bread recipe", None, "c"))
    words = {"a": ("late",), "b": ("broken",), "c": ("bread",)}
    reader = asking(Reader(None, 60), Wording("{text} {label}", words, pool=pool, nearest=2))
    assert reader.near
    (found,) = reader.near([Classified("where is my parcel", None, ("a",), 0)])
    assert [shot[0] for shot in found][-1] == "my parcel is late" and len(found) == 2 and "where is my parcel" not in dict.fromkeys(s[0] for s in found)
    (turned,) = asking(Reader(None, 60), replace(reader.wording, reverse=True)).near([Classified("where is my parcel", None, ("a",), 0)])
    assert turned == found[::-1]


def test_a_text_that_looks_like_a_slot_stays_a_text():
    asked = Wording("{text} is {label}", {"a": ("x",)}).asked("{label} {text} {pair}", None)
    assert (asked.before, asked.lead) == ("{label} {text} {pair} is", " ")


def test_a_long_text_is_cut_and_the_prompt_is_not(model):
    kind, reader, net, _ = model
    long = " ".join(f"w{i % 50}" for i in range(100))
    short = replace(worded_reader(reader), max_length=30)
    encoded = short.encode(rows([long, "w1"]), TASK)
    assert max(encoded.columns["ids"].lengths) <= 30 and max(encoded.lengths) > 100
    assert "w2" in reader.tokenizer.decode(encoded.columns["ids"].rows()[0][-8:])
    with pytest.raises(Refusal, match="with no text in it"):
        replace(short, wording=replace(short.wording, instruction=long)).encode(rows(), TASK)


def test_edits_keep_the_slots_and_differ():
    found = edits("{text}\nTopic: {label}")
    assert len(found) == len(set(found)) > 10
    assert all(t.count("{text}") == t.count("{label}") == 1 for t in found)
    assert edits("{label}: {text}") == []


# ------------------------------------------------------------------------------------------------ runs


def plan(work: Path, kind: str, method, **more) -> dict:
    if not (work / "model").exists():
        MODELS[kind](work / "model")
    return shop.recipe(work, "classify", method, **more)


@pytest.mark.parametrize("kind", MODELS)
def test_a_search_is_never_worse_and_always_the_same(kind, tmp_path):
    search = {
        "templates": ["{text} w9 {label}", "w4 {text} {label}"],
        "instructions": ["w11 w12", "w13", "w14 " * 80],
        "words": {"a": ["w4", "w5 w6"], "b": ["w34"]},
        "passes": 500,
        "rows": 20,
    }
    made = plan(tmp_path, kind, {**HARD, "shots": 2, "calibrate": "contextual", "search": search}, budget={})
    found = run(recipe({**made, "out": str(tmp_path / "one")}), QUIET)
    lines = [json.loads(line) for line in (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()]
    prices = [line["loss"] for line in lines]
    assert prices == sorted(prices, reverse=True) and prices[-1] < prices[0]
    assert found["trainable_parameters"] == 0 and found["learning_rate"] == 0
    assert lines[-2]["passes"] < 500 <= lines[-1]["passes"]
    again = run(recipe({**made, "out": str(tmp_path / "two")}), QUIET)
    assert [json.loads(line)["loss"] for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()] == prices
    for name in ("prompt.json", "prompt.txt", "messages.json"):
        assert (tmp_path / "one/artifact" / name).read_bytes() == (tmp_path / "two/artifact" / name).read_bytes()
    assert again["after"] == found["after"]


class Stop(Listener):
    """Breaks off after `at` steps, once."""

    def __init__(self, at: int):
        self.at = at

    def step(self, run_, record):
        if run_.done == self.at:
            raise Interrupted("here")


def test_an_interrupted_search_goes_on_as_if_nothing_had_been(tmp_path):
    search = {"instructions": ["w11 w12", "w13"], "words": {"a": ["w4"], "b": ["w34"]}, "passes": 500, "rows": 12}
    made = plan(tmp_path, "decoder", {**HARD, "shots": 2, "search": search}, budget={})
    whole = run(recipe({**made, "out": str(tmp_path / "whole")}), QUIET)
    with pytest.raises(Interrupted):
        run(recipe({**made, "out": str(tmp_path / "cut")}), QUIET, company=Company(listeners=[Stop(5)]))
    cut = run(recipe({**made, "out": str(tmp_path / "cut")}), QUIET, company=Company(listeners=[Stop(0)]))
    assert cut["steps"] == whole["steps"] > 5 and cut["last_step"]["loss"] == whole["last_step"]["loss"]
    assert (tmp_path / "cut/artifact/prompt.json").read_bytes() == (tmp_path / "whole/artifact/prompt.json").read_bytes()


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    "method",
    [{**HARD, "calibrate": "domain", "shots": 3}, {**HARD, "calibrate": "contextual", "shots": 2, "choose": "nearest"}],
    ids=["domain", "nearest"],
)
def test_a_prompt_is_a_text_that_answers_the_same_when_loaded(kind, method, tmp_path, monkeypatch):
    shop.rows(tmp_path / "other.jsonl", "classify", 11, seed=5)
    made = plan(tmp_path, kind, method, data={"train": str(shop.rows(tmp_path / "classify.jsonl", "classify", 24)), "eval": str(tmp_path / "other.jsonl")})
    result = run(recipe(made), QUIET)
    said = [json.loads(line) for line in (tmp_path / "run/predictions.jsonl").read_text().splitlines()]
    asked = [json.loads(line)["text"] for line in (tmp_path / "other.jsonl").read_text().splitlines()]
    tuned = artifact.load(tmp_path / "run")
    assert [r["label"] for r in tuned.predict(asked)] == [line["predicted"] for line in said]
    assert evaluate(tmp_path / "run", str(tmp_path / "other.jsonl"))["loss"] == pytest.approx(result["after"]["loss"], abs=1e-5)
    assert artifact.export(tmp_path / "run", tmp_path / "out") == ["messages.json", "prompt.json", "prompt.txt"]
    text = (tmp_path / "out/prompt.txt").read_text()
    assert "{text} w2 {label}" in text and json.loads((tmp_path / "out/messages.json").read_text())[-1]["content"] == "{text} w2"
    about = json.loads((tmp_path / "out/prompt.json").read_text())
    assert about["words"] == {"a": ["w3"], "b": ["w33"]}
    assert len(about["shots"]) == (0 if "choose" in method else 3) and len(about["pool"]) == (24 if "choose" in method else 0)


def test_the_text_alone_gives_the_scores(tmp_path):
    """What another server would compute from prompt.json: the same."""
    made = plan(tmp_path, "decoder", {**HARD, "calibrate": "contextual", "shots": 2})
    run(recipe(made), QUIET)
    about = json.loads((tmp_path / "run/artifact/prompt.json").read_text())
    tokenizer, model = hf.AutoTokenizer.from_pretrained(tmp_path / "model"), hf.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    found = []
    for label, (word,) in about["words"].items():
        ids = tokenizer(about["prompt"].replace("{text}", "w50 w51").replace("{label}", word), return_tensors="pt").input_ids
        with torch.no_grad():
            found.append(float(model(input_ids=ids).logits[0, -2].log_softmax(-1)[ids[0, -1]]) - about["prior"][label])
    (said,) = artifact.load(tmp_path / "run").predict(["w50 w51"])
    assert said["probability"] == pytest.approx(float(torch.tensor(found).softmax(-1).max()), abs=1e-4)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("verbaliser", ["manual", "soft", "prototype"])
def test_cloze_learns_and_is_judged_by_what_it_learnt(kind, verbaliser, tmp_path):
    more = {"objective": {**CLOZE, "verbaliser": verbaliser}, "budget": {"steps": 60}, "update": {"batch": 8, "rate": 1e-2}, "evaluate": {"every": 40}}
    held = str(shop.rows(tmp_path / "held.jsonl", "classify", 40, seed=9))
    result = run(
        recipe(
            plan(tmp_path, kind, {"kind": "lora", "rank": 4}, **more, data={"train": str(shop.rows(tmp_path / "classify.jsonl", "classify", 80)), "eval": held})
        ),
        QUIET,
    )
    assert result["after"]["accuracy"] > max(0.75, result["before"]["accuracy"] + 0.2)
    assert evaluate(tmp_path / "run", held)["loss"] == pytest.approx(result["after"]["loss"], abs=1e-4)
    assert (tmp_path / "run/artifact/objective.safetensors").exists() == (verbaliser != "manual")


def test_a_soft_verbaliser_alone_learns_where_it_starts_from_words(tmp_path):
    """Bitfit keeps the trunk nearly still; before the first step soft scores are the words' own, up to what is equal for all labels."""
    made = plan(tmp_path, "masked", "bitfit", objective={**CLOZE, "verbaliser": "soft"})
    data = read_data(recipe(made))
    job = assemble(recipe(made), data, Shared().dressed(recipe(made), data), QUIET)
    batch = next(job.run.stream[0].train.once(job.net))  # type: ignore[attr-defined]
    job.net.eval()
    found = job.run.objective.scores(job.run.objective.read(job.net, batch), batch)  # type: ignore[attr-defined,operator]
    reader = replace(data.reader, wording=replace(data.reader.wording, bare=False))
    plain = Table(reader.encode(data.train.examples, data.task).columns, "classify")
    manual = scored(Cloze("cloze"), job.net, plain.once())
    want = torch.stack([manual[i] for i in batch.numbers("group")])
    torch.testing.assert_close(found - found[:, :1], want - want[:, :1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", MODELS)
def test_texts_are_learnt_beside_the_task(kind, tmp_path):
    """PET's second term: counted in rows, never at a special token or the open place, and the whole loss continues over an interruption."""
    made = plan(tmp_path, kind, "full", objective={**CLOZE, "mlm": 0.2}, budget={"steps": 6}, out=str(tmp_path / "whole"))
    whole = run(recipe(made), QUIET)
    assert {"classify", "mlm"} <= whole["last_step"].keys()
    first = run(recipe({**made, "out": str(tmp_path / "same")}), QUIET)
    assert first["last_step"]["loss"] == whole["last_step"]["loss"]


def test_what_is_hidden_is_text(model):
    kind, reader, net, _ = model
    batch = Table(worded_reader(reader).encode(rows(), TASK).columns, "classify").batch([0, 1, 2])
    mask = reader.tokenizer.mask_token_id if kind == "masked" else None
    seen: list[Batch] = []
    real, net.label_logp = net.label_logp, lambda b: seen.append(b) or real(b)  # type: ignore[method-assign]
    assert own_words(net, batch, mask, tuple(reader.tokenizer.all_special_ids)).shape == (3,)
    assert not set(seen[0]["label"].tolist()) & ({0, 1, 2, mask} if mask else set())
    assert mask is None or (seen[0]["ids"] == mask).sum() > len(seen[0]["label"])


@pytest.mark.parametrize("kind", MODELS)
def test_check_foresees_a_prompt_and_a_cloze(kind, tmp_path):
    for method, more in ((HARD, {}), ("lora", {"objective": CLOZE})):
        facts = check(recipe(plan(tmp_path, kind, method, **more)), QUIET).facts
        assert facts["steps"] == (1 if method is HARD else 6) and facts["predicted_peak_memory_bytes"] > 0


def test_pairs_chats_and_few_rows(tmp_path):
    shop.rows(tmp_path / "pair.jsonl", "pair", 16)
    made = shop.recipe(tmp_path, "pair", {**HARD, "template": "{text} w8 {pair} w2 {label}", "shots": 2})
    worded.masked(tmp_path / "model")
    assert run(recipe(made), QUIET)["metric"] == "accuracy"
    few = {"stream": {"kind": "few", "k": 3}, "objective": CLOZE, "budget": {"steps": 2}, "evaluate": {}}
    assert run(recipe({**plan(tmp_path, "masked", "lora", **few), "out": str(tmp_path / "few")}), QUIET)["train_rows"] == 6


def test_a_chat_is_asked_and_answered_in_turns(tmp_path):
    made = {
        "model": "desk-lm",
        "task": "classify",
        "data": {"train": "desk", "eval": "desk", "limit": 200},
        "method": {**HARD, "words": {}, "chat": True, "shots": 1, "instruction": "Sort."},
    }
    data = read_data(recipe(made))
    text = data.reader.tokenizer.decode(data.train.encoded.columns["ids"].rows()[0])
    assert text.startswith("<|begin|><|system|>Sort.<|end|><|user|>") and text.count("<|assistant|>") == 2 and text.count("<|begin|>") == 1


def test_words_and_template_come_from_a_file_and_the_method_hands_them_on(tmp_path):
    (tmp_path / "prompt.yaml").write_text('template: "{text} w2 {label}"\nwords: {a: w3, b: [w33, w34]}\n')
    made = recipe(plan(tmp_path, "decoder", {"kind": "hard_prompt", "file": str(tmp_path / "prompt.yaml"), "template": "{text} w9 {label}"}))
    assert made.method == {"kind": "hard_prompt"} and made.objective["kind"] == "cloze"
    assert made.objective["template"] == "{text} w9 {label}" and made.objective["words"] == {"a": "w3", "b": ["w33", "w34"]}
    assert recipe(made.plain()) == made


REFUSED = {
    "no slot": ({**HARD, "template": "w1 {label}"}, {}, "{text} 0 times"),
    "another slot": ({**HARD, "template": "{text} {title} {label}"}, {}, "{title}, which is no column"),
    "pair": ({**HARD, "template": "{text} {pair} {label}"}, {}, "one text each"),
    "left to right": ({**HARD, "template": "{label} {text}"}, {}, "from left to right"),
    "unknown label": ({**HARD, "words": {"x": "w1"}}, {}, "'x', which is no label"),
    "same word": ({**HARD, "words": {"a": "w1", "b": "w1"}}, {}, "stands for a and for b"),
    "too many shots": ({**HARD, "shots": 500}, {}, "500 demonstrations of 40"),
    "twice": ({**HARD}, {"objective": {"kind": "cloze", "template": "{text} {label}"}}, "in the method and in the objective"),
    "objective": ({"kind": "hard_prompt"}, {"objective": "supervised"}, "which has no parameters"),
    "task": ({"kind": "hard_prompt"}, {"task": "tag"}, "which has no parameters"),
    "learnt words": ({"kind": "hard_prompt"}, {"objective": {"kind": "cloze", "verbaliser": "soft"}}, "has parameters to learn"),
    "update": ({"kind": "hard_prompt"}, {"update": {"kind": "descend"}}, "has no gradient"),
    "head": ("head", {"objective": CLOZE}, "nothing would move"),
    "head options": ("lora", {"objective": CLOZE, "head": {"kind": "mlp"}}, "words of the vocabulary are the classes"),
    "soft tfew": ("lora", {"objective": {"kind": "cloze", "loss": "tfew", "verbaliser": "soft"}}, "says no words"),
    "chat": ({**HARD, "chat": True}, {}, "no chat template"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused_before_weights_are_loaded(case, tmp_path, monkeypatch):
    method, more, sentence = REFUSED[case]
    monkeypatch.setattr(shared_module, "load_network", lambda *a, **k: pytest.fail("weights were loaded"))
    with pytest.raises(Refusal) as found:
        run(recipe(plan(tmp_path, "decoder", method, **more)), QUIET)
    assert sentence in str(found.value) and found.value.fix


@pytest.mark.parametrize(("make", "sentence"), [(shop.encoder, "published as BertModel"), (shop.seq2seq, "an encoder-decoder")])
def test_a_model_that_cannot_say_words_is_refused(make, sentence, tmp_path, monkeypatch):
    make(tmp_path / "model")
    monkeypatch.setattr(shared_module, "load_network", lambda *a, **k: pytest.fail("weights were loaded"))
    with pytest.raises(Refusal, match=sentence):
        run(recipe(shop.recipe(tmp_path, "classify", HARD)), QUIET)
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(Refusal, match="published as BertModel"):
        run(recipe({**shop.recipe(tmp_path, "classify", HARD), "model": "minilm"}), QUIET)


@pytest.mark.parametrize("kind", MODELS)
def test_every_method_trains_through_words_or_is_refused_before_loading(kind, tmp_path, monkeypatch):
    small = {"adapter": {"width": 4}, "prompt": {"length": 3}, "prefix": {"length": 3}, "layers": {"last": 1}, "lora": {"rank": 2}}
    loads, load = list[int](), shared_module.load_network
    monkeypatch.setattr(shared_module, "load_network", lambda *a, **k: loads.append(1) or load(*a, **k))
    shop.rows(tmp_path / "classify.jsonl", "classify", 12)
    for name in EIGHT:
        made = plan(
            tmp_path, kind, {"kind": name, **small.get(name, {})}, objective=CLOZE, budget={"steps": 1}, evaluate={"every": 10**6}, out=str(tmp_path / name)
        )
        if name == "head":
            with pytest.raises(Refusal, match="nothing would move"):
                run(recipe(made), QUIET)
        else:
            assert run(recipe(made), QUIET)["steps"] == 1
    assert len(loads) == len(EIGHT) - 1


# ------------------------------------------------------------------------------------------------ among several tasks


def in_stages(work: Path, strategy: str, **more) -> dict:
    """The rows of `plan` in two parts."""
    made = plan(work, "masked", "lora", **more)
    lines = Path(made["data"]["train"]).read_text().splitlines()
    (work / "parted.jsonl").write_text("".join(json.dumps({**json.loads(line), "part": "xy"[i % 4 // 2]}) + "\n" for i, line in enumerate(lines)))
    parted = {"data": dict.fromkeys(("train", "eval"), str(work / "parted.jsonl")), "evaluate": {}, "budget": {"steps": 2}}
    return {**made, **parted, "stream": {"kind": "sequence", "by": "part"}, "strategy": strategy}


@pytest.mark.parametrize("kind", ["masked", "decoder"])
def test_a_task_in_words_beside_one_with_a_head(kind, tmp_path):
    made = plan(tmp_path, kind, "lora", budget={"steps": 3})
    data = made.pop("data")
    made.pop("objective", None)
    own = {"task": made.pop("task"), "data": data}
    record = run(recipe({**made, "tasks": {"said": {**own, "objective": CLOZE}, "sorted": own}}), QUIET).record
    assert {"said.accuracy", "sorted.accuracy"} <= set(record["after"])
    tuned = artifact.load(made["out"])
    assert set(tuned.net.heads) == {"sorted"}
    lines = [json.loads(line) for line in (Path(made["out"]) / "predictions.jsonl").read_text().splitlines()]
    for name in ("said", "sorted"):
        texts = [json.loads(line)["text"] for line in Path(data["eval"]).read_text().splitlines()]
        assert [r["label"] for r in tuned.of(name).predict(texts)] == [line["predicted"] for line in lines if line["task"] == name]


@pytest.mark.parametrize("strategy", ["replay", "ewc", "joint"])
def test_words_are_kept_over_stages(strategy, tmp_path):
    record = run(recipe(in_stages(tmp_path, strategy, objective=CLOZE)), QUIET).record
    assert record["stages"] == ["x", "y"] and record["metric"] == "accuracy"


@pytest.mark.parametrize(
    ("strategy", "more", "sentence"),
    [
        ("lwf", {"objective": {"kind": "cloze"}}, "which holds on to what heads say"),
        ("naive", {"objective": {"kind": "cloze", "verbaliser": "soft"}}, "vectors are those of one task's labels"),
        ("naive", {"method": "hard_prompt"}, "a prompt is chosen on the rows of one task"),
    ],
)
def test_what_makes_no_sense_over_stages_is_refused(strategy, more, sentence, tmp_path):
    with pytest.raises(Refusal, match=sentence):
        recipe(in_stages(tmp_path, strategy) | more)
