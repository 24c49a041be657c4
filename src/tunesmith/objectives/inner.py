"""What a student learns from inside its teacher: states, attention and relations between tokens. Every loss is summed over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Heads = tuple[Tensor, Tensor, Tensor]  # query (N, H, d), key and value (N, kv heads, d)


@dataclass(frozen=True)
class Shape:
    """Of a network's blocks. `causal`: no token sees those after it."""

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    causal: bool

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Numbers a token of query, key and value."""
        return self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim

    def parted(self, flat: Tensor) -> Heads:
        """Query, key and value from their numbers (N, sum of sizes) side by side."""
        q, k, v = flat.split(self.sizes, -1)
        return q.unflatten(-1, (self.heads, -1)), k.unflatten(-1, (self.kv_heads, -1)), v.unflatten(-1, (self.kv_heads, -1))


def squared(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error, averaged over the width (Jiao et al. 2020, TinyBERT, eq. 8)."""
    return (student - teacher).square().mean(-1).sum()


def turned(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine (Sanh et al. 2019, DistilBERT, section 3)."""
    return (1 - torch.cosine_similarity(student, teacher, dim=-1)).sum()


STATES = {"mse": squared, "cosine": turned}


def attention(student: Heads, teacher: Heads, lengths: Sequence[int], causal: bool) -> Tensor:
    """Squared error of the scores before the softmax, averaged over heads and the tokens seen (TinyBERT, eq. 7, which divides by heads)."""
    see = seen(lengths, causal, student[0].device)
    gap = scores(student[0], student[1], lengths) - scores(teacher[0], teacher[1], lengths)
    return (gap.square().mean(1) * see).sum(-1).div(see.sum(-1).clamp(min=1)).sum()


def relations(student: Heads, teacher: Heads, lengths: Sequence[int], causal: bool, heads: int | None) -> Tensor:
    """KL of attention distributions and of value relations, averaged over heads (Wang et al. 2020, MiniLM, eq. 6 and 8).

    `heads`: all heads' vectors of a token are parted anew into so many, and queries, keys and values each relate to themselves, so that the two
    networks may have different numbers of heads (Wang et al. 2021, MiniLMv2, section 3.1).
    """
    see = seen(lengths, causal, student[0].device)
    if heads is None:
        pairs = [(student[:2], teacher[:2]), ((student[2], student[2]), (teacher[2], teacher[2]))]
    else:
        parted = [(again(s, heads), again(t, heads)) for s, t in zip(student, teacher, strict=True)]
        pairs = [((s, s), (t, t)) for s, t in parted]
    return torch.stack([related(scores(s[0], s[1], lengths), scores(t[0], t[1], lengths), see) for s, t in pairs]).sum()


def again(x: Tensor, heads: int) -> Tensor:
    """(N, H, d) -> (N, heads, H d / heads)."""
    return x.flatten(1).unflatten(-1, (heads, -1))


def related(student: Tensor, teacher: Tensor, see: Tensor) -> Tensor:
    """KL between softmaxes of scores (B, H, L, L) over the tokens seen (B, L, L), averaged over heads, summed over tokens."""
    low = torch.finfo(student.dtype).min
    p, q = ((x.masked_fill(~see[:, None], low)).log_softmax(-1) for x in (teacher, student))
    gap = (p.exp() * (p - q)).masked_fill(~see[:, None], 0).sum(-1)
    return gap.mean(1).mul(see.any(-1)).sum()


def scores(a: Tensor, b: Tensor, lengths: Sequence[int]) -> Tensor:
    """(B, H, L, L): products of each row's tokens, over the root of their size; fewer heads of b serve several of a."""
    a, b = (torch.nn.utils.rnn.pad_sequence(list(x.float().split(list(lengths))), True).transpose(1, 2) for x in (a, b))
    b = b.repeat_interleave(a.shape[1] // b.shape[1], 1)
    return a @ b.mT / a.shape[-1] ** 0.5


def seen(lengths: Sequence[int], causal: bool, device: torch.device) -> Tensor:
    """(B, L, L): which tokens of its row a token sees; none behind the row's end."""
    real = torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device)[:, None]
    see = real[:, :, None] & real[:, None]
    return see.tril() if causal else see
