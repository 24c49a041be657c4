"""From predictions and references to numbers: one pure function a task, the main metric first.

Every function takes plain lists (or numpy arrays) of equal length and returns `Scores`. A metric that the data leaves undefined (a
correlation with a constant, an F1 where there is nothing to find) is None and has a reason; it is never nan and never a made-up 0. A
length mismatch is a fault of the caller and raises ValueError. Nothing here imports torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunesmith.evaluate import text_metrics

LOWER_IS_BETTER = frozenset({"loss", "rmse", "mae", "perplexity"})
NO_EXAMPLES = "there are no examples"
Values = Sequence[Any] | np.ndarray
_BIO = re.compile(r"O|[BI](-.*)?", re.DOTALL)


@dataclass(frozen=True)
class Scores:
    """`values` holds the main metric first; `reasons` says for exactly the metrics that are None why they are."""

    values: Mapping[str, float | None]
    reasons: Mapping[str, str]

    @classmethod
    def of(cls, measured: Mapping[str, float | str]) -> Scores:
        """Split numbers from reasons: `measured` has for each metric a number, or the sentence that says why there is none."""
        reasons = {name: fault for name, value in measured.items() if (fault := _fault(value))}
        return cls({name: None if name in reasons else float(value) for name, value in measured.items()}, reasons)

    @property
    def main(self) -> str:
        """The name of the metric that a run is judged by."""
        return next(iter(self.values))


def better(name: str) -> int:
    """+1 when a higher value of the metric `name` is better, -1 when a lower one is (rmse, mae, perplexity, loss)."""
    return -1 if name in LOWER_IS_BETTER else 1


def classify(predictions: Values, references: Values) -> Scores:
    """One label an example. Labels are any hashable values (ids or names), n of each.

    accuracy  in [0, 1]
    macro_f1  in [0, 1]: the mean F1 over the labels that occur in the references or the predictions
    mcc       in [-1, 1]: Matthews correlation for K classes (Gorodkin 2004, "Comparing two K-category assignments by a K-category
              correlation coefficient"); undefined when either side has one label only (scikit-learn says 0 there)
    """
    guess, truth = _codes(predictions, references)
    if not len(truth):
        return Scores.of(dict.fromkeys(("accuracy", "macro_f1", "mcc"), NO_EXAMPLES))
    size = 1 + int(max(guess.max(), truth.max()))
    hits, guessed, true = (np.bincount(codes, minlength=size) for codes in (truth[truth == guess], guess, truth))
    return Scores.of({"accuracy": hits.sum() / len(truth), "macro_f1": _macro_f1(hits, guessed, true), "mcc": _mcc(hits, guessed, true)})


def multilabel(predictions: Values, references: Values) -> Scores:
    """Any number of labels an example: two (n, labels) tables of 0 and 1. The caller has applied its threshold (0.5).

    micro_f1  in [0, 1]: F1 over all n x labels decisions; undefined when nothing is true and nothing predicted
    macro_f1  in [0, 1]: the mean F1 over the labels that occur on either side (scikit-learn with zero_division=nan)
    exact     in [0, 1]: the share of examples whose whole row is right (subset accuracy)
    """
    guess, truth = (np.asarray(table) for table in (predictions, references))
    if guess.shape != truth.shape:
        raise ValueError(f"predictions have shape {guess.shape}, references {truth.shape}")
    if not truth.size:
        return Scores.of(dict.fromkeys(("micro_f1", "macro_f1", "exact"), NO_EXAMPLES))
    guess, truth = _decisions(guess), _decisions(truth)
    hits, guessed, true = ((guess & truth).sum(0), guess.sum(0), truth.sum(0))
    micro = _f1(int(hits.sum()), int(guessed.sum()), int(true.sum()), "label")
    return Scores.of({"micro_f1": micro, "macro_f1": _macro_f1(hits, guessed, true), "exact": float((guess == truth).all(1).mean())})


def tag(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> Scores:
    """One BIO tag a token: n sentences of tags ("O", "B-PER", "I-PER"), as long on either side. All in [0, 1].

    f1, precision, recall  over entities, right only when type, start and end are (Tjong Kim Sang & De Meulder 2003, `conlleval`)
    accuracy               over tokens, "O" included

    References that are not BIO (parts of speech, BIOES) have no entities to speak of: accuracy is then the main metric, and the other
    three are undefined. Only references decide this, so a run has the same main metric before and after training.
    """
    pairs = _token_pairs(predictions, references)
    accuracy = _ratio(sum(g == t for g, t in pairs), len(pairs), "there are no tokens")
    odd = next((t for _, t in pairs if not _BIO.fullmatch(t)), None)
    if odd is not None:
        reason = f"the tag {odd!r} is not O, B-type or I-type"
        return Scores.of({"accuracy": accuracy} | dict.fromkeys(("f1", "precision", "recall"), reason))
    return Scores.of(_entity_scores(_entities(predictions), _entities(references)) | {"accuracy": accuracy})


def spans(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """The entities of one sentence as (type, start, end), end exclusive, in order.

    An I- that does not continue an entity of its own type starts one, as in `conlleval`. A tag that is not BIO ends the entity
    before it and is outside of any.
    """
    found, kind, start = [], None, 0
    for place, name in enumerate([*tags, "O"]):
        prefix, _, new = name.partition("-")
        if kind is not None and (prefix != "I" or new != kind):
            found.append((kind, start, place))
            kind = None
        if kind is None and prefix in ("B", "I"):
            kind, start = new, place
    return found


def score(predictions: Values, references: Values) -> Scores:
    """One number an example, n of each.

    spearman   in [-1, 1]: Pearson's correlation of the ranks, ties sharing their mean rank
    pearson    in [-1, 1]
    rmse, mae  in the unit of the references, 0 or more

    A correlation is undefined for fewer than two examples and for a constant side; everything is for values that are not finite.
    """
    guess, truth = (np.asarray(values, dtype=np.float64).reshape(-1) for values in (predictions, references))
    _same_length(guess, truth)
    if fault := _not_numbers(guess, truth):
        return Scores.of(dict.fromkeys(("spearman", "pearson", "rmse", "mae"), fault))
    with np.errstate(over="ignore"):  # a difference of two huge values may overflow; `Scores.of` then says so
        gap = np.abs(guess - truth)
    return Scores.of({"spearman": _pearson(_ranks(guess), _ranks(truth)), "pearson": _pearson(guess, truth), "rmse": _rms(gap), "mae": _mean(gap)})


def generate(predictions: Sequence[str], references: Sequence[str], nll: float | None = None, tokens: int = 0) -> Scores:
    """One text an example, n of each, and what the model thought of the references.

    nll, tokens  the sum of the negative log likelihoods (nats) of the labelled reference tokens, and how many those are
    perplexity   exp(nll / tokens), 1 or more; the main metric when `nll` is given, else rouge_l is
    exact_match  in [0, 1]: equal after stripping white space at both ends
    rouge_l      in [0, 1], mean over the examples; chrf, bleu: in [0, 100], over the corpus (see `text_metrics`)

    Both lists may be empty: perplexity needs no generated text.
    """
    _same_length(predictions, references)
    texts = {name: measure(predictions, references) for name, measure in text_metrics.OF_TEXTS.items()}
    if nll is None:
        return Scores.of({"rouge_l": texts["rouge_l"]} | texts | {"perplexity": "the likelihood of the references was not measured"})
    return Scores.of({"perplexity": text_metrics.perplexity(nll, tokens)} | texts)


def _fault(value: float | str) -> str:
    """The reason in a measurement, "" when it is a number."""
    if isinstance(value, str):
        return value
    return "" if math.isfinite(value) else "the value is too large for a floating-point number"


def _same_length(predictions: Values, references: Values, of: str = "") -> None:
    if len(predictions) != len(references):
        raise ValueError(f"{of}{len(predictions)} predictions for {len(references)} references")


def _codes(predictions: Values, references: Values) -> tuple[np.ndarray, np.ndarray]:
    """Labels of any kind as integers 0 .. K-1, the same integer for equal labels."""
    _same_length(predictions, references)
    # Through object arrays, because tensors hash by identity and numpy would turn [1, "a"] into text.
    guess, truth = (np.asarray(labels, dtype=object).tolist() for labels in (predictions, references))
    index = {label: code for code, label in enumerate(dict.fromkeys([*truth, *guess]))}
    guess_codes, truth_codes = (np.array([index[label] for label in labels], dtype=np.int64) for labels in (guess, truth))
    return guess_codes, truth_codes


def _decisions(table: np.ndarray) -> np.ndarray:
    """An (n, labels) table of 0 and 1 as booleans."""
    if table.ndim != 2 or not np.isin(table, (0, 1)).all():
        raise ValueError(f"expected an (examples, labels) table of 0 and 1, got shape {table.shape} with {np.unique(table)[:5]}")
    return table.astype(bool)


def _ratio(part: int, whole: int, reason: str) -> float | str:
    return part / whole if whole else reason


def _f1(hits: int, guessed: int, true: int, of: str) -> float | str:
    """2PR / (P + R), written so that it is defined as soon as there is anything on either side (van Rijsbergen 1979)."""
    return _ratio(2 * hits, guessed + true, f"no {of} occurs in the references or the predictions")


def _macro_f1(hits: np.ndarray, guessed: np.ndarray, true: np.ndarray) -> float | str:
    """Mean F1 over the labels that occur at all; the three are counts a label, shape (labels,)."""
    seen = guessed + true > 0
    if not seen.any():
        return "no label occurs in the references or the predictions"
    return float(np.mean(2 * hits[seen] / (guessed + true)[seen]))


def _mcc(hits: np.ndarray, guessed: np.ndarray, true: np.ndarray) -> float | str:
    """Gorodkin's R_K from the margins of the confusion table alone: counts a label, shape (labels,)."""
    # Python integers: the squares are exact at any size.
    margins = [int(a) * int(b) for a, b in zip(guessed, true, strict=True)]
    total = int(true.sum())
    spread = [total**2 - sum(int(count) ** 2 for count in side) for side in (guessed, true)]
    if not all(spread):
        return f"all {'references' if spread[0] else 'predictions'} have the same label"
    return (int(hits.sum()) * total - sum(margins)) / (math.sqrt(spread[0]) * math.sqrt(spread[1]))


def _token_pairs(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """All (predicted, true) tags in order; refuses a sentence whose two sides differ in length."""
    _same_length(predictions, references)
    for place, (guess, truth) in enumerate(zip(predictions, references, strict=True)):
        _same_length(guess, truth, f"sentence {place}: ")
    return [pair for guess, truth in zip(predictions, references, strict=True) for pair in zip(guess, truth, strict=True)]


def _entities(sentences: Sequence[Sequence[str]]) -> set[tuple[int, str, int, int]]:
    return {(place, *span) for place, tags in enumerate(sentences) for span in spans(tags)}


def _entity_scores(guess: set[tuple[int, str, int, int]], truth: set[tuple[int, str, int, int]]) -> dict[str, float | str]:
    hits = len(guess & truth)
    return {
        "f1": _f1(hits, len(guess), len(truth), "entity"),
        "precision": _ratio(hits, len(guess), "no entity is predicted"),
        "recall": _ratio(hits, len(truth), "the references have no entity"),
    }


def _not_numbers(guess: np.ndarray, truth: np.ndarray) -> str:
    """Why nothing can be said about these values, "" when something can."""
    if not len(truth):
        return NO_EXAMPLES
    bad = next((side for side, values in (("predictions", guess), ("references", truth)) if not np.isfinite(values).all()), "")
    return f"the {bad} hold nan or inf" if bad else ""


def _pearson(guess: np.ndarray, truth: np.ndarray) -> float | str:
    """Correlation of two (n,) arrays of finite values."""
    if len(truth) < 2:
        return "a correlation needs two examples"
    sides = [values / (np.abs(values).max() or 1.0) for values in (guess, truth)]  # sums of huge or tiny squares stay in range
    for name, values in zip(("predictions", "references"), sides, strict=True):
        if values.min() == values.max():
            return f"the {name} are constant"
    guess, truth = ((values - values.mean()) / np.linalg.norm(values - values.mean()) for values in sides)
    return float(np.clip(guess @ truth, -1.0, 1.0))


def _ranks(values: np.ndarray) -> np.ndarray:
    """1-based ranks of an (n,) array; equal values share the mean of their ranks."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def _rms(gap: np.ndarray) -> float:
    peak = float(gap.max()) or 1.0
    return peak * math.sqrt(float(np.mean((gap / peak) ** 2))) if math.isfinite(peak) else math.inf


def _mean(gap: np.ndarray) -> float:
    with np.errstate(over="ignore"):
        return float(gap.mean())


METRICS: dict[str, Callable[..., Scores]] = {
    "classify": classify,
    "multilabel": multilabel,
    "tag": tag,
    "score": score,
    "generate": generate,
}
