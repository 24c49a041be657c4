"""Keys of a recipe that are right one by one and wrong together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from .construct import at
from .errors import Refusal
from .methods import METHODS
from .objectives import OBJECTIVES
from .recipe_yaml import Places
from .sections import HeadOptions
from .sources.streams import Mixed
from .strategies import STRATEGIES
from .updates import UPDATES

if TYPE_CHECKING:
    from .recipe import Recipe

Check = tuple[bool, str, str, str]  # whether it is so, the key, what is wrong, what would be right


def contradictions(r: Recipe, places: Places | None, name: str = "") -> None:
    """Keys that are right one by one and wrong together. `name` is that of one of several tasks, whose recipe `r` is."""
    limits = [k for k, v in asdict(r.budget).items() if v is not None]
    learn, moves = OBJECTIVES[r.objective["kind"]], METHODS[r.method["kind"]]
    serving = [name for name, row in OBJECTIVES.items() if r.task in row.tasks]
    checks: list[Check] = [
        (r.task not in learn.tasks, "objective", f"`objective: {r.objective['kind']}` and `task: {r.task}`", f"objective: {' or '.join(serving)}; else task: {' or '.join(learn.tasks)}"),
        (bool(moves.implies) and not name and r.objective["kind"] not in moves.implies.values(), "objective", f"`method: {r.method['kind']}`, which has no parameters, and `objective: {r.objective['kind']}`", f"objective: {next(iter(moves.implies.values()), '')}, with task: {next(iter(moves.implies), '')}"),
        (not moves.learns and r.objective.get("verbaliser", "manual") != "manual", "objective.verbaliser", f"`verbaliser: {r.objective.get('verbaliser')}`, which has parameters to learn, and `method: {r.method['kind']}`, which learns none", "verbaliser: manual, or another method"),
        (not moves.learns and bool(r.update.kind), "update.kind", f"`update: {r.update.kind}` and `method: {r.method['kind']}`, which has no gradient", "leave it out: candidates are searched"),
        (bool(learn.rows) and r.head != HeadOptions(), "head", f"`head` and `objective: {r.objective['kind']}`: words of the vocabulary are the classes", "leave `head` out"),
        (learn.whole and r.update.kind == "descend", "update.kind", f"`update: descend` and `objective: {r.objective['kind']}`, in which all rows of a batch see each other", "update: gradcache"),
        (learn.fits_head and r.head.kind != "linear", "head", f"`head: {r.head.kind}` and `objective: {r.objective['kind']}`, which fits a linear one", "leave `head` out"),
        (learn.fits_head and moves.needs_head, "method", f"`method: {r.method['kind']}` and `objective: {r.objective['kind']}`, which tunes the body: nothing would move", "method: full, lora or layers; or objective: supervised"),
        (len(limits) > 1, f"budget.{limits[-1] if limits else ''}", f"two budgets: {' and '.join(limits)}", "keep one of them"),
        (not r.built_stream().chooses and (r.evaluate.patience > 0 or bool(r.evaluate.best)), "evaluate", f"choosing on the rows that judge, and `stream: {r.stream['kind']}`: " + ("they are more than those to learn from" if r.built_stream().draws else "it would choose a stage, and forget the tasks behind it"), "leave `patience` and `best` out"),
        (r.evaluate.patience > 0 and r.data.eval is None, "evaluate.patience", "`evaluate.patience` needs `data.eval`", "data.eval: 0.1 holds out a tenth of the training rows"),
        (r.task == "generate" and r.head != HeadOptions(), "head", "`head` and `task: generate`: the vocabulary is the head", "leave `head` out"),
        (r.data.multi_label and r.task != "classify", "data.multi_label", f"`data.multi_label` and `task: {r.task}`", "task: classify"),
        (bool(r.data.prompts) and r.task != "embed", "data.prompts", f"`data.prompts` and `task: {r.task}`", "task: embed; other tasks have their prompts in the texts"),
        (r.task == "embed" and replace(r.head, pool=None) != HeadOptions(), "head", "`head` and `task: embed`: the pooled states are the embedding", "head: {pool: mean}, or cls or last, and no more"),
        (r.data.learn_prompt and r.task != "generate", "data.learn_prompt", f"`data.learn_prompt` and `task: {r.task}`", "task: generate"),
        (r.data.learn_prompt and learn.still, "data.learn_prompt", f"`data.learn_prompt` and `objective: {r.objective['kind']}`: answers are compared, not what was asked", "leave it out"),
        (learn.exact and bool(r.dropout or r.method.get("dropout")), "dropout", f"dropout and `objective: {r.objective['kind']}`: the policy that is scored is the one that wrote", "dropout: 0"),
        (learn.exact and r.budget.tokens is not None, "budget.tokens", f"`budget.tokens` and `objective: {r.objective['kind']}`: how long answers are is not known before", "budget: {steps: 200}"),
        (bool(r.objective.get("environment")) != (r.data.train.partition("/")[0] == "play"), "data.train", "an environment plays, and `data: play` has one", "data: play, with objective: {kind: reinforce, environment: tictactoe}"),
        (r.data.unlabelled is not None and not learn.unlabelled, "data.unlabelled", f"`data.unlabelled` and `objective: {r.objective['kind']}`, which learns from labels", f"objective: {next(n for n, o in OBJECTIVES.items() if o.unlabelled)}"),
        (r.data.unlabelled is not None and r.task == "generate", "data.unlabelled", "`data.unlabelled` and `task: generate`: prompts without answers", "objective.on_policy: 1, or have the teacher write the answers"),
        (r.dtype == "fp32" and r.model.bits is not None, "dtype", "`dtype: fp32` and `model.bits`: a quantised base computes in bf16", "dtype: bf16"),
        (r.kernel == "varlen" and r.device == "cpu", "kernel", "`kernel: varlen` and `device: cpu`", "kernel: auto"),
        (bool(r.objective.get("smoothing")) and r.task in ("score", "generate"), "objective.smoothing", f"`objective.smoothing` and `task: {r.task}`", "leave `smoothing` out"),
    ]  # fmt: skip
    refuse(checks, places, name)


def among(r: Recipe, places: Places | None) -> None:
    """What several tasks, or one that arrives in stages, and the rest of the recipe say against each other."""
    stream, kind, form = r.built_stream(), r.stream["kind"], UPDATES[r.update.kind or "descend"]
    names = [name for name in r.tasks if not re.fullmatch(r"[A-Za-z]\w*", name)]
    fitted = [name for name, one in r.each().items() if OBJECTIVES[one.objective["kind"]].fits_head]
    strategy, how = STRATEGIES[r.strategy["kind"]], f"`strategy: {r.strategy['kind']}`"
    learns = {one.objective["kind"]: OBJECTIVES[one.objective["kind"]] for one in r.each().values()}
    strange = [one.task for one in r.each().values() if strategy.tasks and one.task not in strategy.tasks]
    exact = [name for name, one in r.each().items() if OBJECTIVES[one.objective["kind"]].exact]
    moves = METHODS[r.method["kind"]]
    worded = [one.objective for one in r.each().values() if OBJECTIVES[one.objective["kind"]].rows]
    learnt = [o["verbaliser"] for o in worded if o.get("verbaliser", "manual") != "manual"]
    refuse([
        (bool(names), "tasks", f"{names[0] if names else ''!r} is no name for a task", "letters, digits and _"),
        (bool(r.tasks) and not stream.several, "stream", f"`tasks` and `stream: {kind}`, which knows one", "stream: mix, or sequence"),
        (stream.several and not stream.parts(r.tasks), "stream", f"`stream: {kind}` and one task", "tasks: {a: {task: ..., data: ...}, b: ...}" + ("; or stream.by, the column that tells its stages apart" if kind == "sequence" else "")),
        (stream.several and not moves.learns, "method", f"`method: {r.method['kind']}` and `stream: {kind}`: a prompt is chosen on the rows of one task", "a run of its own for each task; or objective: cloze with another method"),
        (stream.several and bool(learnt), "objective.verbaliser", f"`verbaliser: {learnt[0] if learnt else ''}` and `stream: {kind}`: its vectors are those of one task's labels", "verbaliser: manual"),
        (strategy.hears and bool(worded), "strategy", f"{how}, which holds on to what heads say, and labels that are words of the vocabulary", "strategy: replay or si"),
        (r.strategy["kind"] != "naive" and kind != "sequence", "strategy", f"`strategy: {r.strategy['kind']}` and `stream: {kind}`, in which nothing is forgotten", "stream: {kind: sequence, by: a column}"),
        (bool(strategy.methods) and r.method["kind"] not in strategy.methods, "strategy", f"{how} and `method: {r.method['kind']}`", f"method: {' or '.join(strategy.methods)}"),
        (bool(strange), "strategy", f"{how} and `task: {strange[0] if strange else ''}`", f"strategy: replay; else task: {' or '.join(strategy.tasks)}"),
        (strategy.rows and any(one.exact for one in learns.values()), "strategy", f"{how} and rollouts: an old policy's samples say nothing of the present one", "strategy: naive or si"),
        (strategy.apart and any(one.whole for one in learns.values()), "strategy", f"{how} and an objective in which all rows of a batch see each other: no row has a likelihood of its own", "strategy: mas, si or replay"),
        (kind == "sequence" and r.budget.minutes is not None, "budget.minutes", "`budget.minutes` and `stream: sequence`: a stage has steps", "budget: {epochs: 3}, of each stage"),
        (stream.several and bool(fitted), "objective", f"`objective: setfit` and `stream: {kind}`: a head that is fitted on the rows of one task", "objective: supervised; or a run of its own"),
        (form.several and not isinstance(stream, Mixed), "update.kind", f"`update: {r.update.kind}` weighs tasks against each other, and `stream: {kind}` has one at a time", "tasks: {a: {task: ..., data: ...}, b: ...}, stream: mix; else update: descend"),
        (form.at_once and isinstance(stream, Mixed) and stream.batches == "one_task", "update.kind", f"`update: {r.update.kind}` compares the tasks of a step, and `stream.batches: one_task` has one in each", "stream: {kind: mix, batches: mixed}; else update: uncertainty or dwa"),
        (form.shared and r.built_method().needs_head, "update.kind", f"`update: {r.update.kind}` is about what tasks share, and `method: {r.method['kind']}` trains their heads alone", "method: lora, layers or full; else update: descend"),
        (kind == "mix" and bool(exact), f"tasks.{exact[0] if exact else ''}.objective", "rollouts among several tasks: what they remember has no place there", "stream: sequence, or a run of its own"),
    ], places)  # fmt: skip


def refuse(checks: Sequence[Check], places: Places | None, name: str = "") -> None:
    for wrong, key, what, fix in checks:
        if wrong:
            own = name and key.partition(".")[0] in ("data", "head", "objective")
            raise Refusal(what, where=at(places, f"tasks.{name}.{key}" if own else key), fix=fix)
