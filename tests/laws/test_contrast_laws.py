"""The gradient of a loss in which rows see each other: in pieces, with dropout, over processes, and beside sentence-transformers' own cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pair_contrast import CASES, SEVERAL, trained
from safetensors.torch import load_file
from test_training import mounted
from torch import Tensor, nn

import related
import shop
from related import LOSSES
from tunesmith.core import Batch, Ragged, Run
from tunesmith.methods import Full, LoRA, Prefix
from tunesmith.networks.load import Origin, load_network
from tunesmith.networks.transformer import Transformer
from tunesmith.objectives import Contrast
from tunesmith.updates import Descend, gradcache
from tunesmith.updates.descend import pieces

HERE = Path(__file__).parent
METHODS = {"full": Full(), "lora": LoRA(rank=2, dropout=0.2), "prefix": Prefix(length=2)}


def prepared(name: str, method: str = "full", dropout: float = 0.0) -> tuple[Run, Batch]:
    """In double precision."""
    which, options = LOSSES[name]
    net, delta = mounted("bert", METHODS[method], dropout)
    net.heads.clear()
    net.double()
    learn = Contrast(**options)
    if options.get("projection"):
        torch.manual_seed(7)
        learn.project = nn.Sequential(nn.Linear(32, 32), nn.Tanh())
    run = Run(net, delta, learn.double(), [], Descend(rate=1e-3))
    net.rest_below(delta.floor)
    return run, related.kind(which)


def gradients(run: Run) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in run.parameters().items() if p.grad is not None}
    for p in run.parameters().values():
        p.grad = None
    return found


def direct(run: Run, batch: Batch, tokens: int, seed: int) -> dict[str, Tensor]:
    """One graph over all that was read, dropout drawn as `cached` draws it."""
    parts = list(pieces(batch, tokens))
    read = []
    for j, part in enumerate(parts):
        torch.manual_seed((seed + 104_729 * j) & 0x7FFF_FFFF)
        read.append(run.objective.read(run.net, part))
    signals = {name: torch.cat([r[name] for r in read]) for name in read[0]}
    loss = run.objective.score(signals, batch)["task"] / run.objective.count(batch)["task"]
    loss.backward()
    return gradients(run)


def cached(run: Run, batch: Batch, tokens: int, seed: int = 3) -> dict[str, Tensor]:
    gradcache.cached(run, [batch], tokens, seed)
    return gradients(run)


def gap(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Of the whole gradient, relative."""
    assert a.keys() == b.keys()
    flat = lambda g: torch.cat([g[n].flatten() for n in sorted(g)])
    return float((flat(a) - flat(b)).norm() / flat(b).norm())


@pytest.mark.parametrize("tokens", [1, 40, 10**6])
@pytest.mark.parametrize("name", LOSSES)
def test_in_pieces_is_in_one(name: str, tokens: int) -> None:
    """To 1e-10, whatever the loss, with dropout: random state is replayed."""
    run, batch = prepared(name, dropout=0.2)
    assert len(list(pieces(batch, tokens))) == {1: len(batch.groups()), 40: len(list(pieces(batch, 40))), 10**6: 1}[tokens]
    assert gap(cached(run, batch, tokens), direct(run, batch, tokens, 3)) < 1e-10


@pytest.mark.parametrize("method", METHODS)
def test_in_pieces_is_in_one_by_any_method(method: str) -> None:
    run, batch = prepared("infonce", method, 0.1)
    assert gap(cached(run, batch, 30), direct(run, batch, 30, 3)) < 1e-10
    still, batch = prepared("infonce", "full")
    assert gap(cached(still, batch, 30), cached(still, batch, 10**6)) < 1e-10


def test_without_replay_the_gradient_is_another(monkeypatch) -> None:
    """The wrong version: the second reading draws new dropout. Without dropout nobody would notice."""
    for dropout, low, high in ((0.1, 0.01, 2.0), (0.0, 0.0, 1e-10)):
        run, batch = prepared("infonce", dropout=dropout)
        right = cached(run, batch, 30)
        monkeypatch.setattr(gradcache, "seen", lambda run, part, seed: run.objective.read(run.net, part))
        wrong = cached(run, batch, 30)
        monkeypatch.undo()
        assert low <= gap(wrong, right) <= high


