"""One row of the guide on one model: what moves, how much, what is saved, when it fits and when not, and where it comes from."""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, get_args

from ..advice.evidence import Cell, cells_of, rows_of
from ..comparison.arms import EIGHT
from ..construct import options as options_of
from ..errors import Refusal
from ..guide import FURTHER, GUIDE, Text
from ..methods import METHODS
from ..networks.load import kind_of, load_config, load_tokenizer, origin
from ..objectives import OBJECTIVES
from ..recipe import recipe
from ..recipe_yaml import Places, apply_overrides, closest
from ..sources.streams import STREAMS
from ..strategies import STRATEGIES
from ..updates import UPDATES
from . import svg, terminal
from .figure import Figure, drawn

ROWS = {**GUIDE, **FURTHER}
AS_GOOD = 0.02  # a gap under which a method was as good as the best, as a share of what there was to gain


@dataclass(frozen=True)
class Explanation:
    """`figure` is None for an objective or a stream, which leave open what moves."""

    row: str
    kind: str
    text: Text | None
    about: str
    paper: str
    figure: Figure | None
    facts: Sequence[str]
    measured: Sequence[str]

    @property
    def record(self) -> dict[str, Any]:
        return {**{k: v for k, v in asdict(self).items() if k != "text"}, "guide": asdict(self.text) if self.text else None}

    @property
    def svg(self) -> str:
        return svg.svg(self.figure) if self.figure else ""

    def lines(self) -> list[str]:
        name = self.text.name if self.text else self.row
        out = [f"{name}: {self.text.does if self.text else self.about}", ""]
        if self.figure:
            out += [*terminal.lines(self.figure), ""]
        out += self.facts
        if self.text:
            out += ["", f"for it:       {self.text.strength}", f"against it:   {self.text.weakness}", f"where it fits: {self.text.fits}"]
        return [*out, *([""] if self.measured else []), *self.measured, *(["", f"source: {self.paper}"] if self.paper else [])]

    def _repr_html_(self) -> str:
        return self.svg + "<pre>" + "\n".join(self.facts) + "</pre>"


def explain(name: str, model: str = "minilm", options: Sequence[str] = (), task: str | None = None) -> Explanation:
    """Of a method on a model, of an objective or a stream, or of the row that a loss, an algorithm, a strategy or an update belongs to.

    Only the model's configuration is read. Raises Refusal for a name that is none of them.
    """
    if name in METHODS and METHODS[name].learns:
        return of_method(name, model, options, task)
    if name not in GUIDE and name not in OBJECTIVES and name not in METHODS:
        if name in (chosen := choices()):
            row, line = chosen[name]
            whole = explain(row, model, options, task)
            return replace(whole, facts=[f"{name} is written `{line}`", "", *whole.facts])
        known = sorted({*METHODS, *GUIDE, *OBJECTIVES})
        near = closest(name, known)
        raise Refusal(f"there is no row {name!r}", where="explain", fix=f"did you mean `{near}`?" if near else f"one of {', '.join(known)}")
    if name in STREAMS:
        return of_stream(name)
    here, method = OBJECTIVES.get(name), METHODS.get(name)
    about = first_sentence(inspect.getdoc(here or method)) if here or method else ""
    facts = [about] if about and text_of(name) else []
    facts += ["needs the columns " + ", ".join(sorted(here.needs))] if here and here.needs else []
    options = [*(method.hands_on if method else ()), *(f.name for f in fields(options_of(here) if here else method))] if here or method else []  # type: ignore[arg-type]
    facts += ["options: " + ", ".join(options)] if options else []
    kind = ROWS[name].kind if name in ROWS else "objective"
    return Explanation(name, kind, text_of(name), about, method.paper if method else "", None, facts, [])


def choices() -> dict[str, tuple[str, str]]:
    """Names that are a choice within a row: the row, and the line of a recipe that makes it."""
    found = {name: ("sequence", f"strategy: {name}") for name in STRATEGIES}
    found |= {name: ("mix", f"update: {{kind: {name}}}") for name, update in UPDATES.items() if update.several}
    for row, objective in OBJECTIVES.items():
        kinds = {f.name: get_args(f.type) for f in fields(options_of(objective)) if f.name in ("loss", "algorithm")}
        found |= {name: (row, f"objective: {{kind: {row}, {key}: {name}}}") for key, names in kinds.items() for name in names if name not in found}
    return found


def of_stream(name: str) -> Explanation:
    """With the strategies against forgetting, where tasks come one after the other, and the updates that weigh tasks, where they come together."""
    here = STREAMS[name]
    about = first_sentence(inspect.getdoc(here))
    listed = lambda rows: [f"  {key:12} {first_sentence(inspect.getdoc(row))}" for key, row in rows.items()]
    facts = [about, "options: " + ", ".join(f.name for f in fields(here))]  # type: ignore[arg-type]
    facts += ["", "strategies:", *listed(STRATEGIES)] if here.grows else []
    facts += ["", "updates that weigh tasks:", *listed({key: row for key, row in UPDATES.items() if row.several})] if here.several and not here.grows else []
    return Explanation(name, "stream", text_of(name), about, "", None, facts, [])


def of_method(name: str, model: str, options: Sequence[str], task: str | None) -> Explanation:
    source = origin(model)
    reads = kind_of(load_config(source)) == "encoder" or name == "head"
    generates = (task or ("classify" if reads else "generate")) == "generate"
    plain = {"model": model, "task": "generate" if generates else "classify", "data": "desk", "method": {"kind": name}}
    made = recipe(*apply_overrides(plain, Places("--option", {}), [f"method.{option}" for option in options]))
    method = made.built_method()
    figure = drawn(name, method, source, generates=generates, tokenizer=load_tokenizer(source))
    facts = [
        f"{figure.model} is a {figure.family} of {figure.depth} blocks of width {figure.width}: {figure.total:,} parameters with what is added",
        f"trains {figure.trainable:,} of them ({figure.trainable / figure.total:.3%}), by default at a learning rate of {method.rate(figure.kind, figure.width):g}",
        f"saves {figure.artifact / 1e6:.2f} MB; " + ("merges into the base without a trace" if method.merges else "stays beside the base: it cannot be merged"),
    ]
    facts += [f"takes {method.positions} of the model's positions from each row"] if method.positions else []
    facts += [f"note: {note}" for note in figure.notes]
    about = first_sentence(inspect.getdoc(type(method)))
    return Explanation(name, "method", text_of(name), about, method.paper, figure, facts, measured(name, cells_of(rows_of())))


def text_of(name: str) -> Text | None:
    return ROWS[name].texts["en"] if name in ROWS else None


def first_sentence(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())


def measured(name: str, cells: Sequence[Cell]) -> list[str]:
    """In how many of the measured cases it was as good as the best, and where it won and lost most."""
    if name not in EIGHT or not cells:
        return []
    gaps: Mapping[str, float] = {cell.name: cell.gap(name) for cell in cells if name in cell.values}
    good = sum(gap <= AS_GOOD for gap in gaps.values())
    ordered = sorted(gaps, key=gaps.__getitem__)
    return [
        f"measured in {len(gaps)} cases: as good as the best in {good}; on average {statistics.fmean(gaps.values()):.0%} of what there was to gain below it",
        "  best:  " + "; ".join(f"{case} ({gaps[case]:.0%} below)" for case in ordered[:3]),
        "  worst: " + "; ".join(f"{case} ({gaps[case]:.0%} below)" for case in ordered[-3:][::-1]),
    ]
