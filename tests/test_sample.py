"""Own sampling: greedy it writes what transformers' `generate` writes, token for token; drawn it follows the scored distribution; seats are
given up and taken over without a trace; turns are answered and their ids kept."""

from __future__ import annotations

import math

import pytest
import torch

from tiny import DECODERS, network, stir
from tunesmith.core import Batch, Ragged
from tunesmith.methods import METHODS, Prefix, Prompt
from tunesmith.networks.decode import Sampling, generate
from tunesmith.networks.sample import Draw, choose, sample

PROMPTS = [[7, 9, 11], [5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [40], [21, 22, 23, 24, 25], [60, 61]]
SEVEN = [m for m in METHODS if m not in ("peft", "head", "fusion", "mixture", "hard_prompt")]


def tuned(name: str, method: str | None):
    net = network(f"{name}:lm")
    if method:
        options = {"prompt": Prompt(length=3), "prefix": Prefix(length=3)}
        torch.manual_seed(1)
        stir(options.get(method, METHODS[method]()).attach(net).parameters())
    return net


def scored(net, row, temperature: float = 1.0) -> torch.Tensor:
    at = Ragged(torch.tensor(row.at), (len(row.at),))
    batch = Batch({"ids": Ragged(torch.tensor(row.ids), (len(row.ids),)), "at": at, "label": Ragged(torch.tensor(row.written), at.lengths)})
    with torch.no_grad():
        return net.label_logp(batch, temperature)


@pytest.mark.parametrize("slots", [2, 64])
@pytest.mark.parametrize("name", DECODERS)
def test_greedy_it_is_generate(name: str, slots: int) -> None:
    net = network(f"{name}:lm")
    eos = 3
    want = generate(net, PROMPTS, Sampling(20), eos=eos, pad=0)
    rows = sample(net, PROMPTS, 1, range(5), Draw(20, 0.0, frozenset({eos}), slots=slots))
    assert [row.written[:-1] if row.ended else row.written for row in rows] == want
    assert all(row.ended == (row.ids[-1] == eos) for row in rows)


@pytest.mark.parametrize("method", SEVEN)
def test_it_honours_every_method(method: str) -> None:
    net = tuned("llama", method)
    want = generate(net, PROMPTS, Sampling(12), eos=None, pad=0)
    rows = sample(net, PROMPTS, 2, range(10), Draw(12, 0.0, slots=4))
    assert [row.written for row in rows[::2]] == want
    assert [row.written for row in rows[1::2]] == want


@pytest.mark.parametrize("name", ["gpt2", "mistral", "gemma2"])
@pytest.mark.parametrize("method", ["prompt", "prefix", "lora"])
def test_it_honours_them_in_other_families(name: str, method: str) -> None:
    net = tuned(name, method)
    want = generate(net, PROMPTS, Sampling(12), eos=None, pad=0)
    assert [row.written for row in sample(net, PROMPTS, 1, range(5), Draw(12, 0.0, slots=2))] == want


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_what_was_drawn_is_scored_by_the_same_distribution(name: str, temperature: float) -> None:
    net = network(f"{name}:lm")
    rows = sample(net, PROMPTS, 3, range(15), Draw(12, temperature, frozenset({3}), slots=5))
    for row in rows:
        torch.testing.assert_close(torch.tensor(row.logp), scored(net, row, temperature), atol=2e-5, rtol=1e-4)


def test_a_sample_is_a_function_of_its_seed_whoever_shares_the_batch() -> None:
    net = network("llama:lm")
    draw = Draw(16, 1.0, frozenset({3, 4, 5, 6}))
    together = sample(net, PROMPTS, 2, range(10), draw)
    for i, row in enumerate(together):
        alone = sample(net, [PROMPTS[i // 2]], 1, [i], draw)[0]
        assert alone.ids == row.ids
    assert len({len(row.at) for row in together}) > 2, "rows stop at different times"


def test_frequencies_follow_the_distribution() -> None:
    """20,000 draws of one token: chi-squared per cell of five or more."""
    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(0)) * 2
    dice = torch.rand(20_000, generator=torch.Generator().manual_seed(1))
    for temperature in (1.0, 0.5, 2.0):
        tokens, logp = choose(logits.expand(20_000, -1), temperature, dice)
        p = (logits[0] / temperature).softmax(-1)
        torch.testing.assert_close(logp, p.log()[tokens])
        count = torch.bincount(tokens, minlength=30)
        cells = p * 20_000 > 5
        chi = ((count - p * 20_000) ** 2 / (p * 20_000))[cells].sum()
        assert chi < int(cells.sum()) + 4 * math.sqrt(2 * int(cells.sum()))


def test_what_is_impossible_is_never_drawn() -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]]).expand(4, -1)
    tokens, _ = choose(logits, 1.0, torch.tensor([0.0, 0.4999, 0.5, 1 - 2**-24]))
    assert tokens.tolist() == [1, 1, 3, 3]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_turns_are_answered_and_ids_are_kept(name: str) -> None:
    """The transcript is what was read and written, in order; only what was drawn is in `at`; each turn sees all before it."""
    net = network(f"{name}:lm")
    heard: dict[int, list[list[int]]] = {}

    def answer(i: int, turn: list[int], ended: bool) -> list[int] | None:
        heard.setdefault(i, []).append(turn)
        return [50 + i, 51, 52] if len(heard[i]) < 3 else None

    rows = sample(net, PROMPTS, 1, range(5), Draw(4, 1.0, frozenset(range(3, 30)), slots=3), answer)
    for i, row in enumerate(rows):
        assert len(heard[i]) == 3 and [t for turn in heard[i] for t in turn] == row.written
        read = [t for k, t in enumerate(row.ids) if k - 1 not in row.at]
        assert read == PROMPTS[i] + [50 + i, 51, 52] * 2
        torch.testing.assert_close(torch.tensor(row.logp), scored(net, row), atol=2e-5, rtol=1e-4)


def test_a_row_stops_at_its_limit() -> None:
    net = network("llama:lm")
    rows = sample(net, PROMPTS, 1, range(5), Draw(50, 1.0, total=14), lambda i, turn, ended: [9])
    assert all(len(row.ids) <= 14 and not row.ended for row in rows)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_an_encoder_decoder_writes_through_generate(name: str) -> None:
    net = network(f"{name}:lm")
    eos = net.model.config.eos_token_id or 2
    want = generate(net, PROMPTS, Sampling(10), eos=eos, pad=0)
    rows = sample(net, PROMPTS, 1, range(5), Draw(10, 0.0, frozenset({eos})))
    assert [row.written[:-1] if row.ended else row.written for row in rows] == want
