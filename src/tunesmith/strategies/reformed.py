"""A way of forming the gradient, and what a strategy does around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..core import Batch, Run
from ..updates import Form, Formed


@dataclass(frozen=True)
class Reformed(Form):
    """`do` is called in the place of `inner`, and calls it; what `inner` remembers, it remembers."""

    inner: Form
    do: Callable[[Run, Sequence[Batch], int, int], Formed]

    def __call__(self, run: Run, batches: Sequence[Batch], tokens: int, seed: int) -> Formed:
        return self.do(run, batches, tokens, seed)

    def after(self, run: Run, batches: Sequence[Batch], tokens: int, seed: int) -> None:
        self.inner.after(run, batches, tokens, seed)

    def state_dict(self) -> dict[str, Tensor]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:  # type: ignore[override]
        self.inner.load_state_dict(state)