def test_accumulation_is_not_a_larger_batch() -> None:
    """Rows of different batches do not see each other: another loss, another gradient."""
    run, batch = prepared("infonce")
    halves = [batch.take(0, 12), batch.take(12, 24)]
    gradcache.cached(run, halves, 10**6, 3)
    summed, whole = gradients(run), cached(run, batch, 10**6)
    alone = [cached(run, half, 10**6) for half in halves]
    assert gap(summed, {n: (alone[0][n] + alone[1][n]) / 2 for n in summed}) < 1e-10
    assert gap(summed, whole) > 0.05


def test_a_detached_half_is_not_the_gradient() -> None:
    """What SimCSE and FlagEmbedding do over processes: gather without a gradient, and take the own rows' part. Half as long, or turned."""
    run, batch = prepared("infonce")
    right = cached(run, batch, 10**6)
    halves = [[*range(12)], [*range(12, 24)]]
    every, own = dict[str, Tensor](), dict[str, Tensor]()
    for mine in halves:
        z = run.objective.read(run.net, batch)["z"]
        held = z.detach().clone()
        held[mine] = z[mine]
        (run.objective.score({"z": held}, batch)["task"] / 6 / 2).backward()
        every = {n: every.get(n, 0) + g for n, g in gradients(run).items()}
        z = run.objective.read(run.net, batch)["z"]
        held = z.detach().clone()
        held[mine] = z[mine]
        logits = nn.functional.normalize(held, dim=-1)
        rows = [i for i in mine if i % 4 == 0]
        others = [*range(1, 24, 4), *(i for i in range(24) if i % 4 > 1)]
        loss = nn.functional.cross_entropy(logits[rows] @ logits[others].T / 0.05, torch.tensor(rows) // 4, reduction="sum") / 6
        loss.backward()
        own = {n: own.get(n, 0) + g for n, g in gradients(run).items()}
    assert gap({n: 2 * g for n, g in every.items()}, right) < 1e-10  # right direction, half the length
    assert gap(own, right) > 0.05


# ------------------------------------------------------------------------------------------------ two processes


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(HERE / "pair_contrast.py"), str(folder)]
    subprocess.run(command, env=env, check=True, capture_output=True, timeout=600)
    return folder


@pytest.mark.parametrize("case", [*CASES, *SEVERAL])
def test_two_processes_are_one(pair, case) -> None:
    """Every row is contrasted with those of the other process, and the gradient goes back there."""
    alone = trained(case)
    a, b = (load_file(pair / f"{case}-{rank}.safetensors") for rank in (0, 1))
    assert alone.keys() == a.keys() == b.keys()
    for name, value in alone.items():
        assert torch.equal(a[name], b[name]), name
        loose = "norm" not in name and "key" in name and name.endswith("bias")  # no gradient but rounding, of which AdamW makes whole steps
        torch.testing.assert_close(a[name], value, rtol=1e-4, atol=5e-3 if loose else 2e-5, msg=lambda m, name=name: f"{name}: {m}")


# ------------------------------------------------------------------------------------------------ sentence-transformers


def test_the_cached_gradient_is_theirs(tmp_path) -> None:
    """CachedMultipleNegativesRankingLoss on the same published model and texts, in mini-batches of two, without dropout."""
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    from tunesmith.sentence_format import sentence_files
    from tunesmith.sources.text.encode import Reader
    from tunesmith.sources.text.examples import Related
    from tunesmith.sources.text.task import Task

    shop.encoder(tmp_path)
    reader = Reader(shop.tokenizer(), 64)
    for name, content in sentence_files(32, "mean", reader).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    texts = [text for text, _ in shop.texts(12)]
    peer = SentenceTransformer(str(tmp_path), device="cpu").eval()
    features = [peer.preprocess(texts[side::2]) for side in (0, 1)]
    CachedMultipleNegativesRankingLoss(peer, mini_batch_size=2)(features, torch.zeros(6)).backward()
    theirs = {n: p.grad for n, p in peer[0].auto_model.named_parameters() if p.grad is not None}

    net = load_network(Origin(str(tmp_path), "tiny"), generates=False, dropout=0.0)
    assert isinstance(net, Transformer)
    encoded = reader.encode([Related((texts[i], texts[i + 1]), i // 2) for i in range(0, 12, 2)], Task("embed", "pairs"))
    run = Run(net, Full().attach(net), Contrast("pairs"), [], Descend(rate=1e-3))
    net.rest_below(0)
    ids = encoded.columns["ids"]
    assert isinstance(ids, Ragged)
    mine = {n.removeprefix("model."): g for n, g in cached(run, Batch(encoded.columns), 2 * max(ids.lengths)).items()}
    assert mine.keys() == theirs.keys()
    for name, g in theirs.items():
        torch.testing.assert_close(mine[name], g, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
