"""Deltas of finished runs put together: one alone is its run; the formulas; artifacts that load alone; what does not fit is refused before weights are loaded."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import shop
from tiny import network, rows, texts
from tunesmith.artifact import export, load
from tunesmith.core import Batch, Ragged
from tunesmith.errors import Refusal
from tunesmith.methods import Fusion, Mixture
from tunesmith.progress import Reporter
from tunesmith.recipe import recipe
from tunesmith.train import Result, run

HOW = {
    "fusion": ({"kind": "adapter", "width": 4}, {"kind": "adapter", "width": 6, "activation": "relu"}),
    "mixture": ({"kind": "lora", "rank": 2}, {"kind": "lora", "rank": 3, "alpha": 5.0, "targets": ["query", "value"], "start": "pissa"}),
}


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A model, and two finished runs for each way of putting together, on two tasks."""
    folder = tmp_path_factory.mktemp("fusion")
    shop.encoder(folder / "model")
    for way, methods in HOW.items():
        for shape, method, name in zip(("classify", "score"), methods, "ab", strict=True):
            trained(folder, shape, method, f"{way}-{name}", update={"batch": 8, "rate": 2e-2})
    return folder


def trained(work: Path, shape: str, method: object, out: str, **more: object) -> Result:
    return run(recipe(shop.recipe(work, shape, method, out=str(work / out), **more)), Reporter(quiet=True))  # type: ignore[arg-type]


def runs(work: Path, way: str, names: str = "ab") -> list[str]:
    return [str(work / f"{way}-{name}") for name in names]


def states(net, seed: int = 1) -> Tensor:
    with torch.no_grad():
        ids = rows(5, 9, 3, seed=seed)
        return net.eval().states(Batch({"ids": Ragged(ids.values % len(shop.WORDS), ids.lengths)})).values


def fresh(work: Path):
    from tunesmith.networks.load import Origin, load_network

    return load_network(Origin(str(work / "model"), str(work / "model")), generates=False)


@pytest.mark.parametrize("way", HOW)
@pytest.mark.parametrize("name", ["a", "b"])
def test_one_alone_is_its_run(work, way, name):
    """A softmax over one is 1 and V the identity; one weight is 1."""
    tuned = load(work / f"{way}-{name}")
    base = fresh(work)
    plain = states(base)
    delta = (Fusion if way == "fusion" else Mixture)(runs=tuple(runs(work, way, name))).attach(base)
    assert not torch.allclose(states(base), plain, atol=1e-3)
    torch.testing.assert_close(states(base), states(tuned.net), rtol=1e-5, atol=1e-5)
    with delta.absent():
        assert torch.equal(states(base), plain)


@pytest.mark.parametrize(
    "way", ["fusion", {"kind": "mixture", "gate": "layer"}, {"kind": "mixture", "gate": "network"}, {"kind": "mixture", "gate": "token"}], ids=str
)
def test_from_a_recipe_and_its_artifact_loads_alone(work, tmp_path, way):
    """The runs that it was made of may be gone."""
    method = {"kind": way} if isinstance(way, str) else way
    kind = method["kind"]
    for name in "ab":
        shutil.copytree(work / f"{kind}-{name}", tmp_path / name)
    shop.encoder(tmp_path / "model")
    for name in "ab":  # these runs' model lies where it lay
        about = tmp_path / name / "artifact" / "tunesmith.json"
        about.write_text(about.read_text().replace(str(work), str(tmp_path)))
    shop.rows(tmp_path / "classify.jsonl", "classify", seed=3)
    made = {**method, "runs": [str(tmp_path / "a"), str(tmp_path / "b")]}
    found = trained(tmp_path, "classify", made, "fused", budget={"steps": 30}, update={"batch": 8, "rate": 1e-2})
    assert found["after"]["loss"] < 0.95 * found["before"]["loss"]
    asked = ["w1 w2 w3", "w40 w41", "w5 w50"]
    before = load(tmp_path / "fused").predict(asked)
    for name in "ab":
        shutil.rmtree(tmp_path / name)
    again = load(tmp_path / "fused")
    assert again.predict(asked) == before
    assert sum(n in again.delta.trains for n in again.delta.added) < len(again.delta.added)
    if kind == "mixture" and method["gate"] != "token":
        export(tmp_path / "fused", tmp_path / "plain")
    else:
        with pytest.raises(Refusal, match="cannot be folded"):
            export(tmp_path / "fused", tmp_path / "plain")


