"""Attention over packed rows: every kernel equals a naive computation in float64, whatever the lengths; buckets cover all rows
and cost no more than the obvious ways to cut them; dropout is unbiased; gradients are those of finite differences."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tunesmith.networks import attention
from tunesmith.networks.attention import Room, Seat, packed, packed_masks, padded
from tunesmith.networks.dropout import dropout
from tunesmith.networks.kernels import KERNELS, Rules
from tunesmith.networks.layout import CALL_COST, Gather, Scatter, bounds_of, cheapest_cuts, layout

CPU = torch.device("cpu")
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=12)
OFTEN = settings(max_examples=60, deadline=None)


# ------------------------------------------------------------------------------------------------ buckets


def whole(lengths: list[int]) -> list[tuple[int, int]]:
    return [(0, n) for n in lengths]


def cost(lengths: list[int], cuts: list[int]) -> float:
    """Padded score cells, and what each call costs beside them."""
    spans = zip([0, *cuts], cuts, strict=False)
    return sum(lengths[stop - 1] ** 2 * (stop - start) + CALL_COST for start, stop in spans)


@OFTEN
@given(st.lists(st.integers(1, 600), min_size=1, max_size=40))
def test_cuts_cost_no_more_than_the_obvious(lengths: list[int]) -> None:
    lengths = sorted(lengths)
    cuts = cheapest_cuts(whole(lengths))
    assert cuts == sorted(set(cuts))
    assert cuts[0] > 0
    assert cuts[-1] == len(lengths)
    singles, halves = list(range(1, len(lengths) + 1)), sorted({max(1, len(lengths) // 2), len(lengths)})
    assert cost(lengths, cuts) <= min(cost(lengths, other) for other in ([len(lengths)], singles, halves))


@OFTEN
@given(st.lists(st.integers(1, 400), min_size=1, max_size=6))
def test_cuts_are_the_best_of_all(lengths: list[int]) -> None:
    lengths = sorted(lengths)
    every = [[i for i in range(1, len(lengths)) if bits >> i & 1] + [len(lengths)] for bits in range(0, 1 << len(lengths), 2)]
    assert cost(lengths, cheapest_cuts(whole(lengths))) == min(cost(lengths, cuts) for cuts in every)


@OFTEN
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 300)), min_size=1, max_size=6))
def test_cuts_are_the_best_where_rows_ask_from_their_middle_on(drawn: list[tuple[int, int]]) -> None:
    spans = sorted((begin, begin + n) for begin, n in drawn)

    def cells(part: list[tuple[int, int]]) -> int:
        width = max(end for _, end in part)
        return len(part) * width * (width - min(begin for begin, _ in part)) + CALL_COST

    every = [[i for i in range(1, len(spans)) if bits >> i & 1] + [len(spans)] for bits in range(0, 1 << len(spans), 2)]
    of = lambda cuts: sum(cells(spans[a:b]) for a, b in pairwise([0, *cuts]))
    assert of(cheapest_cuts(spans)) == min(map(of, every))


def test_like_lengths_share_a_bucket_and_unlike_ones_do_not() -> None:
    assert cheapest_cuts(whole([5, 5, 6])) == [3]
    assert cheapest_cuts(whole([5, 5, 500])) == [2, 3]


@OFTEN
@given(LENGTHS, st.integers(0, 3))
def test_layout(lengths: list[int], first: int) -> None:
    """Buckets are spans of the tokens in order of row length; each token has one cell; positions count within rows."""
    lay = layout(tuple(lengths), first, CPU)
    assert lay.positions.tolist() == [[first + i for n in lengths for i in range(n)]]
    assert lay.bounds.tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    assert bounds_of(tuple(lengths), 3, CPU).tolist() == [sum(lengths[:i]) + 3 * i for i in range(len(lengths) + 1)]
    tokens = torch.arange(sum(lengths))
    ordered = tokens if lay.order is None else tokens[lay.order]
    assert (lay.order is None) == (lengths == sorted(lengths))
    assert torch.equal(tokens, ordered if lay.back is None else ordered[lay.back])
    keys = [bucket.keys for bucket in lay.buckets]
    assert keys == [bucket.queries for bucket in lay.buckets]
    assert [of.start for of in keys] == [0, *(of.stop for of in keys[:-1])]
    assert keys[-1].stop == sum(lengths)
    rows = sorted(lengths)
    for bucket in keys:
        mine, rows = rows[: bucket.rows], rows[bucket.rows :]
        assert bucket.width == max(mine)
        assert bucket.stop - bucket.start == sum(mine)
        cells = list(range(bucket.rows * bucket.width)) if bucket.spots is None else bucket.spots.tolist()
        assert cells == [i * bucket.width + j for i, n in enumerate(mine) for j in range(n)]
    assert not rows


# ------------------------------------------------------------------------------------------------ kernels


@dataclass(frozen=True)
class Case:
    """One attention: row lengths, what is asked of it, and its inputs, each (1, heads, N, d)."""

    lengths: tuple[int, ...]
    rules: Rules
    query: Tensor
    key: Tensor
    value: Tensor
    prefix: tuple[Tensor, Tensor] | None

    def to(self, dtype: torch.dtype) -> Case:
        prefix = None if self.prefix is None else tuple(x.to(dtype) for x in self.prefix)
        return replace(self, query=self.query.to(dtype), key=self.key.to(dtype), value=self.value.to(dtype), prefix=prefix)


def case(lengths: list[int], causal: bool = False, window: int = 0, groups: int = 1, softcap: float | None = None, rows: int = 0, dim: int = 4) -> Case:
    generator = torch.Generator().manual_seed(len(lengths) * 100 + sum(lengths))
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    n, kv = sum(lengths), 2
    prefix = (draw(rows, kv, dim), draw(rows, kv, dim)) if rows else None
    rules = Rules(0.7, causal, window, softcap, 0.0)
    return Case(tuple(lengths), rules, draw(1, kv * groups, n, dim), draw(1, kv, n, dim), draw(1, kv, n, dim), prefix)


def naive(c: Case) -> Tensor:
    """(1, N, H, d): row by row, head by head, query by query, over the keys that it may see."""
    rules, groups, out = c.rules, c.query.shape[1] // c.key.shape[1], []
    for start, n in zip([sum(c.lengths[:i]) for i in range(len(c.lengths))], c.lengths, strict=True):
        for i in range(n):
            seen = [j for j in range(n) if (not rules.causal or j <= i) and (not rules.window or abs(i - j) < rules.window)]
            heads = []
            for h in range(c.query.shape[1]):
                k, v = (x[0, h // groups, [start + j for j in seen]] for x in (c.key, c.value))
                if c.prefix is not None:
                    k, v = torch.cat([c.prefix[0][:, h // groups], k]), torch.cat([c.prefix[1][:, h // groups], v])
                scores = k @ c.query[0, h, start + i] * rules.scale
                scores = scores if rules.softcap is None else rules.softcap * torch.tanh(scores / rules.softcap)
                heads.append(scores.softmax(-1) @ v)
            out.append(torch.stack(heads))
    return torch.stack(out)[None]


def run(c: Case, kernel: str) -> Tensor:
    return packed(c.query, c.key, c.value, Room(layout(c.lengths, 0, c.query.device), None, kernel), c.rules, c.prefix)


KERNEL = pytest.mark.parametrize("kernel", KERNELS)


@KERNEL
@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=6),
    st.booleans(),
    st.sampled_from([0, 1, 3, 20]),
    st.sampled_from([1, 3]),
    st.sampled_from([None, 0.8]),
    st.sampled_from([0, 2]),
)
def test_kernels_equal_naive(kernel: str, lengths: list[int], causal: bool, window: int, groups: int, softcap: float | None, rows: int) -> None:
    c = case(lengths, causal, window, groups, softcap, rows)
    wanted = naive(c)
    torch.testing.assert_close(run(c, kernel), wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(run(c.to(torch.float32), kernel).double(), wanted, rtol=0, atol=2e-6)


@KERNEL
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [0, 5])
def test_several_buckets(kernel: str, causal: bool, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths so unlike that each distinct one has a bucket of its own, in no order."""
    monkeypatch.setattr("tunesmith.networks.layout.CALL_COST", 0)
    layout.cache_clear()
    c = case([9, 2, 14, 2, 9, 30], causal, window, groups=2)
    assert [b.keys.rows for b in layout(c.lengths, 0, CPU).buckets] == [2, 2, 1, 1]
    torch.testing.assert_close(run(c, kernel), naive(c), rtol=0, atol=1e-12)
    layout.cache_clear()


