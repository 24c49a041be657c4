"""A blank network is the network without its values: the same parts, the same parameters under every method, and nothing of it stays behind."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from tiny import CLASSES, FAMILIES, WRITERS, Letters, answer, batch_for, network
from tunesmith.core import Delta
from tunesmith.errors import Refusal
from tunesmith.methods import Adapter, BitFit, Full, Head, Layers, LoRA, Prefix, Prompt
from tunesmith.networks.blank import blank_network
from tunesmith.networks.heads import HeadSpec
from tunesmith.networks.load import Origin, add_head
from tunesmith.networks.transformer import Transformer

METHODS = {
    "full": Full(),
    "head": Head(),
    "layers": Layers(last=2),
    "adapter": Adapter(width=4),
    "prompt": Prompt(length=3, reparametrise="lstm", hidden=8),
    "prefix": Prefix(length=3, text="sort it"),
    "lora": LoRA(rank=2, start="pissa"),
    "dora": LoRA(rank=2, dora=True),
    "bitfit": BitFit(),
}
NETWORKS = [*FAMILIES, *(f"{name}:lm" for name in WRITERS)]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Folders with a configuration and no weights."""
    work = tmp_path_factory.mktemp("published")
    for name, config in FAMILIES.items():
        made = copy.deepcopy(config)
        made.architectures = [type(network(name).model).__name__]
        made.save_pretrained(work / name)
    return work


def blank(published: Path, name: str):
    family, _, writes = name.partition(":")
    return blank_network(Origin(str(published / family), name), generates=bool(writes), tokenizer=Letters())


def dressed(net: Transformer, generates: bool) -> Transformer:
    net.labels = ("good", "bad")
    if not generates and "task" not in net.heads:
        add_head(net, "task", HeadSpec(CLASSES), 0)
    return net


def shapes(net: Transformer, delta: Delta) -> tuple[dict, dict, int]:
    every = {name: (tuple(p.shape), p.dtype) for name, p in net.named_parameters()}
    return every, {name: tuple(p.shape) for name, p in delta.parameters().items()}, delta.lowest


@pytest.mark.parametrize("name", NETWORKS)
def test_every_method_moves_the_same_parameters(published, name):
    for label, method in METHODS.items():
        try:
            real = network(name)
            expected = shapes(real, method.attach(real, keep=False))
        except Refusal as e:
            with blank(published, name) as net, pytest.raises(Refusal) as told:
                method.attach(dressed(net, ":" in name), keep=False)
            assert told.value.what == e.what, label
            continue
        with blank(published, name) as net:
            assert shapes(net, method.attach(dressed(net, ":" in name), keep=False)) == expected, label
            assert all(p.untyped_storage().device.type == "meta" for p in net.model.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_it_has_the_same_parts(published, name):
    real = network(name)
    with blank(published, name) as net:
        assert net.anatomy == real.anatomy
        assert net.arity == real.arity
        assert (net.takes_prefix, net.pool) == (real.takes_prefix, real.pool)


def test_nothing_of_it_stays_behind(published):
    """What the network remembers between calls would be without values after a rehearsal."""
    before = answer(network("bert"), batch_for(network("bert")))
    with blank(published, "bert") as net:
        assert answer(dressed(net, False), batch_for(net)).shape == before.shape
    after = answer(network("bert"), batch_for(network("bert")))
    assert type(after) is torch.Tensor
    assert torch.equal(after, before)
