"""Which rows of the guide fit, in order and why, before anything is trained: from the data, the model, the machine, and measured cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from .. import machine
from ..comparison.arms import EIGHT
from ..curriculum import read_all
from ..dataset import Dataset
from ..errors import Refusal
from ..guide import GUIDE
from ..progress import Reporter
from ..recipe import Recipe, recipe
from ..shared import Shared, device_of
from . import foresee
from .case import Case, Wishes, planned
from .evidence import Cell, cells_of, expected, forgetting, nearest, rows_of
from .rehearsal import Rehearsal, rehearse
from .shape import shape_of
from .skill import skill_of
from .verdicts import Outlook, Verdict, verdicts

ROOM = 0.95  # of the memory at hand: a forecast is off by some percent
LORA_RANK = 4


@dataclass(frozen=True)
class Advice:
    """`verdicts` over all fourteen rows, the most fitting first; `near` are the measured cases that count most, with their distance."""

    case: Case
    verdicts: Sequence[Verdict]
    near: Sequence[tuple[float, Cell]]
    probed: bool

    @property
    def best(self) -> Verdict:
        """Of the eight methods."""
        return next(v for v in self.verdicts if GUIDE[v.row].kind == "method")

    @property
    def record(self) -> dict[str, Any]:
        shape = asdict(self.case.shape) if self.case.shape else None
        near = [{"case": cell.name, "distance": round(d, 2), "metric": cell.metric, "values": dict(cell.values)} for d, cell in self.near]
        case = {"of": self.case.name, "task": self.case.task, "shape": shape, "signs": asdict(self.case.signs), "memory_bytes": self.case.memory}
        return {"case": case, "best": self.best.row, "probed": self.probed, "rows": [asdict(v) for v in self.verdicts], "near": near}

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{v.row}</td><td>{v.fits}</td><td>{'; '.join(v.why)}</td></tr>" for v in self.verdicts)
        return f"<table><tr><th>row</th><th>fits</th><th>why</th></tr>{rows}</table>"


def recommend(
    target: str,
    given: Sequence[str] = (),
    *,
    model: str | None = None,
    task: str | None = None,
    wishes: Wishes | None = None,
    probe: bool = False,
    reporter: Reporter | None = None,
) -> Advice:
    """`target` is a recipe or a data file. With `probe` the model is loaded: the time comes from three steps of each method, and the frozen trunk is asked
    how much of the task it knows, which says much about how far it will have to move.
    """
    machine.keep_freed_memory()
    wishes, reporter = wishes or Wishes(), reporter or Reporter()
    made, signs = planned(target, list(given), model, task)
    if made is None:
        case = Case(target, signs, wishes)
        return Advice(case, verdicts(case, {}), [], False)
    data, shared = read_all(made), Shared(keeps=True) if probe else None
    shape, resident = shape_of(data), machine.resident_memory()
    plans = {name: as_method(made, name) for name in EIGHT}
    rehearsals, refused = rehearsed(plans, data, reporter)
    times = timed(plans, data, rehearsals, shared, reporter)
    shape = replace(shape, skill=skill_of(made, shared)) if shared else shape
    case = Case(target, signs, wishes, made, data, shape, rehearsals, refused)
    cells = cells_of(rows_of())
    expectations, forgot = expected(made.task, shape, EIGHT, cells), forgetting(made.task, shape, EIGHT, cells)
    outlooks = {name: outlook(case, plans[name], found, resident, times[name], expectations.get(name), forgot.get(name)) for name, found in rehearsals.items()}
    return Advice(case, verdicts(case, outlooks), nearest(made.task, shape, cells)[:3], probe)


def as_method(made: Recipe, name: str) -> Recipe:
    """The recipe with another method, whose options are the recipe's own if it is its own method."""
    plain = made.plain()
    return recipe({**plain, "method": made.method if made.method["kind"] == name else {"kind": name}})


def rehearsed(plans: Mapping[str, Recipe], data: Dataset, reporter: Reporter) -> tuple[dict[str, Rehearsal], dict[str, str]]:
    """A refusal that concerns the method is the method's; any other is the user's to read."""
    found: dict[str, Rehearsal] = {}
    refused: dict[str, str] = {}
    with reporter.bar("rehearsing") as bar:
        for i, (name, plan) in enumerate(plans.items()):
            try:
                found[name] = rehearse(plan, data)
            except Refusal as e:
                if e.where.partition(".")[0] not in ("method", "data"):
                    raise
                refused[name] = e.what
            bar.told(i + 1, len(plans))
    if not found:
        raise Refusal("no method fits", where="model", why="; ".join(refused.values()), fix="another model, or a smaller data.max_length")
    return found, refused


def timed(plans: Mapping[str, Recipe], data: Dataset, rehearsals: Mapping[str, Rehearsal], shared: Shared | None, reporter: Reporter) -> dict[str, float]:
    if shared is None:
        device = str(device_of(next(iter(plans.values()))))
        fast = {name: foresee.speed_of(r.dtype, r.width, min(2048, r.step.tokens), device) for name, r in rehearsals.items()}
        return {name: foresee.seconds(r, fast[name]) for name, r in rehearsals.items()}
    found = {}
    with reporter.bar("three steps each") as bar:
        for i, name in enumerate(rehearsals):
            found[name] = foresee.probe(plans[name], data, shared)
            bar.told(i + 1, len(rehearsals))
    return found


def outlook(case: Case, plan: Recipe, found: Rehearsal, resident: int, took: float, expectation: Any, forgot: float | None) -> Outlook:
    memory = foresee.memory(found, resident)
    fits = memory <= ROOM * case.memory
    assert case.data is not None
    mends = {} if fits else remedies(plan, case.data, resident, ROOM * case.memory)
    return Outlook(found.trainable, found.total, 4 * found.trainable, memory, took, fits, expectation, forgot, mends)


def remedies(plan: Recipe, data: Dataset, resident: int, room: float) -> dict[str, int]:
    """What would make it fit, each alone, with the memory it would take then; the gentlest first."""
    longest = max(data.train.encoded.lengths)
    tries = {
        "update.micro": {"update": {**plan.plain()["update"], "micro": max(longest, 512)}},
        "recompute": {"recompute": True},
        "data.max_length": {"data": {**plan.plain()["data"], "max_length": max(16, longest // 2)}},
        "method.rank": {"method": {**plan.method, "rank": LORA_RANK}} if plan.method["kind"] == "lora" else None,
        "model.bits": {"model": {**plan.plain()["model"], "bits": 4}} if plan.method["kind"] not in ("full", "layers") else None,
    }
    found = {}
    for key, change in tries.items():
        if change is None:
            continue
        try:
            made = recipe({**plan.plain(), **change})
            needed = foresee.memory(rehearse(made, read_all(made) if key == "data.max_length" else data), resident)
        except Refusal:
            continue
        if needed <= room:
            found[f"{key}={setting(made, key)}"] = needed
    return found


def setting(made: Recipe, key: str) -> Any:
    value: Any = made.plain()
    for part in key.split("."):
        value = value[part]
    return str(value).lower() if isinstance(value, bool) else value
