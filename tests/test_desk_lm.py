"""The embedded language model: found by its name, within its limits, and it answers a message in the message's language."""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tunesmith import artifact, data
from tunesmith.data.desk import records
from tunesmith.errors import Refusal
from tunesmith.networks.decode import Sampling
from tunesmith.networks.embedded import EMBEDDED, origin, published
from tunesmith.networks.load import load_network, load_tokenizer
from tunesmith.sources.text.encode import Reader
from tunesmith.sources.text.examples import Turn
from tunesmith.sources.text.template import Template

FOLDER = Path(data.__file__).parent / "desk_lm"
MADE = Path(__file__).resolve().parent.parent / "models" / "desk_lm"
CHINESE = re.compile(r"[\u4e00-\u9fff]")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(origin("desk-lm"))


@pytest.fixture(scope="module")
def net(tokenizer):
    torch.set_num_threads(1)
    return load_network(origin("desk-lm"), generates=True, tokenizer=tokenizer).float()


@pytest.fixture
def wording(monkeypatch):
    monkeypatch.syspath_prepend(MADE)
    yield __import__("wording")
    sys.modules.pop("wording")


def test_it_is_small_and_holds_nothing_that_runs(net):
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 10e6
    assert {path.suffix for path in FOLDER.iterdir()} <= {".safetensors", ".json", ".jinja", ".md"}
    assert 3e6 <= sum(p.numel() for p in net.model.parameters()) <= 6e6
    assert json.loads((FOLDER / "config.json").read_text())["dtype"] == "bfloat16"
    assert net.packs and net.skips and net.takes_prefix


@pytest.mark.parametrize("text", ["Don't worry: W3309 costs £4.95  more.\n\nBye", "订单LL-50172到哪了？今天下午３点能到吗！", "帮我check一下 🙂 naïve"])
def test_text_comes_back(tokenizer, text):
    assert 4096 <= len(tokenizer) <= 8192
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_what_was_asked_begins_the_whole_dialogue(tokenizer):
    template = Template.of(tokenizer)
    turns = [
        Turn("system", "Be brief.", False),
        Turn("user", "你好", False),
        Turn("assistant", "Hello.", True),
        Turn("user", "?", False),
        Turn("assistant", "!", True),
    ]
    whole = template.text(turns, answer=False)
    assert template.kind == "chat"
    assert all(whole.startswith(template.asked(turns[:i])) for i in (2, 4))
    rendered = template.render(turns)
    assert [whole[a:b] for a, b in rendered.learn] == ["Hello.<|end|>", "!<|end|>"]
    assert tokenizer(whole, add_special_tokens=False)["input_ids"].count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_it_answers_messages_that_it_never_saw(net, tokenizer, lang):
    rows = [row for row in records("dev") if row.lang == lang][:6]
    answers = artifact.write(net, Reader(tokenizer, 512), [(Turn("user", row.text, False),) for row in rows], Sampling(96))
    for answer in answers:
        assert len(answer) >= 6
        assert len(tokenizer(answer)["input_ids"]) < 95  # it came to an end of its own
        assert bool(CHINESE.search(answer)) == (lang == "zh")
    assert len(set(answers)) >= 5


def test_altered_or_missing_weights_are_refused(tmp_path, monkeypatch):
    package = tmp_path / "altered"
    shutil.copytree(FOLDER, package / "desk_lm")
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(EMBEDDED, "desk-lm", replace(EMBEDDED["desk-lm"], package="altered"))
    assert origin("desk-lm").path == str(package / "desk_lm")
    weights = package / "desk_lm" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(Refusal, match="not the published ones"):
        origin("desk-lm")
    weights.unlink()
    with pytest.raises(Refusal, match="missing"):
        origin("desk-lm")


def test_it_is_called_by_its_name():
    assert published(origin("desk-lm")) == "desk-lm"
    assert published(origin("some/model")) == "some/model"


def test_the_wording_copies_no_row_to_judge_by(wording):
    dice, read = random.Random(1), wording.read(MADE / "wording.txt")
    pairs = [*wording.worded(read, dice, 4), *(wording.served(row, read, dice) for row in records("train"))]
    unseen = {text for row in records() if row.split != "train" for text in (row.text, row.reply)}
    assert len(pairs) > 2000
    assert not unseen & {text for pair in pairs for text in pair}
    assert not [pair for pair in pairs if re.search(r"\{\w+\}|\|\w+\)", pair[1])]


@pytest.mark.parametrize("how", ["varied", "served"])
def test_a_made_row_speaks_of_one_order(wording, how):
    dice, read = random.Random(0), wording.read(MADE / "wording.txt")
    for row in records("train"):
        text, reply = wording.varied(row, dice) if how == "varied" else wording.served(row, read, dice)
        for span in row.spans:
            number = row.text[span.start : span.end]
            if span.label == "order" and number in reply:
                assert number in text
