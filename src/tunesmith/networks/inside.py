"""Hearing what a network computes on its way: the states that leave a block, and what its self-attention is called with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor, nn

from ..core import Batch, Heard
from ..errors import Refusal

if TYPE_CHECKING:
    from .transformer import Transformer

T = TypeVar("T")


def overheard(net: Transformer, say: Callable[[], T], batch: Batch, states: Sequence[int], heads: Sequence[int]) -> tuple[T, Heard]:
    """See Network.overheard. Nothing is detached: what is heard can be learnt from. Raises Refusal where a class keeps its attention to itself."""
    if heads and not net.takes_prefix:
        raise Refusal(f"{type(net.model).__name__} keeps its attention to itself", where="objective", fix="match states instead: states: {0: 0}")
    seen: dict[int, list[Tensor]] = {i: [] for i in states}
    hooks = [net.get_submodule(net.anatomy.blocks[i]).register_forward_hook(noting(seen[i])) for i in seen]
    net.room.heard = [] if heads else None
    try:
        with net.room.watching():
            said = say()
        sounds = net.room.heard or []
    finally:
        net.room.heard = None
        for hook in hooks:
            hook.remove()
    asked = {i: [s for s in sounds if s.seat == i] for i in heads}
    return said, Heard(
        {i: net.flat(found, batch) for i, found in seen.items()},
        {i: tuple(net.flat([getattr(s, what).transpose(1, 2) for s in found], batch) for what in ("query", "key", "value")) for i, found in asked.items()},  # type: ignore[misc]
    )


def noting(into: list[Tensor]) -> Callable[[nn.Module, object, object], None]:
    def note(_: nn.Module, __: object, out: object) -> None:
        into.append(out[0] if isinstance(out, tuple) else out)  # type: ignore[arg-type]

    return note