def test_a_mixture_by_task_gives_each_its_own_weights(work, tmp_path):
    """A task's rows move its weights alone; the artifact answers each by its own; one of them with the rest's weights is another network."""
    each = {"a": "classify", "b": "score"}
    for shape in each.values():
        shop.rows(work / f"{shape}.jsonl", shape)
    tasks = {name: {"task": shape, "data": str(work / f"{shape}.jsonl")} for name, shape in each.items()}
    made = {
        **{k: v for k, v in shop.recipe(work, "classify").items() if k not in ("task", "data")},
        "tasks": {name: {**one, "data": {"train": one["data"], "eval": one["data"]}} for name, one in tasks.items()}, "stream": "mix",
        "method": {"kind": "mixture", "gate": "task", "runs": runs(work, "mixture")}, "budget": {"steps": 20}, "out": str(tmp_path / "run"),
    }  # fmt: skip
    result = run(recipe(made), Reporter(quiet=True))
    tuned = load(result.folder)
    weights = {n.partition(".mixture.weights.")[2]: p for n, p in tuned.delta.parameters().items() if ".mixture.weights." in n}
    assert weights.keys() == {"a.w", "b.w", "rest.w"}
    named = {task: [p for n, p in tuned.delta.parameters().items() if n.endswith(f".weights.{task}.w")] for task in ("a", "b", "rest")}
    assert all((p == 1 / 2).all() for p in named["rest"]), "no row passed that has no head"
    assert any((p != q).any() for p, q in zip(named["a"], named["b"], strict=True))
    batch = Batch({"ids": Ragged(torch.arange(3, 9), (2, 4))}, "a")
    tuned.net.logits(batch).sum().backward()
    assert any(p.grad is not None for p in named["a"]) and all(p.grad is None for p in (*named["b"], *named["rest"]))
    here = tuned.net.states(batch).values
    assert not torch.equal(here, tuned.net.states(replace(batch, task="b")).values)
    with pytest.raises(Refusal, match="cannot be folded"):
        export(result.folder, tmp_path / "plain")
    lines = [json.loads(line) for line in (result.folder / "predictions.jsonl").read_text().splitlines()]
    said = [line["predicted"] for line in lines if line["task"] == "a"]
    asked = [json.loads(line)["text"] for line in (work / "classify.jsonl").read_text().splitlines()]
    assert [p["label"] for p in tuned.of("a").predict(asked)] == said


def test_fusion_is_the_papers_attention():
    """softmax over adapters of (Q h) . (K a), values V a, all by the token."""
    torch.manual_seed(0)
    net = network("bert")
    Fusion(parts=({"width": 4}, {"width": 5}, {"width": 3})).attach(net)
    council = next(m for m in net.modules() if type(m).__name__ == "Council")
    nn.init.normal_(council.change.weight, std=0.3)
    nn.init.normal_(council.query.weight, std=0.3)
    nn.init.normal_(council.key.weight, std=0.3)
    nn.init.normal_(council.query.bias)
    y = torch.randn(7, 32)
    found = council(lambda x: x, y)
    z = [member.through(y) for member in council.members]
    q, k = council.query(y), [council.key(a) for a in z]
    share = torch.stack([(q * a).sum(-1) for a in k], -1).softmax(-1)
    value = torch.eye(32) + council.change.weight
    wanted = y + sum(share[:, i, None] * (a @ value.T) for i, a in enumerate(z))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert share.std() > 0.05


