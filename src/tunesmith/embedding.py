"""Texts as unit vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .networks.transformer import Transformer
from .sources.table import Table
from .sources.text.encode import Reader
from .sources.text.tokens import ragged

if TYPE_CHECKING:
    from .artifact import Tuned
    from .networks.decode import Sampling


@torch.no_grad()
def vectors(net: Transformer, reader: Reader, texts: Sequence[str], role: str = "text", tokens: int = 8192) -> Tensor:
    """(n, D) on the CPU, each of length 1. The prompt of this role stands before each text; repeated texts are read once. The network is at rest."""
    whole = [reader.prompts.get(role, "") + text for text in texts]
    index = {text: i for i, text in enumerate(dict.fromkeys(whole))}
    table = Table({"ids": ragged(reader.texts(list(index))["input_ids"])}, "embed", device=net.device)
    found = torch.empty(len(index), net.anatomy.width)
    for batch in table.once(tokens=tokens):
        found[batch["row"].cpu()] = net.pooled(batch).float().cpu()
    return torch.nn.functional.normalize(found, dim=-1)[[index[text] for text in whole]]


def usual_role(reader: Reader) -> str:
    """Of a text that comes alone: what is asked, where the two sides have prompts of their own."""
    return "anchor" if {"anchor", "positive"} & set(reader.prompts) else "text"


def predict_vectors(tuned: Tuned, texts: Sequence[Any], sampling: Sampling, batch: int) -> list[dict[str, Any]]:
    """Unit vectors. A text, or {role: text} with one of anchor, positive, text, where they have prompts of their own."""
    asked = [next(iter(t.items())) if isinstance(t, Mapping) else (usual_role(tuned.reader), t) for t in texts]
    found: dict[int, Tensor] = {}
    for role in dict.fromkeys(role for role, _ in asked):
        rows = [i for i, (other, _) in enumerate(asked) if other == role]
        found |= zip(rows, vectors(tuned.net, tuned.reader, [asked[i][1] for i in rows], role, batch), strict=True)
    return [{"vector": found[i].tolist()} for i in range(len(asked))]
