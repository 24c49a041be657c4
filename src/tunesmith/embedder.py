"""A network that embeds, by name: a published model or a finished run; and what it makes of the rows of another run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .artifact import load
from .core import Batch, Delta, Network
from .embedding import vectors
from .errors import Refusal
from .networks.load import load_config, load_network, load_tokenizer, origin
from .networks.transformer import Transformer
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

    def of_rows(self, examples: Sequence[Related]) -> Callable[[Network, Batch], Tensor]:
        """(B, D) for the rows of a batch, which are the texts of these examples in their order; all are read when the first is asked for."""
        flat = [(side, text) for e in examples for side, text in enumerate(e.texts)]
        store: list[Tensor] = []

        def ask(net: Network, batch: Batch) -> Tensor:
            if not store:
                made = torch.empty(len(flat), self.net.anatomy.width)
                for role, rows in {"anchor": [i for i, (s, _) in enumerate(flat) if s == 0], "positive": [i for i, (s, _) in enumerate(flat) if s]}.items():
                    if rows:
                        made[rows] = self.of([flat[i][1] for i in rows], role)
                store.append(made)
            return store[0][batch["row"].cpu()].to(batch["row"].device)

        return ask


def embedder(name: str, device: torch.device | str = "cpu") -> Embedder:
    """`name` is the folder of a run, or a model: hub id, folder or minilm."""
    if (Path(name) / "artifact").is_dir():
        tuned = load(name, device=str(device))
        if tuned.task.name != "embed":
            raise Refusal(f"{name} was trained for `task: {tuned.task.name}`", where="model", fix="a run of task: embed, or a model")
        return Embedder(tuned.net, tuned.reader)
    source = origin(name)
    tokenizer, config = load_tokenizer(source), load_config(source)
    limits = (getattr(config, "max_position_embeddings", None), tokenizer.model_max_length, LENGTH)
    net = load_network(source, generates=False, device=device, tokenizer=tokenizer)
    return Embedder(net, Reader(tokenizer, min(n for n in limits if n)))


def embedded_by_base(delta: Delta, net: Network, batch: Batch) -> Tensor:
    """(B, D): what the network makes of rows without its delta."""
    with delta.absent(cast=True):
        return net.pooled(batch)


def guided(source: Table | Enriched, setting: Setting) -> Witness:
    """guide (B, D): what the base, or another model, makes of each text; asked once."""
    name, told = setting.recipe.objective["guide"], setting.told("guide, once")
    if name == "base":
        return Witness(source, "guide", partial(embedded_by_base, setting.delta), told=told)
    return Witness(source, "guide", embedder(name, setting.net.device).of_rows(setting.data.train.examples), told=told)  # type: ignore[arg-type]
