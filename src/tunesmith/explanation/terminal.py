"""The figure in characters, from the head down to the embedding, as papers draw it."""

from __future__ import annotations

from .figure import ATTENTION, Cell, Figure, Floor

MARKS = {"rests": "░", "trains": "█", "partly": "▒"}
WIDE = 12


def lines(figure: Figure) -> list[str]:
    """What trains is solid, what rests is light; + is what was added, with its parameters."""
    out = [line for floor in reversed(figure.floors) for line in floor_lines(floor, figure)]
    if figure.before and figure.before[0] == "prompt":
        _, length, count = figure.before
        out.append(f"{'':14}▲ {length} learnt vectors before each row (+{short(count)})")
    legend = "█ trains   ▒ trains in part   ░ rests   + added, and trains"
    return [*out, "", legend]


def floor_lines(floor: Floor, figure: Figure) -> list[str]:
    if floor.blocks is None:
        cell = floor.cells[0]
        return [f"{floor.name:>13} {bar(cell, 24)} {count_of(cell)}"]
    first, last = floor.blocks
    name = f"block {first}" if first == last else f"blocks {first}-{last}"
    attention = [c for c in floor.cells if c.name.partition("+")[0] in ATTENTION]
    rest = [c for c in floor.cells if c not in attention]
    made = [row(name, attention, "attention"), row(f"x {floor.many}" if floor.many > 1 else "", rest, "feed-forward")]
    if figure.before and figure.before[0] == "prefix":
        made.insert(1, [f"{'':14}▲ {figure.before[1]} learnt keys and values before each attention (+{short(figure.before[2] // figure.depth)} a block)"])
    return [line for part in made for line in part]


def row(name: str, cells: list[Cell], what: str) -> list[str]:
    """Names above their bars."""
    if not cells:
        return []
    heads = "  ".join(f"{cell.name:{width(cell)}}" for cell in cells)
    bars = "  ".join(f"{bar(cell, 4) + ('+' + short(cell.added) if cell.added else ''):{width(cell)}}" for cell in cells)
    return [f"{name:>13} {heads}", f"{what:>13} {bars}"]


def width(cell: Cell) -> int:
    return max(WIDE, len(cell.name))


def bar(cell: Cell, size: int) -> str:
    return MARKS[cell.state] * size


def count_of(cell: Cell) -> str:
    parts = [f"{short(cell.trains)} of {short(cell.total)} train" if cell.trains else f"{short(cell.total)} rest"] if cell.total else []
    return ", ".join([*parts, *([f"+{short(cell.added)}"] if cell.added else [])])


def short(count: int) -> str:
    """12345 -> 12.3k."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)
