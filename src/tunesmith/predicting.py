"""What a tuned network says of what it is asked, in the task's own words: one function a kind of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .embedding import predict_vectors
from .evaluate.metrics import spans
from .networks.decode import Sampling, generate
from .networks.transformer import Transformer
from .prompting.asking import answers
from .ranking import predict_reward
from .sources.table import Table
from .sources.text.encode import Reader
from .sources.text.examples import Classified, Scored, Tagged, Turn
from .sources.text.tags import cut
from .sources.text.task import Task
from .sources.text.template import Template

if TYPE_CHECKING:
    from .artifact import Tuned


def classified(texts: Sequence[Any]) -> list[Classified]:
    return [Classified(t, None, (), i) if isinstance(t, str) else Classified(t[0], t[1], (), i) for i, t in enumerate(texts)]


@torch.no_grad()
def outputs(tuned: Tuned, texts: Sequence[Any], batch: int) -> list[torch.Tensor]:
    """(C,) a text, in order."""
    rows = [Scored(e.text, e.pair, 0.0, e.row) for e in classified(texts)]
    table = Table(tuned.reader.encode(rows, Task("score", "score")).columns, tuned.task.key, device=tuned.net.device)
    found: dict[int, torch.Tensor] = {}
    for b in table.once(tokens=batch):
        found |= zip(b["row"].tolist(), tuned.net.logits(b).float().cpu(), strict=True)
    return [found[i] for i in range(len(texts))]


def predict_single(tuned: Tuned, texts: Sequence[Any], sampling: Sampling, batch: int) -> list[dict[str, Any]]:
    share = [row.softmax(-1) for row in outputs(tuned, texts, batch)]
    return [{"label": tuned.task.labels[int(p.argmax())], "probability": round(float(p.max()), 4)} for p in share]


def predict_multi(tuned: Tuned, texts: Sequence[Any], sampling: Sampling, batch: int) -> list[dict[str, Any]]:
    share = [row.sigmoid() for row in outputs(tuned, texts, batch)]
    return [{"labels": [n for n, v in zip(tuned.task.labels, p.tolist(), strict=True) if v > 0.5]} for p in share]


def predict_score(tuned: Tuned, texts: Sequence[Any], sampling: Sampling, batch: int) -> list[dict[str, Any]]:
    return [{"score": float(row[0])} for row in outputs(tuned, texts, batch)]


@torch.no_grad()
def predict_tags(tuned: Tuned, texts: Sequence[str], sampling: Sampling, batch: int) -> list[dict[str, Any]]:
    """Entities with character offsets into the text."""
    places = [cut(t) for t in texts]
    rows = [words(t, p, i) for i, (t, p) in enumerate(zip(texts, places, strict=True))]
    encoded = tuned.reader.encode(rows, tuned.task)
    table = Table(encoded.columns, tuned.task.key, device=tuned.net.device)
    found: list[dict[str, Any]] = [{"entities": []} for _ in texts]
    for b in table.once(tokens=batch):
        parts = tuned.net.logits(b).argmax(-1).split(list(b.ragged("at").lengths))
        for row, labels, at in zip(b["row"].tolist(), parts, b.ragged("word").rows(), strict=True):
            i = encoded.kept[row].row
            tags = {w: tuned.task.labels[k] for w, k in zip(at.tolist(), labels.tolist(), strict=True)}
            found[i] = {"entities": entities(texts[i], places[i], tags)}
    return found


def words(text: str, places: Sequence[tuple[int, int]], row: int) -> Tagged:
    spaces = [i + 1 < len(places) and places[i + 1][0] > end for i, (_, end) in enumerate(places)]
    return Tagged(tuple(text[a:b] for a, b in places), ("O",) * len(places), tuple(spaces), row)


def entities(text: Any, places: Sequence[tuple[int, int]], tags: Mapping[int, str]) -> list[dict[str, Any]]:
    row = [tags.get(i, "O") for i in range(len(places))]
    return [{"label": kind, "start": places[a][0], "end": places[b - 1][1], "text": text[places[a][0] : places[b - 1][1]]} for kind, a, b in spans(row)]


def predict_text(tuned: Tuned, texts: Sequence[Any], sampling: Sampling, batch: int) -> list[dict[str, Any]]:
    return [{"text": t} for t in write(tuned.net, tuned.reader, [turns(t) for t in texts], sampling)]


def turns(asked: Any) -> tuple[Turn, ...]:
    """A prompt, or a list of messages."""
    return (Turn("user", asked, False),) if isinstance(asked, str) else tuple(Turn(m["role"], m["content"], False) for m in asked)


def write(net: Transformer, reader: Reader, asked: Sequence[Sequence[Turn]], sampling: Sampling) -> list[str]:
    """What the model answers to each dialogue. The end of the text stays within the model's positions."""
    tokenizer = reader.tokenizer
    room = max(1, (net.anatomy.positions or 1 << 20) - sampling.max_new_tokens)
    ids = [prompt_ids(reader, t, room) for t in asked]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    new = generate(net, ids, sampling, eos=tokenizer.eos_token_id, pad=pad)
    return [tokenizer.decode(row, skip_special_tokens=True).strip() for row in new]


def prompt_ids(reader: Reader, asked: Sequence[Turn], room: int) -> list[int]:
    """What stands before the answer to these turns; of a long one, the last `room` tokens."""
    template = Template.of(reader.tokenizer, "plain" if reader.seq2seq else reader.template)
    text = template.asked(asked).strip() if reader.seq2seq else template.asked(asked)
    return reader.tokenizer(text, add_special_tokens=reader.seq2seq or template.special(text), verbose=False)["input_ids"][-room:]


PREDICT: dict[str, Callable[[Tuned, Sequence[Any], Sampling, int], list[dict[str, Any]]]] = {
    "single": predict_single,
    "cloze": lambda tuned, texts, sampling, batch: answers(tuned, classified(texts)),
    "multi": predict_multi,
    "score": predict_score,
    "tag": predict_tags,
    "reward": predict_reward,
    **dict.fromkeys(("generate", "preferred", "judged"), predict_text),
    **dict.fromkeys(("pairs", "similar", "grouped", "texts"), predict_vectors),
}
