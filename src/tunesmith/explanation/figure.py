"""What a method does to a model, part by part: what trains, what was added, what rests. Counted on the blank network, so no weights are needed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core import Delta, Method
from ..networks.blank import blank_network
from ..networks.heads import HeadSpec
from ..networks.load import Origin, add_head
from ..networks.transformer import Transformer

ATTENTION, FORWARD = ("query", "key", "value", "out"), ("gate", "up", "down")


@dataclass(frozen=True)
class Cell:
    """One projection, or what else a block has: parameters of the published model, those of them that train, and those added to it."""

    name: str
    total: int = 0
    trains: int = 0
    added: int = 0

    @property
    def state(self) -> str:
        """rests | trains (all of it) | partly (some of it, such as its bias)."""
        return "rests" if not self.trains else "trains" if self.trains == self.total else "partly"


@dataclass(frozen=True)
class Floor:
    """A storey of the drawing: the embedding, a run of like blocks, the norm at the end, or a head."""

    name: str
    cells: tuple[Cell, ...]
    blocks: tuple[int, int] | None = None  # first and last of those that it stands for

    @property
    def many(self) -> int:
        return 1 if self.blocks is None else self.blocks[1] - self.blocks[0] + 1


@dataclass(frozen=True)
class Figure:
    """From the ground up: embedding first, head last. Counts of a floor are those of one of its blocks.

    before  what stands before each row (prompt) or before each attention (prefix): parameters that were added there, and how many positions
    """

    method: str
    model: str
    family: str
    kind: str
    depth: int
    width: int
    floors: tuple[Floor, ...]
    before: tuple[str, int, int] | None
    trainable: int
    total: int
    artifact: int
    notes: tuple[str, ...]


def drawn(name: str, method: Method, source: Origin, *, generates: bool, classes: int = 2, tokenizer: Any = None) -> Figure:
    """Raises Refusal where the method makes no sense on this model."""
    with blank_network(source, generates=generates, tokenizer=tokenizer) as net:
        net.labels = tuple(f"label {i}" for i in range(classes))
        if not generates:
            add_head(net, "task", HeadSpec(classes), 0)
        delta = method.attach(net, keep=False)
        parts = counted(net, delta)
        saved = sum(t.numel() * 4 for t in delta.state_dict().values())
        trainable = sum(p.numel() for p in delta.parameters().values())
        length = getattr(method, "length", 0)
        placed = next(((slot, length, parts[slot, ""].added) for slot in ("prompt", "prefix") if (slot, "") in parts), None)
        return Figure(
            method=name, model=source.name, family=net.model.config.model_type, kind=net.anatomy.kind, depth=net.anatomy.depth, width=net.anatomy.width,
            floors=tuple(storeys(net, parts)), before=placed, trainable=trainable,
            total=sum(p.numel() for p in net.parameters()), artifact=saved, notes=tuple(method.notes(net)),
        )  # fmt: skip


def counted(net: Transformer, delta: Delta) -> dict[tuple[str, str], Cell]:
    """By (floor, cell). Floors: `embedding`, `block i`, `end`, `head`, `prompt`, `prefix`."""
    sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for name, p in net.named_parameters():
        if name.startswith(tuple(f"{path}." for path in net.anatomy.unused)):
            continue
        count = sums[place(name, net)]
        if name in delta.added:
            count[2] += p.numel()
        else:
            count[0] += p.numel()
            count[1] += p.numel() * (name in delta.trains)
    return {key: Cell(key[1], *count) for key, count in sums.items()}


def place(name: str, net: Transformer) -> tuple[str, str]:
    for slot in ("prompt", "prefix"):
        if name.startswith(f"{slot}."):
            return slot, ""
    block = net.anatomy.block_of(name)
    if 0 <= block < net.anatomy.depth and name.startswith(net.anatomy.blocks[block] + "."):
        role = next((role for path, role in net.anatomy.linears.items() if name.startswith(path + ".")), "norms")
        return f"block {block}", role
    return ("head" if block == net.anatomy.depth else "end" if block >= 0 else "embedding"), ""


def storeys(net: Transformer, parts: Mapping[tuple[str, str], Cell]) -> Iterator[Floor]:
    """Embedding, blocks with like neighbours joined, end, head."""
    if ("embedding", "") in parts:
        yield Floor("embedding", (parts["embedding", ""],))
    blocks = [tuple(sorted((c for (floor, _), c in parts.items() if floor == f"block {i}"), key=order)) for i in range(net.anatomy.depth)]
    first = 0
    for i in range(1, len(blocks) + 1):
        if i == len(blocks) or blocks[i] != blocks[first]:
            yield Floor("block" if i - first == 1 else "blocks", blocks[first], (first, i - 1))
            first = i
    for name in ("end", "head"):
        if (name, "") in parts:
            yield Floor(name, (parts[name, ""],))


def order(cell: Cell) -> int:
    first = cell.name.partition("+")[0]
    known: Sequence[str] = (*ATTENTION, *FORWARD)
    return known.index(first) if first in known else len(known)
