"""The sections of a recipe: frozen dataclasses, whose fields are the keys and whose types say what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt

TASKS = ("classify", "tag", "score", "generate", "embed")
Kind = Literal["classify", "tag", "score", "generate", "embed"]
Positive = Annotated[int, Ge(1)]
Share = Annotated[float, Ge(0), Lt(1)]


@dataclass(frozen=True)
class Model:
    """name: hub id, folder, `minilm` or `desk-lm`; bits: 4 or 8 for a quantised base; blocks: those that are kept, in order, for a student with
    dropped layers."""

    name: str
    revision: str | None = None
    bits: Literal[4, 8] | None = None
    blocks: tuple[Annotated[int, Ge(0)], ...] | None = None


@dataclass(frozen=True)
class Data:
    """train, eval, test: files, hub data sets or `desk`; eval may be a share of the training rows to hold out.

    prompts: what stands before texts to embed, by role: anchor and positive (negatives too), or text.
    unlabelled: a file of further rows, of which only the texts are read: for a teacher to label (`limit` does not count them); at most `unlabelled_limit`.
    inner: a share of the training rows to judge by instead of eval and test, which are left unread (a search for options).
    """

    train: str = ""
    eval: str | Annotated[float, Gt(0), Lt(1)] | None = None
    test: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    encoding: str | None = None
    delimiter: str | None = None
    header: bool | None = None
    multi_label: bool = False
    bad_rows: Literal["stop", "skip"] = "stop"
    repair: bool = False
    max_length: Annotated[int, Ge(4)] | None = None
    template: Literal["auto", "chat", "plain"] = "auto"
    learn_prompt: bool = False
    prompts: dict[Literal["anchor", "positive", "text"], str] = field(default_factory=dict)
    limit: Positive | None = None  # first rows of a seeded shuffle of the training file
    unlabelled: str | None = None
    unlabelled_limit: Positive | None = None
    inner: Annotated[float, Gt(0), Lt(1)] | None = None


@dataclass(frozen=True)
class HeadOptions:
    kind: Literal["linear", "mlp"] = "linear"
    pool: Literal["mean", "cls", "last"] | None = None
    hidden: Positive | None = None
    dropout: Share = 0.1


@dataclass(frozen=True)
class UpdateOptions:
    """kind: how the gradient is formed, by default as the objective asks; its own options stand beside it, and here in `options`; rate: peak learning
    rate, by default the method's own for this kind of architecture; batch: examples a step; micro: tokens a pass."""

    kind: str | None = None
    rate: Annotated[float, Gt(0)] | None = None
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Share = 0.06
    decay: Annotated[float, Ge(0)] = 0.01
    clip: Annotated[float, Ge(0)] = 1.0
    batch: Positive = 32
    micro: Positive = 16384
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Budget:
    """One of: epochs, steps, examples, tokens, minutes."""

    epochs: Annotated[float, Gt(0)] | None = None
    steps: Positive | None = None
    examples: Positive | None = None
    tokens: Positive | None = None
    minutes: Annotated[float, Gt(0)] | None = None


@dataclass(frozen=True)
class Evaluation:
    """every: steps or `epoch`, by default each epoch, and for few rows at the end alone; patience: evaluations without a better one before the run
    stops (0: never); best: keep the best evaluation's weights, by default unless the rows are few."""

    every: Positive | Literal["epoch"] | None = None
    patience: Annotated[int, Ge(0)] = 0
    best: bool | None = None
    samples: Annotated[int, Ge(0)] = 16
    max_new_tokens: Positive = 64


@dataclass(frozen=True)
class Saving:
    every: Positive | Literal["epoch"] = "epoch"
    keep: Positive = 2


@dataclass(frozen=True)
class TaskOptions:
    """One of several tasks on one network. weight: of its loss in the sum; objective: by default what the task implies."""

    task: Kind
    data: Data
    head: HeadOptions = HeadOptions()
    objective: Mapping[str, Any] | None = None
    weight: Annotated[float, Gt(0)] = 1.0
