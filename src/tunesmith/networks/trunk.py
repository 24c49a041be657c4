"""Running a network from the floor up: blocks below it are skipped, and their stored output is put in.

The forward pass stays the one that Hugging Face wrote; only the skipped blocks hand their input through, and the block at
the floor receives the stored states. Embeddings and rotary tables are still computed: they are cheap and the blocks want them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def starting_at(blocks: list[nn.Module], floor: int, states: Tensor, arity: int) -> Iterator[None]:
    """While this lasts, blocks[:floor] are not computed and blocks[floor] sees `states` as its input.

    `arity` is the length of the tuple that a block returns; 0 where it returns its states alone.
    """

    def through(hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor | tuple[Tensor | None, ...]:
        return (hidden_states, *[None] * (arity - 1)) if arity else hidden_states

    def swap(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})

    for block in blocks[:floor]:
        block.forward = through  # type: ignore[method-assign]
    hook = blocks[floor].register_forward_pre_hook(swap, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
        for block in blocks[:floor]:
            del block.__dict__["forward"]


class Reached(Exception):
    """The block was reached that a listener waits at: nothing above it is wanted."""


@contextmanager
def listening_at(block: nn.Module, stop: bool = False) -> Iterator[list[Tensor]]:
    """Collects what enters a block: the states to store. `stop` ends the forward pass there, by raising Reached."""
    seen: list[Tensor] = []

    def note(_: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"]).detach())
        if stop:
            raise Reached

    hook = block.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    except Reached:
        pass
    finally:
        hook.remove()
