"""Every bad recipe gets one clear line, with the key and the way out, before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import shop
from tunesmith import recipe as recipes
from tunesmith.check import check
from tunesmith.errors import REFUSED, Refusal
from tunesmith.progress import Reporter

GOOD = """\
model: minilm
task: classify
data: {train: desk, eval: desk}
method: lora
"""


def refused(tmp_path: Path, text: str, *overrides: str) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(Refusal) as caught:
        recipes.read_recipe(path, overrides)
    assert caught.value.code == REFUSED
    return str(caught.value)


BAD = [  # text or override, words that must be said
    ("method: lorra", ["lorra", "did you mean `lora`"]),
    ("method: {kind: lora, ranc: 4}", ["method.ranc", "rank"]),
    ("methd: lora", ["methd", "method"]),
    ("update: {rate: -1}", ["update.rate", "greater than 0"]),
    ("update: {batch: 0}", ["update.batch", "1"]),
    ("update: {warmup: 2}", ["update.warmup", "less than 1"]),
    ("update: {rate: abc}", ["update.rate", "number"]),
    ("update: {schedule: linnear}", ["update.schedule", "linear"]),
    ("budget: {epochs: 0}", ["budget.epochs", "greater than 0"]),
    ("budget: {epochs: 2, steps: 5}", ["epochs and steps", "keep one"]),
    ("dropout: 2", ["dropout", "less than 1"]),
    ("seed: -1", ["seed"]),
    ("dtype: fp16", ["dtype", "bf16"]),
    ("task: clasify", ["task", "classify"]),
    ("head: {pool: max}", ["head.pool", "mean"]),
    ("objective: distill", ["objective", "did you mean `distil`"]),
    ("stream: mix", ["stream", "one task"]),
    ("data: {train: desk}\nevaluate: {patience: 2}", ["evaluate.patience", "data.eval"]),
    ("task: generate\nhead: {kind: mlp}", ["head", "vocabulary"]),
    ("task: tag\ndata: {train: desk, multi_label: true}", ["multi_label", "task: classify"]),
    ("model: {name: minilm, bits: 3}", ["model.bits", "4"]),
    ("model: {name: minilm, bits: 4}\ndtype: fp32", ["dtype", "quantised"]),
    ("kernel: varlen\ndevice: cpu", ["varlen", "cpu"]),
    ("task: score\nobjective: {kind: supervised, smoothing: 0.1}", ["smoothing"]),
    ("data: {trian: a.jsonl}", ["data.trian", "train"]),
    ("data: [a, b]", ["data"]),
    ("method: 3", ["method"]),
]


@pytest.mark.parametrize(("line", "words"), BAD, ids=[b[0].replace("\n", "; ") for b in BAD])
def test_a_bad_line_is_named(tmp_path, line, words):
    keys = {part.split(":")[0] for part in line.splitlines()}
    text = "".join(row + "\n" for row in GOOD.splitlines() if row.split(":")[0] not in keys) + line + "\n"
    said = refused(tmp_path, text)
    for word in words:
        assert word in said, said
    assert "recipe.yaml:" in said
    assert len(said.splitlines()) <= 3


@pytest.mark.parametrize("key", ["model", "task", "data"])
def test_what_is_missing_is_shown(tmp_path, key):
    text = "".join(row + "\n" for row in GOOD.splitlines() if not row.startswith(key))
    assert f"no `{key}`" in refused(tmp_path, text)


def test_overrides_and_the_names_of_others(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD)
    made = recipes.read_recipe(path, ["learning_rate=1e-4", "--per_device_train_batch_size=4", "num_train_epochs=2", "method.rank=4", "output_dir=x"])
    assert (made.update.rate, made.update.batch, made.budget.epochs, made.method, made.out) == (1e-4, 4, 2.0, {"kind": "lora", "rank": 4}, "x")
    assert "lerning_rate" in refused(tmp_path, GOOD, "lerning_rate=1e-4")


def test_what_is_written_is_read_again_the_same():
    made = recipes.recipe({"model": "minilm", "task": "classify", "data": "desk", "method": {"kind": "layers", "blocks": [0, 2], "decay": 0.9}})
    assert recipes.recipe(made.plain()) == made


def test_the_command_says_one_line_and_leaves_with_two(tmp_path):
    (tmp_path / "recipe.yaml").write_text(GOOD.replace("lora", "lorra"))
    done = subprocess.run([sys.executable, "-m", "tunesmith.cli", "run", str(tmp_path / "recipe.yaml")], capture_output=True, text=True)
    assert done.returncode == REFUSED
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("tunesmith: ")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "method", ["lora", {"kind": "prompt", "length": 63}, {"kind": "layers", "last": 9}, {"kind": "lora", "targets": ["q_proj"]}, {"kind": "lora", "rank": 999}]
)
def test_check_refuses_what_the_model_cannot(tmp_path, method):
    shop.encoder(tmp_path / "model")
    made = recipes.recipe(shop.recipe(tmp_path, "classify", method))
    if method == "lora":
        assert check(made, Reporter(quiet=True)).facts["trainable_parameters"] > 0
        return
    with pytest.raises(Refusal) as caught:
        check(made, Reporter(quiet=True))
    assert caught.value.fix


def test_check_counts_what_is_there(tmp_path):
    shop.encoder(tmp_path / "model")
    report = check(recipes.recipe(shop.recipe(tmp_path, "classify", {"kind": "layers", "last": 1})), Reporter(quiet=True))
    facts = report.facts
    assert facts["rows"] == {"train": 40, "eval": 40}
    assert facts["labels"]["train"] == {"a": 20, "b": 20}
    assert facts["overlap"]["eval_in_train"] == 40
    assert any("also stand in train" in w for w in report.warnings)
    assert facts["frozen_blocks"] == "1 of 2"
    assert facts["steps"] == 6


def test_a_cut_that_leaves_nothing_to_learn_is_an_error(tmp_path):
    shop.decoder(tmp_path / "model")
    made = shop.recipe(tmp_path, "generate", "lora")
    made["data"] = {**made["data"], "max_length": 4}
    with pytest.raises(Refusal, match="cuts off all answers"):
        check(recipes.recipe(made), Reporter(quiet=True))
