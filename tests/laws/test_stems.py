"""Rows that begin alike are read once, and nobody can tell: states and gradients are those of rows that are read apart."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tiny import DECODERS, VOCABULARY, network, writer
from tunesmith.core import Batch, Delta, Ragged
from tunesmith.methods import METHODS
from tunesmith.networks import attention
from tunesmith.networks import layout as layouts
from tunesmith.networks.attention import Room
from tunesmith.networks.kernels import Rules
from tunesmith.networks.layout import Layout, layout, shared
from tunesmith.networks.stems import SAVES, stems
from tunesmith.networks.transformer import Transformer

CPU = torch.device("cpu")
ROWS = st.lists(st.lists(st.integers(5, 7), min_size=1, max_size=8), min_size=1, max_size=8)


def rows(*texts: list[int]) -> Batch:
    return Batch({"ids": Ragged(torch.tensor([t for text in texts for t in text]), tuple(map(len, texts)))})


def groups(seed: int = 0) -> Batch:
    """Three prompts with three, one and two answers, not in order, and an answer that is the beginning of another."""
    draw = lambda n: torch.randint(5, VOCABULARY, (n,), generator=torch.Generator().manual_seed(seed + n)).tolist()
    a, b, c = draw(9), draw(7), draw(12)
    return rows(a + [5, 6, 7, 8], c + [9], a + [5, 6], b + [11, 12], a + [6], b + [12] * 6)


def passed(net: Transformer, batch: Batch) -> tuple[Tensor, int]:
    """The states of a batch, and how many tokens entered the first block."""
    seen: list[int] = []
    block = net.get_submodule(net.anatomy.blocks[0])
    hook = block.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args[0] if args else kwargs["hidden_states"]).shape[1]), with_kwargs=True)
    try:
        return net.states(batch).values, seen[0]
    finally:
        hook.remove()


def both(net: Transformer, batch: Batch, delta: Delta) -> tuple[list[Tensor], list[Tensor], int, int]:
    """States and the gradients of a number made of them; apart and together, with how many tokens were read."""
    weight = torch.randn(sum(batch.ragged("ids").lengths), net.anatomy.width, generator=torch.Generator().manual_seed(3))
    params, found = list(delta.parameters().values()), []
    for apart in (True, False):
        net.room.watched = apart
        states, tokens = passed(net, batch)
        found.append(([states.detach(), *torch.autograd.grad((states * weight).sum(), params, allow_unused=True)], tokens))
    (one, all_of_them), (two, fewer) = found
    return one, two, all_of_them, fewer


@settings(max_examples=200, deadline=None)
@given(ROWS)
def test_a_token_is_read_once_for_each_beginning_that_ends_in_it(texts: list[list[int]]) -> None:
    beginnings = {tuple(text[: i + 1]) for text in texts for i in range(len(text))}
    whole = sum(map(len, texts))
    found = stems(texts, CPU)
    if found is None:
        assert len(beginnings) > (1 - SAVES) * whole
        return
    flat = torch.tensor([t for text in texts for t in text])
    assert len(found.kept) == len(beginnings)
    assert torch.equal(flat[found.kept][found.copies], flat)


@pytest.mark.parametrize("cost", [0, layouts.CALL_COST])
@pytest.mark.parametrize("kernel", ["matmul", "sdpa"])
@settings(max_examples=100, deadline=None)
@given(texts=ROWS, window=st.sampled_from([0, 3]), behind=st.integers(0, 2))
def test_a_token_asks_once(kernel: str, cost: int, texts: list[list[int]], window: int, behind: int) -> None:
    """In the row that is the first to have it; what it hears is what it would hear in any of them."""
    alike = stems(texts, CPU)
    if alike is None:
        return
    lengths, rules = tuple(map(len, texts)), Rules(0.5, True, window, None, 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layouts, "CALL_COST", cost)
        layout.cache_clear()
        whole = layout(lengths, 0, CPU)
        lay = shared(whole, alike, behind)
        layout.cache_clear()
    assert sum(b.queries.stop - b.queries.start for b in lay.buckets) == len(alike.kept)
    assert lay.asks is not None
    assert lay.back is not None
    assert sorted(lay.asks.tolist()) == list(range(len(alike.kept) + behind))
    assert torch.equal(lay.asks[lay.back], torch.arange(len(lay.back)))
    draw = torch.randn(3, 1, 2, len(alike.kept), 4, generator=torch.Generator().manual_seed(len(texts)))
    apart = attention.packed(*draw[..., alike.copies, :], Room(whole, kernel=kernel), rules, None)
    once = attention.packed(*torch.nn.functional.pad(draw, (0, 0, 0, behind)), Room(lay, kernel=kernel), rules, None)
    torch.testing.assert_close(once[:, : len(alike.kept)], apart[:, alike.kept], rtol=1e-5, atol=1e-6)
    assert not once[:, len(alike.kept) :].any()


def test_answers_do_not_ask_again_what_their_prompt_asked() -> None:
    """Eight answers to one prompt: the cells of scores are those of one whole row, and of each other answer by the row's length."""
    texts = [[9] * 100 + [i] * 50 for i in range(8)]
    alike = stems(texts, CPU)
    assert alike is not None
    buckets = shared(layout((150,) * 8, 0, CPU), alike, 0).buckets
    assert sum(b.keys.rows * b.queries.width * b.keys.width for b in buckets) == 150 * 150 + 7 * 50 * 150


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("method", ["full", "lora", "adapter", "prompt", "prefix"])
def test_states_and_gradients_are_those_of_rows_apart(family: str, method: str) -> None:
    net = network(f"{family}:lm")
    delta = METHODS[method]().attach(net)
    net.double()
    torch.manual_seed(1)
    for p in delta.parameters().values():
        p.data.add_(torch.randn_like(p), alpha=0.05)
    apart, together, all_of_them, fewer = both(net, groups(), delta)
    assert net.packs
    assert fewer < 0.75 * all_of_them
    for a, b in zip(apart, together, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert (b - a).abs().max() < 1e-6 * a.abs().max()  # their norms are in fp32


@pytest.mark.parametrize("kernel", ["matmul", "sdpa"])
def test_in_bf16_with_filler(kernel: str) -> None:
    net = network("llama:lm")
    delta = METHODS["lora"]().attach(net)
    net.compute, net.room.kernel = torch.bfloat16, kernel
    apart, together, all_of_them, fewer = both(net, groups(), delta)
    assert fewer < all_of_them
    torch.testing.assert_close(together[0], apart[0], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("method", ["full", "prefix"])
def test_where_the_kernel_takes_whole_rows(method: str, monkeypatch) -> None:
    """The branch of `varlen`, which needs CUDA, with another kernel in its place."""
    net = network("llama:lm")
    delta = METHODS[method]().attach(net)
    net.room.kernel = "varlen"

    def rows_apart(q: Tensor, k: Tensor, v: Tensor, lay: Layout, rules: Rules, prefix: tuple[Tensor, Tensor] | None) -> Tensor:
        return attention.packed(*(x.transpose(0, 1)[None] for x in (q, k, v)), Room(layout(lay.lengths, 0, CPU)), rules, prefix)[0]

    monkeypatch.setattr(attention, "varlen", rows_apart)
    apart, together, all_of_them, fewer = both(net, groups(), delta)
    assert fewer < all_of_them
    for a, b in zip(apart, together, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)


def test_under_recomputation() -> None:
    net = network("llama:lm")
    delta = METHODS["full"]().attach(net)
    net.train()
    net.recompute(True)
    apart, together, *_ = both(net, groups(), delta)
    for a, b in zip(apart, together, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


def test_a_wrong_version_is_told() -> None:
    """Rows that share more than they have in common, as would be if places were compared and not beginnings."""
    net, batch = network("llama:lm"), rows([5, 6, 7, 8, 9, 10], [5, 6, 11, 8, 9, 10])
    alike = stems([[5, 6, 7, 8, 9, 10], [5, 6, 11, 8, 9, 10]], CPU)
    assert alike is not None
    right = net.states(batch).values
    alike.copies[9:] = alike.copies[3:6]
    net.stems = lambda batch, before: alike  # type: ignore[method-assign]
    assert (net.states(batch).values - right).abs().max() > 1e-3


# ------------------------------------------------------------------------------------------------ where rows stay apart


def read(net: Transformer, batch: Batch) -> int:
    return passed(net, batch)[1]


def test_where_dropout_draws_for_each_row() -> None:
    """Each of two equal texts has its own mask: that is all that SimCSE learns from."""
    batch = groups()
    whole = sum(batch.ragged("ids").lengths)
    for name, how in (("attention_dropout", 0.1), ("lora", 0.1), ("none", 0.0)):
        net = network("llama:lm")
        if name == "attention_dropout":
            net.model.config.attention_dropout = how
        METHODS["lora"](dropout=how if name == "lora" else 0.0).attach(net)
        net.train()
        assert (read(net, batch) == whole) == (how > 0), name
        net.eval()
        assert read(net, batch) < whole, name


def test_in_an_encoder_whose_tokens_see_what_follows() -> None:
    net = network("bert")
    batch = groups()
    assert read(net, batch) == sum(batch.ragged("ids").lengths)


def test_in_a_decoder_that_sees_both_ways() -> None:
    net, batch = writer(DECODERS["gemma3"], use_bidirectional_attention=True), groups()
    assert read(net, batch) == sum(batch.ragged("ids").lengths)
    states = net.states(batch)
    for row, alone in zip(states.rows(), batch.ragged("ids").rows(), strict=True):
        torch.testing.assert_close(net.states(Batch({"ids": Ragged(alone, (len(alone),))})).values, row, rtol=1e-4, atol=1e-5)


def test_where_states_are_stored_or_listened_to() -> None:
    net, batch = network("llama:lm"), groups()
    whole = sum(batch.ragged("ids").lengths)
    stored = net.trunk_states(batch, 1)
    assert len(stored.values) == whole
    states, heard = net.overheard(lambda: net.states(batch).values, batch, [0], [1])
    assert len(heard.states[0]) == whole
    assert not net.room.watched
    torch.testing.assert_close(net.states(batch).values, states, rtol=1e-5, atol=1e-5)


def test_where_they_have_little_in_common() -> None:
    net, batch = network("llama:lm"), rows([5, 6, 7, 8, 9, 10, 11, 12, 13], [5, 7, 6, 8, 9, 10, 11, 12, 13])
    assert read(net, batch) == 18
