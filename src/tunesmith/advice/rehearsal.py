"""One step of a run on tensors without storage: what trains, what it holds in memory at most, and how much it computes. Nothing is loaded."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..core import Batch, Delta, Objective, Ragged
from ..dataset import Dataset, Part
from ..job import added_for, agreed, fits, form_of, lengths, sizes, tables_of
from ..networks.blank import blank_network
from ..networks.precision import DTYPES, choose
from ..networks.transformer import Transformer
from ..networks.vocabulary import as_on
from ..recipe import Recipe
from ..shared import add_heads, device_of
from ..sources.table import Table
from ..updates.descend import pieces

MOMENTS = 8  # bytes a trained parameter: AdamW's two
SINGLE = 4  # bytes of what an objective learns
QUANTISED = {4: 0.5 + 0.032, 8: 1.0 + 0.004}  # bytes a weight, its scales included


@dataclass(frozen=True)
class Work:
    """Of one forward pass, or one forward and backward pass. Bytes are beside the weights, at the fullest moment; `widest`: of the largest tensor of a matrix product."""

    tokens: int
    bytes: int
    widest: int
    flops: float
    calls: int


@dataclass(frozen=True)
class Rehearsal:
    """What one run will be.

    own       numbers that the objective itself learns: a critic, projections, a verbaliser
    weights   bytes that rest in memory, in the dtype in which they are kept while training, a teacher's that is asked all along among them
    loaded    bytes of the weights as they were read, and as they are kept, while both are there; quantised ones are so one by one
    beside    bytes of what else is loaded before the first step, and let go
    held      bytes of gradients that wait for those of other tasks
    step      the heaviest step among those to come, a piece of it where `update.micro` cuts it
    fill      the pass that stores the frozen trunk's states, once, or None where nothing is stored; `stored` bytes for all rows
    steps     the rows of each step to come; of a run that a clock ends, of an epoch
    rows      real tokens of each row
    """

    trainable: int
    total: int
    own: int
    weights: int
    loaded: int
    beside: int
    held: int
    step: Work
    fill: Work | None
    stored: int
    steps: list[list[int]]
    rows: Sequence[int]
    kind: str
    depth: int
    width: int
    floor: int
    dtype: str
    device: str

    @property
    def tokens(self) -> list[int]:
        """Real tokens of each step."""
        return [sum(self.rows[i] for i in step) for step in self.steps]

    @property
    def peak(self) -> int:
        """Bytes of tensors at the fullest moment of the run."""
        step = self.step.bytes + MOMENTS * (self.trainable + self.own) + self.held
        return max(self.loaded, self.weights + max(self.beside, self.stored + max(step, self.fill.bytes if self.fill else 0)))


def rehearse(recipe: Recipe, data: Dataset) -> Rehearsal:
    """Raises Refusal where the method does not fit the model, or the rows its positions."""
    method, learn = recipe.built_method(), agreed(recipe, data)
    tables = tables_of(recipe, data, learn, torch.device("cpu"))
    found = {name: steps_of(recipe, table) for name, table in tables.items()}
    weigh = lambda name: max(sum(tables[name].long[i] for i in rows) for rows in found[name])
    name = max(found, key=weigh)  # of several tasks, the one with the heaviest step
    one, table = data.each[name], tables[name]
    heavy = next(pieces(table.batch(max(found[name], key=lambda rows: sum(table.long[i] for i in rows))), recipe.update.micro))
    *_, longest = table.once()
    each = recipe.each()
    before, along = zip(*(beside(each.get(name, recipe), one, learn.of(one.task.key)) for name, one in data.each.items()), strict=True)
    torch.manual_seed(recipe.seed)
    made = {"generates": recipe.generates, "worded": data.worded, "dropout": recipe.dropout, "tokenizer": data.reader.tokenizer}
    with as_on(device := device_of(recipe)), blank_network(data.source, **made) as net:
        net.pool, net.labels = recipe.head.pool or net.pool, data.task.labels
        published = sum(p.numel() for p in net.parameters())
        add_heads(net, recipe, data)
        delta = method.attach(net, keep="reference" in learn.needs)
        net.recompute(recipe.recompute)
        with unset_fake_temporarily():  # these look at values, and at the clock
            fits(data, net, method.positions)
            choice = choose(sizes(net, list(tables.values())), device, recipe.dtype if recipe.model.bits is None else "bf16", recipe.kernel)
        net.compute = DTYPES[choice.dtype]
        net.room.kernel = "sdpa" if choice.kernel == "varlen" else choice.kernel  # which keeps as little, and needs no GPU
        read = {n: p.dtype for n, p in net.named_parameters()}
        as_read = sum(p.nbytes for p in net.parameters())
        delta.cast(net.compute, keep=False)
        floor = cached_above(net, delta)
        pooled = floor == net.anatomy.depth and one.task.outputs > 0 and one.task.name in ("classify", "score")
        learn.meet(net)
        batch = learn.presumed(net, started(heavy, net, floor, pooled))
        return Rehearsal(
            trainable=sum(p.numel() for p in delta.parameters().values()),
            total=sum(p.numel() for p in net.parameters()),
            own=(own := sum(p.numel() for p in learn.parameters())),
            weights=weights_of(net, recipe.model.bits, published) + sum(value.nbytes for value in delta.base.values()) + max(along) + SINGLE * own,
            loaded=0 if recipe.model.bits else as_read + sum(p.nbytes for n, p in net.named_parameters() if p.dtype != read[n]),
            beside=max(before) - max(along),
            held=form_of(recipe, learn).holds(len(tables)) * sum(p.nbytes for p in delta.parameters().values()),
            step=worked(net, batch, lambda: moved(learn, net, batch, method.learns), net.train),
            fill=filled(net, longest, floor, pooled) if floor else None,
            stored=sum(stored_values(part, pooled) for d in data.each.values() for part in (d.train, d.eval, d.test) if part)
            * net.anatomy.width
            * width_of(net)
            if floor
            else 0,
            steps=laid_out(found, tables),
            rows=[n for table in tables.values() for n in table.lengths],
            kind=net.anatomy.kind,
            depth=net.anatomy.depth,
            width=net.anatomy.width,
            floor=floor,
            dtype=choice.dtype,
            device=device.type,
        )


def beside(recipe: Recipe, data: Dataset, learn: Objective) -> tuple[int, int]:
    """Bytes of other networks: while the sources are filled, one after the other, and all along."""
    found = [column.beside(recipe, data, learn) for column in added_for(learn)] or [(0, 0)]
    return max(once for once, _ in found), sum(along for _, along in found)


def laid_out(found: Mapping[str, list[list[int]]], tables: Mapping[str, Table]) -> list[list[int]]:
    """The steps of all tasks, with rows counted through."""
    steps, before = [], 0
    for name, table in tables.items():
        steps += [[before + i for i in rows] for rows in found[name]]
        before += len(table)
    return steps


def moved(learn: Objective, net: Transformer, batch: Batch, learns: bool) -> None:
    """What a step computes."""
    with torch.set_grad_enabled(learns):
        loss = torch.stack(list(learn(net, batch).values())).sum()
    if learns:
        loss.backward()


def cached_above(net: Transformer, delta: Delta) -> int:
    """The floor above which the run starts from stored states; 0 where it does not."""
    floor = delta.lowest
    return floor if net.anatomy.kind != "seq2seq" and (net.skips or floor == net.anatomy.depth) else 0


def steps_of(recipe: Recipe, table: Table) -> list[list[int]]:
    """The rows of each step to come; of a run without end, an epoch's."""
    total, period = lengths(recipe, [table], table.period)
    total = period if recipe.budget.minutes else total
    epochs = -(-total // period)
    return [rows.tolist() for epoch in range(epochs) for rows in table.order(epoch).split(table.size)][:total]


def started(batch: Batch, net: Transformer, floor: int, pooled: bool) -> Batch:
    """As a source above a stored trunk hands it out."""
    if not floor:
        return batch
    if pooled:
        return batch.plus(pooled=torch.empty(len(batch), net.anatomy.width))
    states = Ragged(torch.empty(len(batch["ids"]), net.anatomy.width, dtype=net.compute), batch.ragged("ids").lengths)
    return batch.plus(trunk=states, floor=torch.tensor([floor]))  # one number, which alone keeps its value here


def filled(net: Transformer, batch: Batch, floor: int, pooled: bool) -> Work:
    """Of the pass that stores states."""
    with torch.no_grad():
        return worked(net, batch, lambda: net.pooled(batch) if pooled else net.trunk_states(batch, floor), net.eval)


def stored_values(part: Part, pooled: bool) -> int:
    """States of the model's width that are kept of a part."""
    return len(part.encoded.lengths) if pooled else sum(part.encoded.lengths)


def width_of(net: Transformer) -> int:
    return 2 if net.compute is torch.bfloat16 else 4


def weights_of(net: Transformer, bits: int | None, published: int) -> int:
    """Bytes of all parameters and buffers; a quantised base keeps its projections in `bits`."""
    held = sum(t.untyped_storage().nbytes() for t in unique([*net.parameters(), *net.buffers()]))
    if bits is None:
        return held
    projected = sum(net.get_submodule(path).weight.numel() for path in net.anatomy.linears)  # type: ignore[union-attr]
    each = next(net.model.parameters()).element_size()
    return round(held - projected * each + projected * QUANTISED[bits])


def unique(tensors: list[Tensor]) -> list[Tensor]:
    return list({id(t): t for t in tensors}.values())


def worked(net: Transformer, batch: Batch, act: Any, mode: Any) -> Work:
    mode()
    live = Live()
    with live:
        live.hold([*net.parameters(), *net.buffers()])
        before = live.now
        act()
    net.zero_grad()
    return Work(len(batch["ids"]), live.peak - before, live.widest, live.flops, live.calls)


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, floating-point operations, and calls of the library.

    torch's own FlopCounterMode keeps what recomputation is to forget, so only its formulas are used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.calls = self.widest = 0
        self.flops = 0.0
        self.known: dict[int, int] = {}

    def hold(self, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self.known:
                self.known[key] = storage.nbytes()
                self.now += self.known[key]
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.drop, key)

    def drop(self, key: int) -> None:
        self.now -= self.known.pop(key, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls += 1
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
            self.widest = max(self.widest, *(t.nbytes for t in (*args, out) if isinstance(t, Tensor)))
        self.hold([t for t in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(t, Tensor)])
        return out
