"""A prompt in words: nothing moves but the text around each row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from ..core import Insert, Method, Network

Place = Literal["template", "instruction", "words", "shots"]


@dataclass(frozen=True)
class SearchOptions:
    """What else may be said than what the recipe says, and how much may be spent on finding it.

    templates, instructions   further ones
    words         further words a label; of all that are given, each alone is tried too
    edits         also try each template with other separators and other names before the label
    over          what may change
    passes        rows read by the network, at most: the budget
    rows          training rows that candidates are priced on, the same for all, drawn by the run's seed
    """

    templates: tuple[str, ...] = ()
    instructions: tuple[str, ...] = ()
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    edits: bool = True
    over: tuple[Place, ...] = ("template", "instruction", "words", "shots")
    passes: Annotated[int, Ge(1)] = 20_000
    rows: Annotated[int, Ge(1)] = 128


@dataclass(frozen=True)
class HardPrompt(Method):
    """A designed prompt: a template, words for the labels, an instruction and demonstrations, with no gradient at all (Brown et al. 2020; Schick & Schütze 2021).

    template, words, instruction, chat, gather, length, file   as in `objective: cloze`, which they are given to
    shots      demonstrations from the training rows; never the row that is asked about
    choose     random; balanced, as many of each label as goes; or nearest by `embedder`, chosen for every row. Drawn by the run's seed
    order      drawn (of nearest ones: the nearest last, next to what is asked) or reversed
    calibrate  contextual: a label's score less what it gets for texts without content (Zhao et al. 2021); domain: less what it gets for random words of the training
               texts (Fei et al. 2023)
    search     what may be changed if the training rows become likelier by it
    """

    shots: Annotated[int, Ge(0)] = 0
    choose: Literal["random", "balanced", "nearest"] = "balanced"
    order: Literal["drawn", "reversed"] = "drawn"
    embedder: str = "minilm"
    calibrate: Literal["none", "contextual", "domain"] = "none"
    search: SearchOptions | None = None

    paper: ClassVar[str] = "Brown et al. 2020, https://arxiv.org/abs/2005.14165; Zhao et al. 2021, https://arxiv.org/abs/2102.09690"
    learns: ClassVar[bool] = False
    implies: ClassVar[Mapping[str, str]] = {"classify": "cloze"}
    hands_on: ClassVar[tuple[str, ...]] = ("template", "words", "instruction", "chat", "gather", "length", "file")
    update: ClassVar[str] = "search"

    @property
    def steps(self) -> int:
        """The first takes the prompt as it is written; each further one a candidate, until the passes are used up."""
        return 1 if self.search is None else 1 + self.search.passes

    def inject(self, net: Network) -> list[Insert]:
        insert = Choice(3 + len(net.labels) + (0 if self.choose == "nearest" else self.shots))
        insert.place(net)
        return [insert]

    def trains(self, name: str, net: Network) -> bool:
        return False


class Choice(Insert):
    """What was chosen of what is offered, by number: calibrated or not, template, instruction, the words of each label, the training row of each demonstration."""

    choice: Tensor

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("choice", torch.zeros(size, dtype=torch.long))

    def place(self, net: nn.Module) -> None:
        self._site = (net,)  # a tuple, lest the network become a child of its guest
        net.add_module("wording", self)

    def ungraft(self) -> None:
        del self._site[0]._modules["wording"]
