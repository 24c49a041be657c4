"""The guide's fourteen rows, each asked whether it fits a case, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..guide import GUIDE
from .case import Case
from .evidence import Expectation

SETFIT = "contrast the body, then fit a head (objective: setfit): the best route where it was measured, on six labels of 8 rows (docs/proofs.md)"
MANY = 20  # labels; measured on 6 and on 77, the border is a guess
FEW = 16  # rows a label under which every choice is dominated by the draw
YES, MAYBE, NO = "yes", "maybe", "no"


@dataclass(frozen=True)
class Outlook:
    """What one of the eight methods will be here.

    memory, seconds   foretold; `fits` says whether the memory is there, `mends` what would make it fit, each with its number
    expected          from measured cases, or None where nothing like this was measured
    forgot            by how much such runs raised the loss on a general text, in nats (nearest cases), or None
    """

    trainable: int
    total: int
    artifact: int
    memory: int
    seconds: float
    fits: bool
    expected: Expectation | None = None
    forgot: float | None = None
    mends: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """`score` orders the rows; it has no unit."""

    row: str
    fits: str
    score: float
    why: list[str]
    outlook: Outlook | None = None


def verdicts(case: Case, outlooks: Mapping[str, Outlook]) -> list[Verdict]:
    """All fourteen, the most fitting first."""
    found = [of_method(name, case, outlooks.get(name)) for name, row in GUIDE.items() if row.kind == "method"]
    found += [Verdict(name, *OTHERS[name](case)) for name, row in GUIDE.items() if row.kind != "method"]
    return sorted(found, key=lambda v: (-[NO, MAYBE, YES].index(v.fits), -v.score))


# ------------------------------------------------------------------------------------------------ what may move


def of_method(name: str, case: Case, outlook: Outlook | None) -> Verdict:
    if name in case.refused:
        return Verdict(name, NO, 0.0, [case.refused[name]])
    if outlook is None:
        return Verdict(name, MAYBE, 0.0, ["goes with the rows above; what it costs can be said when there is a recipe"])
    gap, cautious = (outlook.expected.gap, outlook.expected.cautious) if outlook.expected else (0.5, 0.5)
    score, why, fits = 1 - cautious, [expectation(outlook)], YES if gap < 0.15 else MAYBE
    if not outlook.fits:
        fits = MAYBE if outlook.mends else NO
        score -= 0.5
        why.insert(0, f"needs {gigabytes(outlook.memory)} of {gigabytes(case.memory)}" + mended(outlook.mends))
    if case.wishes.tasks > 1:
        size = outlook.artifact / 1e6
        why.append(f"{case.wishes.tasks} tasks are {case.wishes.tasks} x {size:.2f} MB beside one base")
        if outlook.trainable > 0.1 * outlook.total:
            score, fits = score - 0.3, MAYBE if fits == YES else fits
            why[-1] = f"{case.wishes.tasks} tasks are {case.wishes.tasks} x {size:.0f} MB: no base is shared"
    if case.wishes.keep and outlook.forgot is not None:
        score -= 0.05 * max(0.0, outlook.forgot)
        why.append(f"raised the loss on a general text by {outlook.forgot:.2f} nats in like cases")
    return Verdict(name, fits, score, [*why, *BESIDE[name](case)] if name in BESIDE else why, outlook)


def designed(case: Case) -> list[str]:
    """Prompts without parameters, where there is little to learn from."""
    if case.task != "classify" or case.shape is None or not case.shape.labels or case.each > FEW:
        return []
    return ["with so few rows also words instead of vectors: `method: hard_prompt` trains nothing, `objective: cloze` trains any method through label words"]


BESIDE: dict[str, Callable[[Case], list[str]]] = {"prompt": designed}


def expectation(outlook: Outlook) -> str:
    found = outlook.expected
    if found is None:
        return "nothing like this was measured yet"
    sure = "well known" if found.weight >= 3 else "known from few cases" if found.weight >= 1 else "a guess from far cases"
    below = f"{found.gap:.0%} of what there is to gain below the best, give or take {found.error:.0%}"
    return ("as good as the best, " if found.gap < 0.02 else "") + f"{below} ({sure})"


def mended(mends: Mapping[str, int]) -> str:
    return "; would fit with " + " or ".join(f"{what} ({gigabytes(size)})" for what, size in mends.items()) if mends else ""


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


# ------------------------------------------------------------------------------------------------ what is learnt from what


def distil(case: Case) -> tuple[str, float, list[str]]:
    if case.wishes.teacher:
        return YES, 0.9, [f"{case.wishes.teacher} can teach a smaller model, from texts without labels too"]
    if case.signs.unlabelled:
        return MAYBE, 0.5, ["texts without labels: a larger model could label them (--teacher)"]
    return NO, 0.1, ["no larger model is named (--teacher)"]


def sequence(case: Case) -> tuple[str, float, list[str]]:
    if case.wishes.over_time:
        return YES, 0.95, ["tasks arrive one after another: without replay or an anchor the earlier ones are forgotten"]
    if case.signs.groups and case.signs.groups[0] in ("stage", "domain"):
        return MAYBE, 0.4, [f"the column {case.signs.groups[0]!r} splits the rows in {case.signs.groups[1]}; if they arrive one after another (--over-time)"]
    return NO, 0.1, ["all data is here at once"]


def few(case: Case) -> tuple[str, float, list[str]]:
    if case.shape is None or not case.shape.labels:
        return NO, 0.1, ["nothing is classified"]
    if case.each <= FEW or case.shape.rarest <= 4:
        why = [f"{case.each:.0f} rows a label, {case.shape.rarest} of the rarest: one draw is noise, judge over several"]
        return YES, 0.9, why + ([SETFIT] if case.kind == "encoder" and 1 < case.shape.labels <= MANY else [])
    return NO, 0.1, [f"{case.each:.0f} rows a label are not few"]


def mix(case: Case) -> tuple[str, float, list[str]]:
    if case.recipe and case.recipe.tasks:
        return YES, 1.6, [f"{len(case.recipe.tasks)} tasks in one recipe; `tunesmith compare` also trains each alone, and names negative transfer"]
    if case.signs.groups and not case.wishes.over_time:
        return YES, 0.7, [f"the column {case.signs.groups[0]!r} names {case.signs.groups[1]} tasks or domains that can share one network"]
    if case.wishes.tasks > 1:
        return MAYBE, 0.5, [f"{case.wishes.tasks} tasks: one network for all is the smallest to serve, if they are related"]
    return NO, 0.1, ["one task"]


def reinforce(case: Case) -> tuple[str, float, list[str]]:
    if case.signs.preferences:
        return YES, 1.6, ["better and worse answers: learn from the preference (DPO), or a reward model and PPO"]
    if case.wishes.reward:
        return YES, 0.9, ["a reward that can be computed: maximise it (GRPO, PPO); begin with supervised training if the base cannot do the task at all"]
    return NO, 0.1, ["no reward (--reward) and no preferences in the data"]


def contrast(case: Case) -> tuple[str, float, list[str]]:
    if case.task == "embed":
        return YES, 1.6, ["texts are to be embedded"]
    if case.signs.pairs:
        return YES, 1.6, ["pairs that belong together, and no labels"]
    if case.task == "score":
        return MAYBE, 0.6, ["scored pairs of texts: an embedder trained on them (CoSENT) can be searched with"]
    if case.shape and case.shape.labels > 1 and case.each <= FEW and case.kind == "encoder":
        seen = SETFIT if case.shape.labels <= MANY else "objective: setfit; with as many labels it was no better than a linear probe where it was measured"
        return MAYBE, 0.7, [f"{case.each:.0f} rows a label make many more pairs: {seen}"]
    return NO, 0.1, ["no pairs, and enough labels"]


OTHERS: dict[str, Callable[[Case], tuple[str, float, list[str]]]] = {
    "distil": distil,
    "sequence": sequence,
    "few": few,
    "mix": mix,
    "reinforce": reinforce,
    "contrast": contrast,
}