def test_fusion_decays_to_the_identity():
    """What decay pulls to 0 is V - I; V itself stands nowhere."""
    net = network("bert")
    delta = Fusion(parts=({"width": 4}, {"width": 4})).attach(net)
    changes = [p for n, p in delta.parameters().items() if n.endswith(".change.weight")]
    assert changes and all((p == 0).all() for p in changes)
    assert {n.rsplit(".fusion.", 1)[1] for n in delta.trains if ".fusion." in n} == {"query.weight", "query.bias", "key.weight", "change.weight"}


def test_a_mixture_is_the_sum_of_its_changes(work):
    """Weights by layer, on the layers that both or one of them change."""
    net = fresh(work)
    tuned = [load(path) for path in runs(work, "mixture")]
    delta = Mixture(runs=tuple(runs(work, "mixture"))).attach(net)
    with torch.no_grad():
        for n, p in delta.parameters().items():
            if n.endswith(".weights.w"):
                p.copy_(torch.tensor([0.3, -0.6]))
    mixed = states(net)
    plain = fresh(work)
    for path, role in plain.anatomy.linears.items():
        weight = plain.get_submodule(path).weight
        for share, run_ in zip((0.3, -0.6), tuned, strict=True):
            host = run_.net.get_submodule(path)
            if hasattr(host, "lora"):
                weight.data += share * host.lora.change().detach()
    torch.testing.assert_close(mixed, states(plain), rtol=1e-5, atol=1e-5)


def test_a_gate_chooses_by_the_token():
    torch.manual_seed(0)
    net = network("bert")
    delta = Mixture(gate="token", parts=({"rank": 2}, {"rank": 2})).attach(net)
    blend = next(m for m in net.modules() if type(m).__name__ == "Blend")
    assert torch.equal(blend.share(torch.randn(5, 32)), torch.full((5, 2), 0.5))
    nn.init.normal_(blend.choice.weight)
    share = blend.share(torch.randn(5, 32))
    torch.testing.assert_close(share.sum(-1), torch.ones(5))
    assert share.std(0).min() > 0.05
    assert len(delta.trains) > 1 and not any(".lows." in n for n in delta.trains)
    net.logits(texts(5, 9)).sum().backward()


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"kind": "fusion"}, ["names no finished run", "runs:"]),
        ({"kind": "fusion", "runs": ["nowhere"]}, ["nowhere holds no finished run"]),
        ({"kind": "fusion", "runs": ["mixture-a"]}, ["method: lora", "mixture"]),
        ({"kind": "mixture", "runs": ["fusion-a", "fusion-b"]}, ["method: adapter", "fusion"]),
        ({"kind": "fusion", "runs": ["fusion-a", "other"]}, ["another base", "other-model"]),
        ({"kind": "fusion", "runs": ["fusion-a", "parallel"]}, ["parallel", "placement"]),
        ({"kind": "mixture", "runs": ["dora"]}, ["dora"]),
    ],
    ids=lambda x: str(x.get("runs", "")) if isinstance(x, dict) else "",
)
def test_what_does_not_fit_is_refused(work, method, words, monkeypatch):
    if not (work / "other").exists():
        shop.encoder(work / "other-model")
        trained(work, "classify", {"kind": "adapter"}, "other", model=str(work / "other-model"), budget={"steps": 1})
        trained(work, "classify", {"kind": "adapter", "placement": "parallel"}, "parallel", budget={"steps": 1})
        trained(work, "classify", {"kind": "lora", "dora": True}, "dora", budget={"steps": 1})
    monkeypatch.chdir(work)
    with pytest.raises(Refusal) as refused:
        trained(work, "classify", method, "refused")
    for word in words:
        assert word in str(refused.value), str(refused.value)
    assert not (work / "refused" / "artifact").exists()


def test_a_delta_of_another_shape_is_refused(work, tmp_path):
    """The same name, and other weights behind it."""
    shutil.copytree(work / "fusion-a", tmp_path / "a")
    about = tmp_path / "a" / "artifact" / "tunesmith.json"
    about.write_text(about.read_text().replace('"width": 4', '"width": 5'))
    with pytest.raises(Refusal, match="does not fit"):
        Fusion(runs=(str(tmp_path / "a"),)).attach(fresh(work))
