"""Texts as unit vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .networks.transformer import Transformer
from .sources.table import Table
from .sources.text.encode import Reader, ragged


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