@KERNEL
@pytest.mark.parametrize(("causal", "window", "softcap", "rows"), [(False, 0, None, 0), (True, 2, None, 2), (False, 2, 0.8, 0), (True, 0, 0.8, 1)])
def test_gradients_are_finite_differences(kernel: str, causal: bool, window: int, softcap: float | None, rows: int) -> None:
    c = case([3, 1, 4], causal, window, groups=2, softcap=softcap, rows=rows, dim=2)
    inputs = [x.requires_grad_() for x in (c.query, c.key, c.value, *(c.prefix or ()))]

    def again(query: Tensor, key: Tensor, value: Tensor, *prefix: Tensor) -> Tensor:
        return run(replace(c, query=query, key=key, value=value, prefix=prefix or None), kernel)

    assert torch.autograd.gradcheck(again, inputs)


@KERNEL
@torch.no_grad()
def test_dropout_is_unbiased(kernel: str) -> None:
    """The mean over many draws is the attention without dropout, and draws differ."""
    c = case([4, 7], causal=True).to(torch.float32)
    wet = replace(c, rules=replace(c.rules, dropout=0.3))
    torch.manual_seed(0)
    drawn = torch.stack([run(wet, kernel) for _ in range(4000)])
    assert not torch.equal(drawn[0], drawn[1])
    error = drawn.std(0) / 4000**0.5
    assert ((drawn.mean(0) - run(c, kernel)).abs() <= 5 * error + 1e-6).all()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_word_dropout(p: float, dtype: torch.dtype) -> None:
    """Zero or x / (1 - p), zero with probability p; the gradient has the same mask; the draw follows torch's seed."""
    x = torch.full((401, 503), 2.0, dtype=dtype, requires_grad=True)
    torch.manual_seed(0)
    y = dropout(x, p)
    y.sum().backward()
    kept = y != 0
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 2 / (1 - p)), rtol=1e-2, atol=0)
    torch.testing.assert_close(x.grad, y.detach() / 2)
    assert abs(kept.double().mean().item() - (1 - p)) < 5 * (p * (1 - p) / x.numel()) ** 0.5
    columns = kept.double().mean(0)
    assert (columns - (1 - p)).abs().max().item() < 6 * (p * (1 - p) / len(x)) ** 0.5
    torch.manual_seed(0)
    assert torch.equal(dropout(x, p), y)
    assert not torch.equal(dropout(x, p), y)


