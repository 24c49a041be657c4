"""A network that embeds, by name: a published model or a finished run; and what it makes of the rows of another run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .artifact import describe, load
from .core import Batch, Delta, Network, Objective
from .dataset import Dataset
from .embedding import vectors
from .errors import Refusal
from .networks.blank import bytes_of
from .networks.load import Origin, load_config, load_network, load_tokenizer, origin
from .networks.transformer import Transformer
from .recipe import Recipe
from .sources.enriched import Enriched
from .sources.table import Table
from .sources.text.encode import Reader
from .sources.text.examples import Related
from .sources.witness import Witness

if TYPE_CHECKING:
    from .job import Setting

LENGTH = 256  # tokens of a text, at most


@dataclass(frozen=True)
class Embedder:
    """At rest; `reader` has the prompts of its own training."""

    net: Transformer
    reader: Reader

    def of(self, texts: Sequence[str], role: str) -> Tensor:
        """(n, D): unit vectors of texts that play this role (anchor, positive, text)."""
        return vectors(self.net, self.reader, texts, role if role in self.reader.prompts else "text")

    def of_rows(self, examples: Sequence[Related]) -> Tensor:
        """(n, D) for the texts of these examples, in their order."""
        flat = [(side, text) for e in examples for side, text in enumerate(e.texts)]
        made = torch.empty(len(flat), self.net.anatomy.width)
        for role, rows in {"anchor": [i for i, (s, _) in enumerate(flat) if s == 0], "positive": [i for i, (s, _) in enumerate(flat) if s]}.items():
            if rows:
                made[rows] = self.of([flat[i][1] for i in rows], role)
        return made


def source_of(name: str) -> Origin:
    """What is loaded for an embedder of this name: the folder of a run, or a model (hub id, folder or minilm). Raises Refusal where that is none, before a weight is."""
    if not (Path(name) / "artifact").is_dir():
        source = origin(name)
        load_config(source)
        return source
    about = describe(name)
    if about.task["name"] != "embed":
        raise Refusal(f"{name} was trained for `task: {about.task['name']}`", where="model", fix="a run of task: embed, or a model")
    return about.base


def embedder(name: str, device: torch.device | str = "cpu") -> Embedder:
    """Raises Refusal as `source_of`."""
    source = source_of(name)
    if (Path(name) / "artifact").is_dir():
        tuned = load(name, device=str(device))
        return Embedder(tuned.net, tuned.reader)
    tokenizer, config = load_tokenizer(source), load_config(source)
    limits = (getattr(config, "max_position_embeddings", None), tokenizer.model_max_length, LENGTH)
    net = load_network(source, generates=False, device=device, tokenizer=tokenizer)
    return Embedder(net, Reader(tokenizer, min(n for n in limits if n)))


def embedded_by_base(delta: Delta, net: Network, batch: Batch) -> Tensor:
    """(B, D): what the network makes of rows without its delta."""
    with delta.absent(cast=True):
        return net.pooled(batch)


def guidable(recipe: Recipe, data: Dataset, learn: Objective) -> None:
    """Raises Refusal where there is no such guide."""
    if (name := recipe.objective["guide"]) != "base":
        source_of(name)


def guide_weighs(recipe: Recipe, data: Dataset, learn: Objective) -> tuple[int, int]:
    """Bytes of the guide's weights, which are in memory while it is asked."""
    return (0 if (name := recipe.objective["guide"]) == "base" else bytes_of(source_of(name), generates=False)), 0


def guided(source: Table | Enriched, setting: Setting) -> Witness:
    """guide (B, D): what the base, or another model, makes of each text; asked once, and let go."""
    name, told = setting.recipe.objective["guide"], setting.told("guide, once")
    if name == "base":
        return Witness(source, "guide", partial(embedded_by_base, setting.delta), told=told)

    said = cache(lambda: embedder(name, setting.net.device).of_rows(setting.data.train.examples))  # type: ignore[arg-type]
    return Witness(source, "guide", lambda net, batch: said()[batch["row"].cpu()].to(batch["row"].device), told=told)
