"""Few labels and many texts: several runs learn from the labels, say what the texts are, and a student learns from what they say together.

PET and, in generations, iPET (Schick & Schuetze 2021, https://arxiv.org/abs/2001.07676, sections 3.4 and 3.5), with runs of any method and objective as members in
place of patterns, and soft labels in every generation in place of the likeliest one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .dataset import read_data
from .errors import Refusal
from .progress import Reporter
from .recipe import Recipe, recipe
from .train import Result, run

TEMPERATURE = 2.0  # section 4: of the soft labels
GROWTH = 5  # section 3.5: how many times the rows of the generation before


def pet(
    made: Recipe,
    members: Sequence[Mapping[str, Any]],
    unlabelled: str,
    *,
    generations: int = 0,
    temperature: float = TEMPERATURE,
    alpha: float = 0.9,
    reporter: Reporter | None = None,
) -> Result:
    """`made` is a recipe on few labelled rows; `members` are what each teacher has otherwise: method, objective. `unlabelled` is a file of texts.

    First every member learns from the labels. In each of `generations` (iPET; none is PET) it then learns anew, by its own method, from the labels and from what
    the others of the generation before say of some of the texts, five times as many each time. At last a student by the recipe's method learns from what all members
    of the last generation say of all texts, with weight `alpha`. All have the same labelled rows. The student's run lies in the recipe's folder, the members' within it.
    """
    reporter = reporter or Reporter()
    if not members or (generations and len(members) < 2):
        raise Refusal(f"{len(members)} members to teach" + ("; each learns from the others" if generations else ""), where="members", fix="two at least")
    known, plain = len(read_data(made).train.examples), made.plain()

    def distilled(plan: Mapping[str, Any], teachers: Sequence[str], limit: int | None) -> dict[str, Any]:
        data = {**plain["data"], "unlabelled": unlabelled, "unlabelled_limit": limit}
        return {**plan, "data": data, "objective": {"kind": "distil", "teacher": list(teachers), "temperature": temperature, "alpha": alpha}}

    def trained(plan: Mapping[str, Any], generation: int, member: int) -> str:
        return str(run(recipe({**plan, "out": str(made.folder / f"generation-{generation}" / str(member))}), reporter).folder)

    plans = [{**plain, **member} for member in members]
    teachers = [trained(plan, 0, i) for i, plan in enumerate(plans)]
    for g in range(1, generations + 1):
        asked = [distilled(plan, [*teachers[:i], *teachers[i + 1 :]], known * GROWTH**g) for i, plan in enumerate(plans)]
        teachers = [trained(plan, g, i) for i, plan in enumerate(asked)]
    return run(recipe(distilled(plain, teachers, None)), reporter)
