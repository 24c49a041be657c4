"""Several tasks on one tiny network: a head and a table each, batches in turn. What surgery and balancing are held against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tiny import CLASSES, network, rows
from tunesmith.core import Batch, Delta, Listener, Method, Network, Objective, Run, Stage
from tunesmith.methods import LoRA
from tunesmith.networks.heads import HeadSpec
from tunesmith.networks.load import add_head
from tunesmith.networks.transformer import Transformer
from tunesmith.objectives import Supervised
from tunesmith.objectives.together import Together
from tunesmith.sources.table import Table
from tunesmith.updates import UPDATES, Descend, Form

NAMES = ("a", "b", "c")
SIZES = (5, 9, 3, 12, 7, 4, 10, 6, 8, 5, 3, 11)


@dataclass(frozen=True)
class InTurn:
    """A batch of each table, one after the other."""

    tables: Sequence[Table]

    @property
    def gives(self) -> frozenset[str]:
        return self.tables[0].gives

    @property
    def period(self) -> int:
        return self.tables[0].period

    def fill(self, net: Network) -> None: ...

    def batches(self, net: Network, start: int = 0) -> Iterator[Batch]:
        turn, first = divmod(start, len(self.tables))
        streams = [table.batches(net, turn + (i < first)) for i, table in enumerate(self.tables)]
        while True:
            yield from (next(stream) for stream in streams[first:])
            first = 0


def table(name: str, number: int, size: int = 4) -> Table:
    """Twelve texts, much the same for all tasks, with labels that contradict the other tasks' in part."""
    label = torch.arange(12) * (1, 2, 1)[number] // (1, 1, 2)[number] % CLASSES
    return Table({"ids": rows(*SIZES), "label": label}, name, size, seed=5)


def mounted(names: Sequence[str] = NAMES, method: Method | None = None, dropout: float = 0.0) -> tuple[Transformer, Delta]:
    net = network("bert")
    del net.heads["task"]
    torch.manual_seed(2)
    for i, name in enumerate(names):
        add_head(net, name, HeadSpec(CLASSES, dropout=dropout), i)
        nn.init.normal_(net.heads[name][-1].weight, std=0.5)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    torch.manual_seed(1)
    delta = (method or LoRA(rank=2)).attach(net)
    with torch.no_grad():
        for name, p in delta.parameters().items():
            p.add_(torch.randn_like(p), alpha=0.1 if name.endswith(".lora.B") else 0.0)
    return net, delta


@dataclass
class Setting:
    """All that makes a run, with what tests vary."""

    form: Form
    names: Sequence[str] = NAMES
    steps: int = 1
    accumulate: int = 0  # batches a step; 0: one of each task
    size: int = 4
    micro: int = 10**6
    method: Method | None = None
    dropout: float = 0.0
    rate: float = 1e-2
    clip: float = 0.0
    seed: int = 0
    plain: bool = False  # gradient descent at rate 1: what a weight loses in a step is its gradient
    objective: Objective = field(default_factory=lambda: Supervised("single"))
    weights: Mapping[str, float] | None = None  # of tasks, fixed

    def run(self, **more: object) -> Run:
        net, delta = mounted(self.names, self.method, self.dropout)
        source = InTurn([table(name, NAMES.index(name), self.size) for name in self.names])
        update = Descend(self.rate, clip=self.clip, micro=self.micro, form=self.form)
        if self.plain:
            params = list(delta.parameters().values())
            update = Descend(1.0, "constant", 0.0, clip=self.clip, micro=self.micro, form=self.form)
            update.optimizer = torch.optim.SGD([{"params": params, "pace": 1.0}], lr=1.0)
        stage = Stage("main", source, self.steps, source.period, self.accumulate or len(self.names))
        learn = self.objective
        if self.weights:
            learn = Together({name: Supervised("single") for name in self.names}, self.weights)
        return Run(net, delta, learn, [stage], update, seed=self.seed, **more)  # type: ignore[arg-type]


def form(kind: str, **options: object) -> Form:
    return UPDATES[kind](**options)


def learnt(run: Run) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in run.delta.parameters().items()}


@dataclass
class Stop(Listener):
    after: int

    def step(self, run: Run, record) -> None:
        if run.done == self.after:
            run.halt = "enough"
