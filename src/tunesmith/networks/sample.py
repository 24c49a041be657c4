"""Writing many samples at once, for learning from them: a prompt is read once for all its samples, who stops makes room for the next, and a
turn may be answered by what is not the policy. Tokens are drawn from softmax(logits / temperature) and nothing else, so that they can be scored.

Rows lie in slots (memory.py); a pass takes one token of each, laid end to end as in training, so every class that runs packed runs here. Others
write through transformers' own `generate`. What the policy wrote is what was drawn here; it is never looked for in the ids.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import repeat

import torch
import transformers as hf
from torch import Tensor

from ..core import Batch, Ragged
from .attention import packed_masks
from .decode import Sampling, one_batch, prefixed
from .memory import Memory
from .transformer import Transformer
from .vocabulary import heated, logits_of

Answer = Callable[[int, list[int], bool], list[int] | None]  # (sample, its turn, whether it ended it itself) -> what it reads next; None: it is done


@dataclass(frozen=True)
class Draw:
    """length: tokens a turn at most; total: tokens of a row at most, what it read included; slots: rows at a time. temperature 0 is greedy."""

    length: int
    temperature: float = 1.0
    eos: frozenset[int] = frozenset()
    pad: int = 0
    total: int = 1 << 30
    slots: int = 64


@dataclass
class Sample:
    """`ids` is all that was read and written; the policy chose the token after each position in `at`, with log-probability `logp` there.

    ended   the last turn came to its end by itself, by an end-of-text token, not by a limit
    """

    index: int
    ids: list[int]
    seed: int
    at: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    ended: bool = False
    begun: int = 0  # how many of `at` belong to earlier turns
    read: int = 0  # how many of `ids` the network has read
    dice: list[float] = field(default_factory=list)

    @property
    def written(self) -> list[int]:
        return [self.ids[t + 1] for t in self.at]

    def roll(self) -> float:
        """The next number in [0, 1): a function of the seed and of how many came before, whoever shares the batch."""
        n = len(self.at)
        if n >= len(self.dice):
            many = max(64, 2 * n)
            self.dice = torch.rand(many, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64).tolist()
        return self.dice[n]

    def take(self, token: int, logp: float) -> None:
        self.at.append(len(self.ids) - 1)
        self.ids.append(token)
        self.logp.append(logp)

    def goes_on(self, draw: Draw, answer: Answer | None) -> bool:
        """After a token: whether there is more to read or to write."""
        self.ended = self.ids[-1] in draw.eos
        full = len(self.ids) >= draw.total
        if not (self.ended or full or len(self.at) - self.begun >= draw.length):
            return True
        turn, self.begun = self.written[self.begun :], len(self.at)
        more = answer(self.index, turn, self.ended) if answer else None
        if more is None or len(self.ids) + len(more) >= draw.total:
            return False
        self.ids += more
        return True


@torch.no_grad()
def sample(net: Transformer, starts: Sequence[Sequence[int]], copies: int, seeds: Sequence[int], draw: Draw, answer: Answer | None = None) -> list[Sample]:
    """`copies` samples of each start, in this order; sample i is drawn by seeds[i]."""
    was = net.training
    net.eval()
    rows = rows_of(starts, copies, seeds)
    with net.precision():
        (slots if net.packs else generated)(net, rows, copies, draw, answer)
    net.train(was)
    return rows


def rows_of(starts: Sequence[Sequence[int]], copies: int, seeds: Sequence[int]) -> list[Sample]:
    return [Sample(i, list(starts[i // copies]), seeds[i]) for i in range(len(starts) * copies)]


Writer = Callable[[Transformer, Sequence[Sequence[int]], int, Sequence[int], Draw, Answer | None], list[Sample]]  # `sample`, and who writes in its place

# ------------------------------------------------------------------------------------------------ in slots


def slots(net: Transformer, rows: Sequence[Sample], copies: int, draw: Draw, answer: Answer | None) -> None:
    """Long prompts first, so that the memory is large enough from the beginning. A slot without a row repeats itself unseen."""
    waiting = deque(sorted((rows[i : i + copies] for i in range(0, len(rows), copies)), key=lambda group: -len(group[0].ids)))
    desk = Desk(net, draw, min(len(rows), max(draw.slots, copies)))
    while waiting or any(desk.seats):
        free = desk.free()
        if waiting and len(free) >= copies and (4 * len(free) >= len(desk.seats) or not any(desk.seats)):
            groups = [waiting.popleft() for _ in range(min(len(waiting), len(free) // copies))]
            desk.leave(desk.seated(groups), desk.welcome(groups), answer)
        elif not waiting and len(free) > len(desk.seats) // 4:
            desk.shrink()
        else:
            desk.leave(range(len(desk.seats)), desk.read(), answer)


class Desk:
    """Rows in their slots, the memory of what they have said, and the pass that takes all of them one token on."""

    def __init__(self, net: Transformer, draw: Draw, seats: int):
        self.net, self.draw = net, draw
        self.seats: list[Sample | None] = [None] * seats
        self.memory: Memory | None = None
        self.before = 0  # positions of the prompt and the prefix

    def free(self) -> list[int]:
        return [s for s, row in enumerate(self.seats) if row is None]

    def seated(self, groups: Sequence[Sequence[Sample]]) -> list[int]:
        """Take seats; returns them in the order of the samples."""
        taken = self.free()[: sum(len(g) for g in groups)]
        for s, row in zip(taken, (row for g in groups for row in g), strict=True):
            self.seats[s] = row
        return taken

    def welcome(self, groups: Sequence[Sequence[Sample]]) -> Tensor:
        """(samples, D): read the prompts, each once, packed; their keys and values move into the seats of all their samples."""
        net, lengths = self.net, tuple(len(g[0].ids) for g in groups)
        net.room.heard = []
        try:
            ids = torch.tensor([t for g in groups for t in g[0].ids], device=net.device)
            states = net.states(Batch({"ids": Ragged(ids, lengths)})).values
        finally:
            sounds, net.room.heard = net.room.heard, None
        heard = [(sound.key, sound.value) for sound in sounds]
        prompt = 0 if (soft := net.prompt_rows()) is None else len(soft)
        wide = [prompt + n for n in lengths]
        if self.memory is None:
            dtype = net.compute if net.compute is not torch.float32 else heard[0][0].dtype
            self.memory = Memory.of(heard, len(self.seats), max(wide) + self.draw.length, dtype, net.room.prefix)
            self.before = prompt + self.memory.fixed
        place = {id(row): s for s, row in enumerate(self.seats) if row is not None}
        self.memory.admit(heard, wide, [[place[id(row)] for row in g] for g in groups])
        for row in (row for g in groups for row in g):
            row.read = len(row.ids)
        last = torch.tensor(lengths).cumsum(0) - 1
        return states[last.repeat_interleave(torch.tensor([len(g) for g in groups])).to(states.device)]

    def read(self) -> Tensor:
        """(slots, D): every row reads its next token."""
        net, memory = self.net, self.memory
        assert memory is not None
        tokens = torch.tensor([row.ids[row.read] if row else 0 for row in self.seats], device=net.device)
        lengths = [self.before + row.read if row else memory.fixed for row in self.seats]
        memory.lengths = torch.tensor(lengths, device=net.device)
        memory.begin(max(lengths))
        places = memory.lengths + net.anatomy.position_offset
        net.room.memory = memory
        try:
            with packed_masks():
                out = net.trunk(input_ids=tokens[None], **net.only(position_ids=places[None], use_cache=False)).last_hidden_state[0]
        finally:
            net.room.memory = None
        for row in self.seats:
            if row:
                row.read += 1
        return out

    def leave(self, slots: Sequence[int], states: Tensor, answer: Answer | None) -> None:
        """Rows that have read all they had draw a token; who is done gives up its seat."""
        at = [i for i, s in enumerate(slots) if (row := self.seats[s]) and row.read == len(row.ids)]
        if not at:
            return
        ready = [self.seats[slots[i]] for i in at]
        logits = logits_of(self.net.voice(states[torch.tensor(at, device=states.device)]), *self.net.vocabulary())
        dice = torch.tensor([row.roll() for row in ready if row], device=logits.device, dtype=torch.float32)
        tokens, logp = (x.tolist() for x in choose(logits, self.draw.temperature, dice))
        for i, row, token, p in zip(at, ready, tokens, logp, strict=True):
            assert row
            row.take(token, p)
            if not row.goes_on(self.draw, answer):
                self.seats[slots[i]] = None

    def shrink(self) -> None:
        kept = [s for s, row in enumerate(self.seats) if row]
        self.seats = [self.seats[s] for s in kept]
        if self.memory and kept:
            self.memory.keep(kept)


def choose(logits: Tensor, temperature: float, dice: Tensor) -> tuple[Tensor, Tensor]:
    """(r,) tokens of softmax(logits / temperature), by the inverse of the distribution function at `dice` in [0, 1); and their log-probabilities."""
    logp = heated(logits, temperature or 1.0).log_softmax(-1)
    if temperature:
        up_to = logp.exp().cumsum(-1)
        token = torch.searchsorted(up_to, dice[:, None] * up_to[:, -1:], right=True).clamp(max=logits.shape[-1] - 1)
    else:
        token = logits.argmax(-1, keepdim=True)
    return token[:, 0], logp.gather(-1, token)[:, 0]


# ------------------------------------------------------------------------------------------------ through transformers


def generated(net: Transformer, rows: Sequence[Sample], copies: int, draw: Draw, answer: Answer | None) -> None:
    """Turn by turn. An encoder-decoder reads its start and writes apart from it, so it has one turn, and its `ids` are only what it read."""
    going = sorted(rows, key=lambda row: len(row.ids))
    seq2seq = net.anatomy.kind == "seq2seq"
    with unbiased(net), prefixed(net):
        while going:
            left: list[Sample] = []
            for start in range(0, len(going), draw.slots):
                some = going[start : start + draw.slots]
                torch.manual_seed(some[0].seed + len(some[0].at))
                sampling = Sampling(draw.length, draw.temperature)
                new = one_batch(net, [row.ids for row in some], sampling, sorted(draw.eos) or None, draw.pad)  # type: ignore[arg-type]
                left += [row for row, tokens in zip(some, new.tolist(), strict=True) if took(row, tokens, None, draw, None if seq2seq else answer)]
            going = left


def took(row: Sample, tokens: Sequence[int], logp: Sequence[float] | None, draw: Draw, answer: Answer | None) -> bool:
    """A turn as another writer hands it out, with its log-probabilities where it has them: what stands behind the first end of text is filler."""
    for token, p in zip(tokens, logp or repeat(float("nan"))):
        row.take(token, p)
        if token in draw.eos or len(row.ids) >= draw.total:
            break
    return row.goes_on(draw, answer)


@contextmanager
def unbiased(net: Transformer):
    """Without the penalties and bans that a model's own generation settings may ask for: they are not in the distribution that is scored."""
    own = net.model.generation_config
    names = ("bos_token_id", "decoder_start_token_id")
    net.model.generation_config = hf.GenerationConfig(**{n: getattr(own, n) for n in names if getattr(own, n, None) is not None})
    try:
        yield
    finally:
        net.model.generation_config = own