# ------------------------------------------------------------------------------------------------ scatter and gather


def test_scatter_and_gather() -> None:
    spots = torch.tensor([5, 0, 3])
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    wide = Scatter.apply(x, spots, 7)
    assert torch.equal(wide[spots], x)
    assert not wide[[1, 2, 4, 6]].any()
    assert torch.equal(Gather.apply(wide, spots), x)
    assert torch.autograd.gradcheck(lambda x: Scatter.apply(x, spots, 7), x)
    assert torch.autograd.gradcheck(lambda x: Gather.apply(x, spots), torch.randn(7, 2, dtype=torch.float64, requires_grad=True))


# ------------------------------------------------------------------------------------------------ padded, and the choice


@torch.no_grad()
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("softcap", [None, 0.8])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("rows", [0, 2])
def test_padded_equals_naive(groups: int, softcap: float | None, causal: bool, rows: int) -> None:
    """The path for classes that hand in masks: rows behind each other in a batch, boolean or additive masks."""
    lengths = [6, 3]
    c = case(lengths, causal, groups=groups, softcap=softcap, rows=rows)
    wide = [torch.stack([nn.functional.pad(part, (0, 0, 0, 6 - part.shape[1])) for part in x[0].split(lengths, 1)]) for x in (c.query, c.key, c.value)]
    real = torch.arange(6)[None] < torch.tensor(lengths)[:, None]
    mask = real[:, None, None].expand(-1, -1, 6, -1)
    mask = mask & torch.ones(6, 6, dtype=torch.bool).tril() if causal else mask
    additive = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, torch.finfo(torch.float64).min)
    for given_mask in (mask, additive):
        out = padded(*wide, given_mask, None, c.rules, c.prefix).transpose(1, 2)
        torch.testing.assert_close(out[real], naive(c)[0], rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("rows", [0, 2])
def test_a_bias_is_added_to_the_scores(rows: int) -> None:
    """T5's, by head; the prefix has none."""
    c = case([6], rows=rows)
    bias = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    k, v = (x[0] if c.prefix is None else torch.cat([p.transpose(0, 1), x[0]], 1) for x, p in zip((c.key, c.value), c.prefix or (c.key, c.value), strict=True))
    scores = c.query[0] @ k.mT * c.rules.scale + nn.functional.pad(bias[0], (rows, 0))
    out = padded(c.query, c.key, c.value, torch.ones(1, 1, 6, 6, dtype=torch.bool), bias, c.rules, c.prefix)
    torch.testing.assert_close(out[0], scores.softmax(-1) @ v, rtol=0, atol=1e-12)


@torch.no_grad()
def test_causal_rows_without_a_mask() -> None:
    """A lone row needs no mask to be causal; one query over many keys sees them all."""
    c = case([6], causal=True)
    torch.testing.assert_close(padded(c.query, c.key, c.value, None, None, c.rules, None).transpose(1, 2), naive(c), rtol=0, atol=1e-12)
    last = padded(c.query[:, :, -1:], c.key, c.value, None, None, c.rules, None).transpose(1, 2)
    torch.testing.assert_close(last, naive(c)[:, -1:], rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_function_that_transformers_calls() -> None:
    """Packed where its seat has a layout, with its own layer of the prefix; padded without one; keys are told to who listens."""
    c = case([4, 2], causal=True, rows=3)
    module, room = nn.Module(), Room(layout(c.lengths, 0, CPU))
    room.prefix = torch.stack([torch.zeros(3, 2, 4).double(), torch.zeros(3, 2, 4).double(), *c.prefix])
    module.seat = Seat(room, 1)
    call = partial(attention.attention, module, c.query, c.key, c.value, None, scaling=0.7, is_causal=True)
    with packed_masks():
        torch.testing.assert_close(call()[0], naive(c), rtol=0, atol=1e-12)
        room.prefix = None
        room.heard = []
        torch.testing.assert_close(call()[0], naive(replace(c, prefix=None)), rtol=0, atol=1e-12)
    assert len(room.heard) == 1
    assert room.heard[0].key is c.key
    room.layout = None
    torch.testing.assert_close(call()[0], naive(replace(c, lengths=(6,), prefix=None)), rtol=0, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="variable-length attention needs CUDA")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("window", "rows"), [(0, 0), (5, 0), (0, 3), (5, 3)])
@pytest.mark.parametrize("groups", [1, 2])
def test_varlen_equals_naive(causal: bool, window: int, rows: int, groups: int) -> None:
    """And so do its gradients, of the prefix too. Scores are rounded to bf16, so they are kept as small as models have them."""
    c = case([9, 2, 30], causal, window, groups, rows=rows, dim=16).to(torch.bfloat16)
    c = replace(c, rules=replace(c.rules, scale=0.3))
    exact, rounded = [[x.to(where).requires_grad_() for x in (c.query, c.key, c.value, *(c.prefix or ()))] for where in (torch.float64, "cuda")]
    again = lambda x: replace(c, query=x[0], key=x[1], value=x[2], prefix=tuple(x[3:]) or None)
    room = Room(layout(c.lengths, 0, rounded[0].device), None, "varlen")
    outs = naive(again(exact)), packed(*rounded[:3], room, c.rules, again(rounded).prefix)
    torch.testing.assert_close(outs[1].cpu().double(), outs[0], rtol=0, atol=5e-2)
    for out in outs:
        (out * torch.linspace(-1, 1, out.numel(), device=out.device, dtype=out.dtype).view_as(out)).sum().backward()
    for a, b in zip(exact, rounded, strict=True):
        torch.testing.assert_close(b.grad.cpu().double(), a.grad, rtol=0, atol=5e-2 * float(a.grad.abs().max()))
