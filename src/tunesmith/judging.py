"""How a run is judged: its parts as probes, with what each row should have been answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .dataset import Dataset, Part, labels_in
from .evaluate.evaluate import Probe
from .evaluate.several import all_of
from .listeners import is_open
from .networks.decode import Sampling
from .predicting import write
from .prompting.asking import judge as in_words
from .recipe import Recipe
from .reinforcement import judge
from .sources.text.encode import Reader
from .sources.text.examples import Dialogue

if TYPE_CHECKING:
    from .job import Setting


def probe_of_all(part: str, data: Dataset, source: Callable[[str, Part], Any], settings: Mapping[str, Setting]) -> Probe | None:
    """What judges a run: the one part of this name, or those of all tasks together."""
    probes = {}
    for name, one in data.each.items():
        found, setting = getattr(one, part), settings[name]
        if found:
            probed = JUDGES.get(setting.recipe.objective["kind"], by_labels)
            probes[name] = probed(found, source(name, found), setting)
    if not data.parts:
        return next(iter(probes.values()), None)
    index = {label: i for i, label in enumerate(data.task.labels)}
    last = {name: max((index.get(label, 0) for e in getattr(data.each[name], part).examples for label in labels_in(e)), default=0) for name in probes}
    return all_of(probes, lambda net, name: is_open(net, data.each[name].task.key, last[name])) if probes else None


def by_labels(part: Part, source: Any, setting: Setting) -> Probe:
    return probe_of(part, source, setting.data.reader, setting.recipe)


def probe_of(part: Part, source: Any, reader: Reader, recipe: Recipe) -> Probe:
    """A part that can be asked about; its rows come from the source."""
    return Probe(part.name, source.once, part.task.kind, part.task.labels, references(part, part.task.kind), writer(part, reader, recipe))


def references(part: Part, kind: str) -> list[Any]:
    examples: Any = part.examples
    ways = {
        "single": lambda e: e.labels[0],
        "multi": lambda e: e.labels,
        "cloze": lambda e: e.labels[0],
        "score": lambda e: e.score,
        "tag": lambda e: list(e.tags),
        "generate": lambda e: e.turns[-1].content if isinstance(e, Dialogue) else e.text,
        "preferred": lambda e: e.chosen.turns[-1].content,
        "reward": lambda e: e.chosen.turns[-1].content,
        "judged": lambda e: e.good,
        "pairs": lambda e: 1,
        "similar": lambda e: e.score,
        "grouped": lambda e: e.label,
        "texts": lambda e: None,
    }
    return [ways[kind](e) for e in examples]


def writer(part: Part, reader: Reader, recipe: Recipe) -> Callable[[Any], list[str]] | None:
    """For dialogues: what the model answers to the first few; plain text is judged by its perplexity."""
    first: list[Any] = list(part.examples[: recipe.evaluate.samples])
    asked = [d.turns[:-1] for d in (getattr(e, "chosen", e) for e in first) if isinstance(d, Dialogue) and recipe.task == "generate"]
    return (lambda net: write(net, reader, asked, Sampling(recipe.evaluate.max_new_tokens))) if asked else None


JUDGES: dict[str, Callable[[Part, Any, Setting], Probe]] = {"reinforce": judge, "cloze": in_words}  # objective -> how its runs are judged, where not by labels
