"""How the rows of a recipe are asked about: its reader, with the words that it begins with. Loads no weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from ..errors import Refusal
from ..networks.load import Origin, kind_of, load_config, mute, voiced
from ..recipe import Recipe
from ..sources.text.encode import Reader
from ..sources.text.examples import Classified
from ..sources.text.task import Task
from ..sources.text.wording import Shot, Wording, suits, wording_of
from .offer import offered

if TYPE_CHECKING:
    from ..embedder import Embedder


def worded(reader: Reader, recipe: Recipe, task: Task, source: Origin, examples: Sequence[Any]) -> Reader:
    """Raises Refusal where the model has no vocabulary to ask, or the words do not go with the rows. `examples` are the training rows."""
    config = load_config(source)
    if why := silent(config, reader.tokenizer):
        raise why
    masked = kind_of(config) == "encoder"
    offer = offered(recipe, task, examples, masked)
    for template in offer.templates:
        suits(replace(offer.rest, template=template), examples[0], masked)
    if offer.rest.chat and not reader.tokenizer.chat_template:
        raise Refusal("`chat: true`, and this tokenizer has no chat template", where="objective.chat", fix="leave it out")
    return asking(replace(reader, masked=masked), offer.wording(offer.first))


def silent(config: Any, tokenizer: Any) -> Refusal | None:
    """Why a model cannot be asked in words, if it cannot."""
    kind = kind_of(config)
    if kind == "seq2seq":
        return Refusal(
            "label words are read off masked models and decoders, and this is an encoder-decoder",
            where="model",
            fix="a masked language model or a decoder; or task: generate",
        )
    if kind == "encoder" and not voiced(config.architectures):
        return mute(config)
    if kind == "encoder" and tokenizer.mask_token is None:
        return Refusal("the tokenizer has no mask", where="model", fix="a masked language model that was published with its tokenizer")
    return None


def asking(reader: Reader, wording: Wording, device: torch.device | str = "cpu") -> Reader:
    """The reader that asks in these words."""
    return replace(reader, wording=wording, near=nearest(wording, device) if wording.pool else None)


def from_plain(tokenizer: Any, plain: Mapping[str, Any], device: torch.device | str = "cpu") -> Reader:
    """A reader as an artifact describes it."""
    reader = Reader(tokenizer, **{k: v for k, v in plain.items() if k != "wording"})
    return asking(reader, wording_of(plain["wording"]), device) if plain.get("wording") else reader


def nearest(wording: Wording, device: torch.device | str) -> Callable[[Sequence[Classified]], list[tuple[Shot, ...]]]:
    """For each row, the demonstrations whose texts are nearest to its own by cosine; the row itself is never one. Nothing is embedded until the first row asks."""

    def find(examples: Sequence[Classified]) -> list[tuple[Shot, ...]]:
        pool, asked = (
            embedded(wording.embedder, str(device), tuple(joined(text, pair) for text, pair in texts))
            for texts in ([shot[:2] for shot in wording.pool], [(e.text, e.pair) for e in examples])
        )
        order = (asked @ pool.T).sort(dim=-1, descending=True, stable=True).indices.tolist()
        return [chosen(wording, e, row) for e, row in zip(examples, order, strict=True)]

    return find


@lru_cache(maxsize=8)
def embedded(name: str, device: str, texts: tuple[str, ...]) -> torch.Tensor:
    """(n, D). Kept, because a search asks about the same texts for every candidate."""
    return loaded(name, device).of(texts, "text")


@lru_cache(maxsize=1)
def loaded(name: str, device: str) -> Embedder:
    from ..embedder import embedder  # loads artifacts, which read through this file

    return embedder(name, device)


def chosen(wording: Wording, example: Classified, order: Sequence[int]) -> tuple[Shot, ...]:
    others = (shot for shot in map(wording.pool.__getitem__, order) if shot[:2] != (example.text, example.pair))
    near = tuple(shot for shot, _ in zip(others, range(wording.nearest), strict=False))
    return near if wording.reverse else near[::-1]


def joined(text: str, pair: str | None) -> str:
    return text if pair is None else f"{text}\n{pair}"
