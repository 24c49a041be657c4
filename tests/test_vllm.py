"""Writing through vLLM: what it cannot do is refused before a weight is loaded; and where it is installed (`make vllm`), it writes by the weights as they are
now, says the log-probabilities that are scored, plays turn by turn, and a policy learns from what it wrote."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import shop
from tiny import stir
from tunesmith import train as training
from tunesmith import vllm_writer
from tunesmith.advice.rehearsal import beside
from tunesmith.core import Batch, Ragged
from tunesmith.dataset import read_data
from tunesmith.errors import Refusal
from tunesmith.job import agreed
from tunesmith.methods import METHODS
from tunesmith.methods.lora import LoRA
from tunesmith.networks.embedded import origin
from tunesmith.networks.load import load_network
from tunesmith.networks.sample import Draw
from tunesmith.progress import Reporter
from tunesmith.recipe import recipe

HERE = find_spec("vllm") is not None
NEEDED = pytest.mark.skipif(not HERE, reason="vllm is not installed")
STARTS = [[1, 20, 30, 40], [1, 77, 88], [1, 5, 6, 7, 8, 9, 10]]
EOS = frozenset({2})


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vllm")
    shop.decoder(folder / "model")
    return folder


def made(work: Path, method: str = "lora", **more) -> dict:
    objective = {"kind": "reinforce", "algorithm": "grpo", "reward": {"kind": "regex", "pattern": "w1"}, "length": 6, "group": 4, "engine": "vllm"}
    return shop.recipe(
        work, "generate", {"kind": method}, objective=objective | more.pop("objective", {}), **{"update": {"batch": 16}, "budget": {"steps": 2}, **more}
    )


# ------------------------------------------------------------------------------------------------ before a weight is loaded


@pytest.mark.parametrize("method", ["adapter", "prompt", "prefix"])
def test_what_no_published_class_holds_is_refused(work: Path, method: str, monkeypatch) -> None:
    monkeypatch.setattr(vllm_writer, "find_spec", lambda name: object())
    r = recipe(made(work, method))
    with pytest.raises(Refusal, match=f"what `{method}` adds cannot be folded") as e:
        agreed(r, read_data(r))
    assert e.value.where == "objective.engine" and "engine: own" in e.value.fix


def test_each_other_reason_has_its_sentence(monkeypatch) -> None:
    monkeypatch.setattr(vllm_writer, "find_spec", lambda name: object())
    vllm_writer.foreseen(LoRA(), None, False)
    for bits, seq2seq, what in ((4, False, "stored in 4 bits"), (None, True, "of decoders")):
        with pytest.raises(Refusal, match=what):
            vllm_writer.foreseen(LoRA(), bits, seq2seq)
    with pytest.raises(Refusal, match="folded"):
        vllm_writer.foreseen(METHODS["peft"]("ia3"), None, False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Refusal, match="other processes"):
        vllm_writer.foreseen(LoRA(), None, False)
    monkeypatch.setattr(vllm_writer, "find_spec", lambda name: None)
    with pytest.raises(Refusal, match="not installed") as e:
        vllm_writer.foreseen(LoRA(), None, False)
    assert "tunesmith[vllm]" in e.value.fix


def test_its_memory_is_foreseen(work: Path, monkeypatch) -> None:
    monkeypatch.setattr(vllm_writer, "find_spec", lambda name: object())
    r = recipe(made(work, objective={"cache": 0.5}))
    data = read_data(r)
    learn = agreed(r, data)
    weights = sum(p.numel() * p.element_size() for p in load_network(data.source, generates=True).parameters())
    assert beside(r, data, learn) == (0, 2**29 + weights)


# ------------------------------------------------------------------------------------------------ where it is installed


def policy(method: str):
    """desk-lm, tuned away from what it was."""
    net = load_network(origin("desk-lm"), generates=True)
    torch.manual_seed(0)
    delta = METHODS[method]().attach(net)
    stir(delta.parameters())
    delta.cast(torch.float32)
    return net.eval(), delta


@torch.no_grad()
def scored(net, row, temperature: float) -> torch.Tensor:
    at = Ragged(torch.tensor(row.at), (len(row.at),))
    batch = Batch({"ids": Ragged(torch.tensor(row.ids), (len(row.ids),)), "at": at, "label": Ragged(torch.tensor(row.written), at.lengths)})
    return net.label_logp(batch, temperature)


@NEEDED
@pytest.mark.parametrize("method", ["full", "layers", "bitfit", "lora"])
def test_it_writes_by_the_weights_as_they_are(method: str) -> None:
    net, delta = policy(method)
    write = vllm_writer.Engine(delta, 0.25)
    first = write(net, STARTS, 3, range(9), Draw(12, 0.7, EOS))
    assert [row.ids[: len(STARTS[i // 3])] for i, row in enumerate(first)] == [s for s in STARTS for _ in range(3)]
    assert len({tuple(row.written) for row in first}) == 9
    for row in first:
        assert row.ended == (row.ids[-1] == 2) and (row.ended or len(row.at) == 12)
        torch.testing.assert_close(torch.tensor(row.logp), scored(net, row, 0.7), atol=1e-4, rtol=1e-4)
    again = write(net, STARTS, 3, range(9), Draw(12, 0.7, EOS))
    assert [row.ids for row in again] == [row.ids for row in first]
    with torch.no_grad():
        for p in delta.parameters().values():
            p.neg_()
    for row in write(net, STARTS, 3, range(9), Draw(12, 0.7, EOS)):
        torch.testing.assert_close(torch.tensor(row.logp), scored(net, row, 0.7), atol=1e-4, rtol=1e-4)


@NEEDED
def test_turns_are_answered_and_kept() -> None:
    net, delta = policy("lora")
    heard: list[tuple[int, list[int]]] = []

    def answer(i: int, turn: list[int], ended: bool) -> list[int] | None:
        heard.append((i, turn))
        return [50, 51, 52] if len([1 for j, _ in heard if j == i]) < 3 else None

    rows = vllm_writer.Engine(delta, 0.25)(net, STARTS, 2, range(6), Draw(5, 1.0, EOS), answer)
    for i, row in enumerate(rows):
        turns = [turn for j, turn in heard if j == i]
        assert len(turns) == 3
        assert row.ids == [*STARTS[i // 2], *turns[0], 50, 51, 52, *turns[1], 50, 51, 52, *turns[2]]
        torch.testing.assert_close(torch.tensor(row.logp), scored(net, row, 1.0), atol=1e-4, rtol=1e-4)


@NEEDED
def test_a_cache_without_room_is_refused() -> None:
    net, delta = policy("lora")
    with pytest.raises(Refusal) as e:
        vllm_writer.Engine(delta, 0.001)(net, STARTS, 1, range(3), Draw(400, 1.0, EOS))
    assert e.value.where in ("objective.cache", "objective.engine")


@NEEDED
def test_a_policy_learns_from_what_it_wrote(tmp_path: Path) -> None:
    """The desk's messages, answered; a reward for letters that few answers hold."""
    (tmp_path / "asked.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in ("Thank you for", "The order is", "We are happy", "Please send the") * 8))
    spec = {
        "model": "desk-lm", "task": "generate", "data": {"train": str(tmp_path / "asked.jsonl"), "eval": 0.25}, "method": {"kind": "lora"},
        "objective": {"kind": "reinforce", "algorithm": "grpo", "reward": {"kind": "regex", "pattern": "[vx]"}, "length": 12, "group": 8, "beta": 0.02,
                      "engine": "vllm", "cache": 0.25},
        "update": {"batch": 32, "rate": 1e-2}, "budget": {"steps": 16}, "out": str(tmp_path / "run"), "device": "cpu", "dtype": "fp32",
    }  # fmt: skip
    training.run(recipe(spec), Reporter(quiet=True))
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    said = [line for line in log if "reward" in line]
    assert sum(x["reward"] for x in said[-3:]) > sum(x["reward"] for x in said[:3]) + 0.6
    assert all(0 <= x["mismatch"] < 1e-3 for x in said)
