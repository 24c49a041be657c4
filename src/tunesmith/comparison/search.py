"""A small search for a method's learning rate, on a part of the training rows: what `compare --tune` does before an arm's runs.

Candidates are drawn by a tree-structured Parzen estimator (Bergstra et al. 2011) around the method's measured default, which is always the first of them,
and halved (Jamieson & Talwalkar 2016): at a quarter and at a half of its budget a run stops unless its loss is in the better half of those that came so
far. Both are optuna's. The loss, because early in a schedule the metric of a high rate is still noise; among those that come to their end the metric
decides. Every candidate is an ordinary run, in a folder of its own, judged on rows held out of the training rows (`data.inner`); the eval rows are never
looked at. The same seed draws the same candidates, so a search that was interrupted finds its finished runs and goes on.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..core import Listener, Run
from ..errors import Diverged, Refusal, not_installed
from ..evaluate.metrics import better
from ..job import agreed, default_rate
from ..listeners import Evaluate
from ..progress import Reporter
from ..recipe import Recipe
from ..train import Company, Result, run
from .arms import Arm, escaped
from .board import Herald, Left, Over, left, over
from .crew import Worker

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import Trial

SPAN = 10.0  # the default rate over the lowest, and the highest over the default
RUNGS = (0.25, 0.5, 1.0)  # shares of the budget at which candidates are compared
HELD, MOST = 0.2, 1000  # of the training rows, a share, or at most so many rows
DRAWN = 4  # candidates before the estimator has something to go by
NEVER = 10**9  # steps
TIE = 1e-6
STOPPED = "its rivals were better"


@dataclass(frozen=True)
class Found:
    """rate of the best candidate; seconds that all of them trained; tried: rate, metric on the held-out rows, and share of the budget of each."""

    rate: float
    metric: str
    seconds: float
    tried: list[tuple[float, float | None, float]]


@dataclass
class Rungs(Listener):
    """Judges a candidate at each rung, and halts it where most of its rivals were better."""

    trial: Trial
    told: int = 0

    def step(self, run: Run, record: Mapping[str, float]) -> None:
        watch = next(x for x in run.listeners if isinstance(x, Evaluate))
        judged = len(steps_of(watch.history))  # more than `told` where the run was continued
        if judged < len(RUNGS) - 1 and run.progress >= RUNGS[judged] and run.done < run.total:
            watch.ask(run)
        if self.report(watch.history):
            run.halt = run.halt or STOPPED

    def report(self, history: Sequence[Mapping[str, Any]]) -> bool:
        """Tells the trial what it has not been told; whether it says to stop."""
        stop = False
        for entry in steps_of(history)[self.told :]:
            self.told += 1
            self.trial.report(-entry["loss"], self.told)
            stop = self.told < len(RUNGS) and self.trial.should_prune()
        return stop


def steps_of(history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Evaluations after the first step."""
    return [entry for entry in history if entry["step"] > 0]


def search(worker: Worker, arm: Arm, *, trials: int) -> Found | Left:
    """The best of `trials` rates for an arm, all at its own seed. What the candidates leave behind, but for their figures, is thrown away."""
    study = asked_for_optuna(arm.recipe.seed)
    tried: list[tuple[float, float | None, float]] = []
    ends: list[tuple[float, float]] = []  # of those that came to their end: what they are worth, and the rate
    spent, metric = 0.0, ""
    try:
        centre = centre_of(worker, arm.recipe)
        study.enqueue_trial({"rate": centre})
        for k in range(trials):
            trial = study.ask(distributions(centre))
            rate = float(f"{trial.params['rate']:.3g}")
            result = candidate(worker, arm, trial, rate, k)
            value, state, share = outcome(result)
            study.tell(trial, value if state == "COMPLETE" else None, state_of(state))
            if result:
                metric, spent = result["metric"], spent + result["train_seconds"] + result["fill_seconds"]
            ends += [(value, rate)] if state == "COMPLETE" else []
            tried.append((rate, result["after"][metric] if result else None, share))
    except Refusal as e:
        worker.tell(gone := left(searched(arm.label), e))
        return gone
    if not ends:
        return Left(searched(arm.label), "it diverged at every rate that was tried")
    return Found(max(ends)[1], metric, spent, tried)


def candidate(worker: Worker, arm: Arm, trial: Trial, rate: float, k: int) -> Result | None:
    """One run; None where it diverged. The trial hears of one that an earlier command has finished as it would have then."""
    label, rungs, began = searched(arm.label), Rungs(trial), time.time()
    made = held_out(arm.recipe, rate, k, len(worker.shared.data(arm.recipe).train.examples))
    company = Company(worker.shared, [Herald(label, k, worker.tell), rungs])
    try:
        result = run(made, Reporter(quiet=True), company=company)
    except Diverged:
        worker.tell(Over(label, k, "loss", None, 0.0, True, "candidate"))
        return None
    rungs.report(result["history"])
    shutil.rmtree(result.folder / "artifact", ignore_errors=True)
    worker.tell(over(label, k, result, began, "candidate"))
    return result


def held_out(arm: Recipe, rate: float, k: int, rows: int) -> Recipe:
    """The arm's recipe with a rate, judged on a part of its training rows at the rungs and at the end."""
    folder = arm.folder.parents[2] / "search" / arm.folder.parent.name / f"candidate-{k}"
    return replace(
        arm,
        data=replace(arm.data, inner=min(HELD, MOST / rows)),
        update=replace(arm.update, rate=rate),
        evaluate=replace(arm.evaluate, every=NEVER, samples=0),
        out=escaped(folder),
    )


def outcome(result: Result | None) -> tuple[float, str, float]:
    """What the study is told: a value, higher is better, how it ended, and the share of its budget that it had."""
    if result is None:
        return 0.0, "FAIL", 0.0
    if result["stopped"] == STOPPED:
        return 0.0, "PRUNED", RUNGS[len(steps_of(result["history"])) - 1]
    return value_of(result["after"]), "COMPLETE", 1.0


def value_of(entry: Mapping[str, Any]) -> float:
    """What an evaluation is worth, higher is better: the main metric, which comes first after step and loss; few rows make it coarse, so the loss decides
    between equals. Undefined is worse than anything.
    """
    name = next(k for k in entry if k not in ("step", "loss"))
    return -1e9 if entry[name] is None else better(name) * entry[name] - TIE * entry["loss"]


def searched(label: str) -> str:
    """What the board calls the search of an arm."""
    return f"{label}, rate"


def centre_of(worker: Worker, made: Recipe) -> float:
    if made.update.rate:
        return made.update.rate
    data = worker.shared.data(made)
    with worker.shared.lent(made, data) as net:
        return default_rate(made.built_method(), net, agreed(made, data))


# ------------------------------------------------------------------------------------------------ optuna


def asked_for_optuna(seed: int) -> Study:
    try:
        import optuna
    except ImportError as e:
        raise not_installed("a search needs optuna", "tune", where="--tune", why=str(e)) from e
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    return optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(n_startup_trials=DRAWN, seed=seed), pruner=pruner)


def distributions(centre: float) -> dict[str, Any]:
    from optuna.distributions import FloatDistribution

    return {"rate": FloatDistribution(centre / SPAN, centre * SPAN, log=True)}


def state_of(name: str) -> Any:
    from optuna.trial import TrialState

    return TrialState[name]
