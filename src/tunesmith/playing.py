"""What a policy does with a prompt: it answers, and a reward judges the answer; or it plays, turn by turn, and the world answers.

Ids are kept as they were read and drawn; a text is made of them for whoever judges, and never read back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .core import Network
from .dataset import FIRST_SEED, Part
from .environments import Environment, environment
from .errors import Refusal
from .networks.sample import Draw, Sample, Writer
from .networks.transformer import Transformer
from .objectives.reinforce import Reinforce
from .predicting import prompt_ids
from .rewards import Told, reward
from .sources.rollouts import Play, Played
from .sources.text.encode import Reader
from .sources.text.examples import Dialogue, Turn
from .sources.text.template import Template

if TYPE_CHECKING:
    from .job import Setting

SLOTS = {"cpu": 128, "cuda": 512}  # rows that are written at a time


def limits(setting: Setting, learn: Reinforce) -> Draw:
    """How the policy writes. Raises Refusal where a prompt would have no room."""
    net, tokenizer = setting.net, setting.data.reader.tokenizer
    room = (net.anatomy.positions or 1 << 30) - setting.recipe.built_method().positions
    if learn.length >= room:
        raise Refusal(f"answers of {learn.length} tokens, and the model has {room} positions", where="objective.length", fix=f"length: {room // 2}")
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    return Draw(learn.length, learn.temperature, frozenset() if eos is None else frozenset({eos}), pad or 0, room, SLOTS.get(net.device.type, 128))


def seeds(seed: int, samples: int) -> list[int]:
    """One a sample, far from those of the next rollout."""
    return [(seed * 2_654_435_761 + 40_503 * i + 12_345) & 0x7FFF_FFFF_FFFF for i in range(samples)]


def columns(s: Sample, seq2seq: bool) -> dict[str, Sequence[int]]:
    """Decoders: ids, at, label. Encoder-decoders: what was read as ids, what was written as target and label."""
    if seq2seq:
        return {"ids": s.ids[: s.at[0] + 1], "target": s.written, "label": s.written}
    return {"ids": s.ids, "at": s.at, "label": s.written}


# ------------------------------------------------------------------------------------------------ answers


def answers(part: Part, setting: Setting, write: Writer, say: Callable[[str], None]) -> Play:
    """One turn to each row's prompt, by `write`."""
    learn, reader, net = setting.objective, setting.data.reader, setting.net
    assert isinstance(learn, Reinforce)
    draw, judged = limits(setting, learn), reward(learn.reward or "", say)
    starts = [start_of(reader, example, draw.total - draw.length) for example in part.examples]
    seq2seq, examples = net.anatomy.kind == "seq2seq", list(part.examples)

    def play(net: Network, rows: Sequence[int], group: int, seed: int) -> list[Played]:
        assert isinstance(net, Transformer)
        samples = write(net, [starts[i] for i in rows], group, seeds(seed, len(rows) * group), draw, None)
        texts = [reader.tokenizer.decode(s.written, skip_special_tokens=True).strip() for s in samples]
        owners = [i for i in rows for _ in range(group)]
        totals, parts = judged([told(examples[i], i, text, s.ended) for i, text, s in zip(owners, texts, samples, strict=True)])
        return [
            Played(columns(s, seq2seq), [0.0] * (len(s.at) - 1) + [totals[k]], s.logp, s.ended, texts[k], {f"reward.{n}": v[k] for n, v in parts.items()})
            for k, s in enumerate(samples)
        ]

    return play


def start_of(reader: Reader, example: Any, room: int) -> list[int]:
    """The prompt of a dialogue; of plain text, all of it, to go on from."""
    if isinstance(example, Dialogue):
        return prompt_ids(reader, example.turns[:-1], room)
    ids = reader.tokenizer(example.text, verbose=False)["input_ids"]
    return (ids[:-1] if ids[-1:] == [reader.tokenizer.eos_token_id] and len(ids) > 1 else ids)[-room:]


def told(example: Any, row: int, text: str, ended: bool) -> Told:
    if isinstance(example, Dialogue):
        *asked, answer = example.turns
        return Told(asked[-1].content if asked else "", text, answer.content or None, row, ended, tuple(asked))
    return Told(example.text, text, None, row, ended)


# ------------------------------------------------------------------------------------------------ games


def games(part: Part, setting: Setting, write: Writer, say: Callable[[str], None]) -> Play:
    """An episode a sample; row i of a part is the episode of seed i, counted from where the part's seeds begin."""
    learn, reader = setting.objective, setting.data.reader
    assert isinstance(learn, Reinforce) and learn.environment is not None
    draw, make, turns = limits(setting, learn), environment(learn.environment), learn.turns
    first = FIRST_SEED[part.name]
    worlds: list[Environment] = []

    def play(net: Network, rows: Sequence[int], group: int, seed: int) -> list[Played]:
        assert isinstance(net, Transformer)
        worlds.extend(make() for _ in range(len(rows) * group - len(worlds)))  # some take longer to make than to play
        episodes = [Episode(world, reader, first + i, turns) for world, i in zip(worlds, (i for i in rows for _ in range(group)))]
        starts = [episodes[k * group].start[-(draw.total - draw.length) :] for k in range(len(rows))]
        samples = write(net, starts, group, seeds(seed, len(episodes)), draw, lambda i, turn, ended: episodes[i].heard(turn, ended))
        return [e.played(s) for e, s in zip(episodes, samples, strict=True)]

    return play


@dataclass
class Episode:
    """One game, and what each turn of the policy brought."""

    world: Environment
    reader: Reader
    seed: int
    turns: int
    start: list[int] = field(default_factory=list)
    brought: list[tuple[int, float]] = field(default_factory=list)  # tokens and reward of each turn
    over: bool = False
    success: bool = False

    def __post_init__(self) -> None:
        seen, _ = self.world.reset(seed=self.seed)
        self.start = list(seen) if isinstance(seen, list) else prompt_ids(self.reader, (Turn("user", seen, False),), 1 << 30)

    def heard(self, turn: Sequence[int], ended: bool) -> list[int] | None:
        """What the world answers to a turn, as ids; None where the episode is over."""
        seen, reward, terminated, truncated, info = self.world.step(self.reader.tokenizer.decode(turn, skip_special_tokens=True).strip())
        self.brought.append((len(turn), float(reward)))
        self.over, self.success = terminated or truncated, bool(info.get("success", False))
        if self.over or len(self.brought) >= self.turns:
            return None
        return list(seen) if isinstance(seen, list) else between(self.reader, seen, ended)

    def played(self, s: Sample) -> Played:
        scores: list[float] = []
        for tokens, worth in self.brought:
            scores += [0.0] * (tokens - 1) + [worth]
        text = self.reader.tokenizer.decode(s.ids, skip_special_tokens=True)
        return Played(columns(s, False), scores, s.logp, self.over, text, {"success": float(self.success)})


def between(reader: Reader, seen: str, ended: bool) -> list[int]:
    """What stands between two turns of the policy: what closes the first, unless it closed itself, what was seen, and what opens the next."""
    tokenizer = reader.tokenizer
    template = Template.of(tokenizer, reader.template)
    asked = (Turn("user", "u", False),)
    before = template.asked(asked) + "a"
    text = template.asked((*asked, Turn("assistant", "a", False), Turn("user", seen, False))).removeprefix(before)
    if ended and tokenizer.eos_token and text.lstrip().startswith(tokenizer.eos_token):
        text = text.lstrip()[len(tokenizer.eos_token) :]
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
