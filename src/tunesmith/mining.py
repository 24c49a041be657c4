"""Hard negatives for pairs: texts that an embedder finds near an anchor, and that are not so near that they may be right themselves.

Positive-aware (de Souza P. Moreira et al. 2024, NV-Retriever, https://arxiv.org/abs/2407.15831, "TopK-PercPos"): a candidate stays if its score lies below 95 %
of the positive's. Searched by products of matrices, a chunk of anchors at a time: no index, no approximation.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import write_file
from .dataset import desk_records
from .embedder import embedder
from .errors import Refusal
from .sources.text.examples import Related
from .sources.text.formats import detect
from .sources.text.read import read
from .sources.text.task import kind_of

CHUNK = 256  # anchors that are compared with all documents at a time


@dataclass(frozen=True)
class Rule:
    """negatives: how many a pair, at most; margin: share of the positive's score that one has to stay below it; of the `among` nearest after the first `skip`."""

    negatives: int = 3
    margin: float = 0.05
    skip: int = 0
    among: int = 100


@dataclass(frozen=True)
class Found:
    """Of one pair: the documents that were chosen, their cosines with the anchor, the positive's, and how many were too near it."""

    chosen: list[int]
    scores: list[float]
    positive: float
    near: int


def mine(data: str, out: Path, *, model: str, corpus: str | None = None, rule: Rule | None = None) -> Mapping[str, Any]:
    """Write `out`, JSONL with anchor, positive and negative_1 ... negative_n, fewer where there are not so many, and return what was found.

    Documents are all positives and negatives of `data`, and the texts of `corpus`. `model`: hub id, folder, minilm, or the folder of a run.
    """
    if out.exists():
        raise Refusal(f"{out} exists", where="--out", fix="another --out")
    pairs = related(data)
    if kind_of("embed", pairs) != "pairs":
        raise Refusal(f"{data} has no pairs", where="data", fix="columns anchor and positive")
    more = [t for e in related(corpus) for t in e.texts] if corpus else []
    documents = list(dict.fromkeys([t for e in pairs for t in e.texts[1:]] + more))
    reader = embedder(model)
    found = search(reader.of([e.texts[0] for e in pairs], "anchor"), reader.of(documents, "positive"), pairs, documents, rule or Rule())
    write_file(out, "".join(json.dumps(line(e, f, documents), ensure_ascii=False) + "\n" for e, f in zip(pairs, found, strict=True)).encode())
    scores = [s for f in found for s in f.scores]
    mean = lambda values: statistics.fmean(values) if values else None
    return {
        "out": str(out), "pairs": len(pairs), "documents": len(documents), "negatives": len(scores), "pairs_without": sum(not f.chosen for f in found),
        "positive_cosine": mean([f.positive for f in found]), "negative_cosine": mean(scores), "too_near": sum(f.near for f in found),
    }  # fmt: skip


def related(path: str) -> list[Related]:
    records = desk_records(path, "embed", "train") if path.partition("/")[0] == "desk" else read(path)
    return detect(records, "embed").examples()  # type: ignore[return-value]


def search(anchors: Tensor, documents: Tensor, pairs: Sequence[Related], texts: Sequence[str], rule: Rule) -> list[Found]:
    """`anchors` (pairs, D) and `documents` (texts, D): unit vectors. What an anchor is paired with anywhere, and the anchor itself, is never chosen."""
    place = {text: k for k, text in enumerate(texts)}
    partners: dict[str, set[int]] = {}
    for e in pairs:
        partners.setdefault(e.texts[0], {place[e.texts[0]]} if e.texts[0] in place else set()).add(place[e.texts[1]])
    found = []
    for start in range(0, len(pairs), CHUNK):
        for e, scores in zip(pairs[start:], anchors[start : start + CHUNK] @ documents.T, strict=False):
            positive = float(scores[place[e.texts[1]]])
            scores[list(partners[e.texts[0]])] = -torch.inf
            found.append(chosen(scores, positive, len(texts) - len(partners[e.texts[0]]), rule))
    return found


def chosen(scores: Tensor, positive: float, free: int, rule: Rule) -> Found:
    """The nearest of the `free` documents that may be chosen and stay below the limit."""
    best = scores.topk(min(rule.skip + rule.among, free))
    nearest = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))[rule.skip :]
    good = [(k, s) for k, s in nearest if s < positive - rule.margin * abs(positive)]
    kept = good[: rule.negatives]
    return Found([k for k, _ in kept], [s for _, s in kept], positive, len(nearest) - len(good))


def line(example: Related, found: Found, texts: Sequence[str]) -> dict[str, str]:
    return {"anchor": example.texts[0], "positive": example.texts[1], **{f"negative_{i + 1}": texts[k] for i, k in enumerate(found.chosen)}}
