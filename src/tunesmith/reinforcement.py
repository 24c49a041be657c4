"""From a recipe to rollouts, and how a reinforced run is judged. What the policy does with a prompt or an environment is in playing.py."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from .core import Batch, Network
from .dataset import Dataset, Part
from .environments import environment
from .errors import Refusal
from .evaluate.evaluate import Outcome, Probe
from .evaluate.metrics import Scores
from .networks.blank import bytes_of
from .networks.load import origin
from .networks.sample import Writer, sample
from .objectives.reinforce import Reinforce
from .playing import answers, games
from .progress import Reporter
from .recipe import Recipe, objective
from .rewards import reward
from .sources.advantages import Estimator
from .sources.rollouts import Plan, Rollouts
from .sources.table import Table
from .updates.descend import pieces
from .vllm_writer import Engine
from .vllm_writer import foreseen as writable

if TYPE_CHECKING:
    from .artifact import Tuned
    from .job import Setting

JUDGED_WITH = 977  # the seed of what a run is judged by
AT_ONCE = 64  # samples that are scored together when a run is judged


def foreseen(recipe: Recipe, data: Dataset, learn: Reinforce) -> None:
    """Raise Refusal, before weights are loaded, where what is to be asked for a reward is not there, or what is to write cannot."""
    if learn.engine == "vllm":
        writable(recipe.built_method(), recipe.model.bits, data.reader.seq2seq)
    if learn.environment is None:
        reward(learn.reward or "", load=False)
        return
    environment(learn.environment)
    if data.reader.seq2seq:
        raise Refusal(
            "an encoder-decoder reads once and answers once, and an environment has turns",
            where="objective.environment",
            fix="a decoder (GPT-2, Llama, Qwen, ...)",
        )


def engine_weighs(recipe: Recipe, data: Dataset, learn: Reinforce) -> tuple[int, int]:
    """Bytes of another engine's weights, keys and values, which are in memory all along."""
    return 0, 0 if learn.engine == "own" else bytes_of(data.source, generates=True) + int(learn.cache * 2**30)


def rollouts(source: Any, setting: Setting) -> Rollouts:
    """The source of a reinforced run, over the training rows."""
    learn = setting.objective
    assert isinstance(learn, Reinforce)
    write = sample if learn.engine == "own" else Engine(setting.delta, learn.cache)
    return built(source, setting.data.train, setting, write, cap=None if learn.engine == "own" else learn.cap)


def built(source: Any, part: Part, setting: Setting, write: Writer = sample, cap: float | None = None) -> Rollouts:
    recipe, learn = setting.recipe, setting.objective
    assert isinstance(learn, Reinforce)
    a, say = learn.row, lambda text: setting.reporter.say(text, "yellow")
    plan = Plan(
        prompts=recipe.update.batch * a.minibatches // a.group, group=a.group, batch=recipe.update.batch, epochs=a.epochs, beta=a.beta, in_reward=a.kl == "reward",
        target=learn.target, horizon=learn.horizon, keep_cut=a.truncated == "keep", penalty=learn.penalty, diverse=learn.environment is None, cap=cap,
    )  # fmt: skip
    estimator = Estimator(a.baseline, a.scale, a.whiten, learn.discount, learn.trace)  # type: ignore[arg-type]
    play = (answers if learn.environment is None else games)(part, setting, write, say)
    return Rollouts(source.table, plan, estimator, play, learn.read, partial(setting.delta.absent, cast=True), partial(pieces, tokens=recipe.update.micro), say)


def judge(part: Part, source: Any, setting: Setting) -> Probe:
    """A part on which the policy plays, each row once, always by the same dice: the mean reward is the main metric."""
    played = built(source, part, setting)

    def measure(net: Network) -> Outcome:
        batch, samples = played.judged(net, range(len(part.examples)), 1, JUDGED_WITH, chunks)
        said = {name: value for name, value in batch.said.items() if name != "beta"}
        return Outcome(Scores.of(said), [s.text for s in samples], -said["reward"], [(sum(s.scores), 1.0) for s in samples])

    return Probe(part.name, source.once, "measured", (), [None] * len(part.examples), measure=measure)


def judged(tuned: Tuned, part: Part, recipe: Recipe) -> Probe:
    """A part on which a finished policy plays, beside the base that it started from."""
    from .job import Setting

    for module in tuned.net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # the recipe had none, whatever the published configuration says
    learn = objective(part.task.kind, recipe.objective)
    learn.to(tuned.net.device).meet(tuned.net)
    data = Dataset(tuned.task, tuned.reader, origin(recipe.model.name), part, None, None)
    table = Table(part.encoded.columns, tuned.task.key, device=tuned.net.device)
    return judge(part, table, Setting(recipe, data, tuned.net, tuned.delta, learn, Reporter(quiet=True)))


def chunks(batch: Batch) -> list[list[int]]:
    """Rows that are scored together, short to long."""
    lengths = batch.ragged("ids").lengths
    rows = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    return [rows[i : i + AT_ONCE] for i in range(0, len(rows), AT_ONCE)]


def notes(recipe: Recipe, learn: Reinforce, steps: int) -> list[str]:
    """What the budget means, and what a name stands for."""
    a = learn.row
    samples, per = recipe.update.batch * a.minibatches, a.epochs * a.minibatches
    passes = f"{a.epochs} pass{'es' if a.epochs > 1 else ''}"
    return [
        f"{learn.name}: {a.paper}",
        f"{steps} steps are {-(-steps // per)} rollouts of {samples // a.group} prompts x {a.group} samples; {passes} over each, {per} steps",
    ]
