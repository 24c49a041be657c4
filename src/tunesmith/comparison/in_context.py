"""What the base answers by itself where it is shown some of the training rows (Brown et al. 2020): a baseline of few rows, where the model has a vocabulary to ask.

It is `method: hard_prompt` as it comes, with as many demonstrations as half a row holds, as many of each label as goes.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

from ..curriculum import read_all
from ..errors import Refusal
from ..job import assemble
from ..methods.hard_prompt import HardPrompt
from ..networks.load import load_config
from ..progress import Reporter
from ..prompting.reading import silent
from ..recipe import Recipe
from ..sections import HeadOptions
from ..shared import Shared
from ..train import Result
from .baselines import UNITS, finished, folder_for, left, plain, told, wanted_of

NAME = "in-context examples"
AROUND = 8  # tokens of a demonstration beside its text: template, label, and what parts it from the next


def in_context(recipe: Recipe, shared: Shared, reporter: Reporter) -> list[Result]:
    """None where the rows are not few, or the model has no words for them, or they would be too many prompts for what is to cost nothing."""
    if not recipe.built_stream().draws:
        return []
    data = shared.data(plain(recipe))
    assert data.eval is not None
    if data.task.kind != "single" or silent(load_config(data.source), data.reader.tokenizer):
        return []
    folder, wanted = folder_for(recipe, NAME), wanted_of(recipe)
    if there := finished(folder, wanted):
        return [there]
    prompts = len(data.eval.examples) * len(data.task.labels)
    if prompts > UNITS:
        reporter.say(
            f"{NAME}: left out, {len(data.eval.examples)} rows with {len(data.task.labels)} labels each; --methods hard_prompt asks them all", "yellow"
        )
        return []
    shots = min(int(data.reader.max_length / 2 / (statistics.fmean(data.train.encoded.lengths) + AROUND)), len(data.train.examples))
    reporter.say(f"baselines: {NAME}, {shots} of {len(data.train.examples)}")
    prompt = {"method": {"kind": "hard_prompt", "shots": shots}, "objective": wording_of(recipe), "head": HeadOptions()}
    try:
        return [asked(replace(recipe, data=replace(recipe.data, unlabelled=None), **prompt), shared, reporter)]
    except Refusal as e:  # such as labels that would be said alike
        reporter.say(f"{NAME}: left out, {e.what}", "yellow")
        return []


def asked(recipe: Recipe, shared: Shared, reporter: Reporter) -> Result:
    data = read_all(recipe)  # nobody else asks for these prompts, so they are not kept
    with shared.lent(recipe, data) as net:
        job = assemble(recipe, data, net, reporter, shared)
        _, record, lines = told(NAME, job, job.probe.ask(net), 0.0, 0)  # type: ignore[union-attr]
        if shared.keeps:
            job.delta.detach()
    return left(folder_for(recipe, NAME), {**record, "examples": recipe.method["shots"], "recipe": wanted_of(recipe)}, lines)


def wording_of(recipe: Recipe) -> dict[str, Any]:
    """The recipe's own template and words, where it has some."""
    return {"kind": "cloze"} | {k: v for k, v in recipe.objective.items() if k in HardPrompt.hands_on and recipe.objective["kind"] == "cloze"}
