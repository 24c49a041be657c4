"""The figure as a drawing for pages: one <svg>, no fonts or scripts of its own."""

from __future__ import annotations

from xml.sax.saxutils import escape

from .figure import ATTENTION, Cell, Figure, Floor
from .terminal import short

FILL = {"rests": "#e2e8f0", "trains": "#0b6e99", "partly": "url(#partly)"}
INK, SOFT, ADDED = "#0f172a", "#64748b", "#d9730d"
LEFT, WIDE, TALL, GAP, STOREY = 92, 66, 26, 8, 58


def svg(figure: Figure, title: str = "") -> str:
    """Head above, embedding below; what trains is dark, what rests is light, what was added is orange."""
    floors = list(reversed(figure.floors))
    parts: list[str] = []
    y = 34.0
    for floor in floors:
        parts.append(one(floor, figure, y))
        y += STOREY if floor.blocks is not None else TALL + 16
    if figure.before and figure.before[0] == "prompt":
        parts += [box(LEFT, y - 4, 3 * WIDE, 18, ADDED), text(LEFT + 3 * WIDE + 8, y + 9, f"{figure.before[1]} learnt vectors before each row", ADDED, 11)]
        y += 26
    parts.append(legend(y + 12))
    width = LEFT + (columns(figure) + 1) * (WIDE + GAP) + 40
    head = text(8, 18, title or f"{figure.method}: {short(figure.trainable)} of {short(figure.total)} train", INK, 13, bold=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y + 34:.0f}" width="{width}" role="img" '
        f'font-family="system-ui, sans-serif">{PATTERN}{head}{"".join(parts)}</svg>'
    )


PATTERN = (
    '<defs><pattern id="partly" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="6" height="6" fill="#e2e8f0"/><rect width="2" height="6" fill="#0b6e99"/></pattern></defs>'
)


def columns(figure: Figure) -> int:
    return max(len(floor.cells) for floor in figure.floors)


def one(floor: Floor, figure: Figure, y: float) -> str:
    if floor.blocks is None:
        cell = floor.cells[0]
        return text(LEFT - 10, y + 17, floor.name, INK, 12, "end") + box(LEFT, y, 3 * WIDE, TALL, FILL[cell.state]) + label(cell, LEFT + 3 * WIDE + 8, y)
    first, last = floor.blocks
    name = f"block {first}" if first == last else f"blocks {first}–{last}"
    drawn = [text(LEFT - 10, y + 26, name, INK, 12, "end")]
    if floor.many > 1:
        drawn.append(text(LEFT - 10, y + 40, f"× {floor.many}", SOFT, 11, "end"))
    x = float(LEFT)
    if figure.before and figure.before[0] == "prefix":
        drawn.append(box(x - 7, y + 12, 5, TALL, ADDED))
    for cell in floor.cells:
        if cell.name.partition("+")[0] not in ATTENTION and x == LEFT + GAP * 0 + 4 * (WIDE + GAP):
            x += GAP
        drawn.append(square(cell, x, y))
        x += WIDE + GAP
    return "".join(drawn)


def square(cell: Cell, x: float, y: float) -> str:
    """A projection: its name above, what was added as a stripe at its foot."""
    made = text(x + WIDE / 2, y + 8, cell.name.replace("query+key+value", "q+k+v"), SOFT, 10, "middle") + box(x, y + 12, WIDE, TALL, FILL[cell.state])
    if cell.added:
        made += box(x + WIDE - 18, y + 12, 18, TALL, ADDED) + text(x + WIDE / 2, y + 12 + TALL + 11, f"+{short(cell.added)}", ADDED, 10, "middle")
    return made


def label(cell: Cell, x: float, y: float) -> str:
    said = f"{short(cell.trains)} train" if cell.trains else f"{short(cell.total)} rest"
    return text(x, y + 17, said if cell.total else f"+{short(cell.added)}", SOFT, 11)


def legend(y: float) -> str:
    made, x = [], float(LEFT)
    for fill, said in ((FILL["trains"], "trains"), (FILL["partly"], "in part"), (FILL["rests"], "rests"), (ADDED, "added, trains")):
        made.append(box(x, y, 12, 12, fill) + text(x + 17, y + 10, said, SOFT, 11))
        x += 84
    return "".join(made)


def box(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3" fill="{fill}"/>'


def text(x: float, y: float, said: str, fill: str, size: int, anchor: str = "start", *, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:g}" y="{y:g}" fill="{fill}" font-size="{size}" text-anchor="{anchor}"{weight}>{escape(said)}</text>'
