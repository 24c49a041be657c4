"""How near a generated text is to its reference. Every function returns a number, or the sentence that says why there is none.

Texts come as two lists of equal length, one reference an example.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from types import ModuleType

# Scripts that put no space between words: Han with its radicals and extensions, kana, bopomofo, and their punctuation and wide forms.
# Hangul is not among them: Korean separates its words.
_KANA = "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9d"
_CJK = "\u2e80-\u2fdf\u3001-\u303f\u3041-\u312f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\ufe30-\ufe4f\uff01-\uff9f\U00020000-\U0003ffff"
_CHARACTER = re.compile(f"[{_CJK}]")
_KANA_CHARACTER = re.compile(f"[{_KANA}]")
_TOKEN = re.compile(rf"[{_CJK}]|[^\s{_CJK}]+")

NO_TEXTS = "there are no generated texts"
EMPTY_REFERENCES = "every reference is empty"


def perplexity(nll: float, tokens: int) -> float | str:
    """exp(nll / tokens): `nll` a sum of negative log likelihoods in nats, `tokens` how many were summed."""
    if not tokens:
        return "no token was scored"
    if not math.isfinite(nll):
        return "the likelihood of the references is nan or inf"
    try:
        return math.exp(nll / tokens)
    except OverflowError:
        return f"exp({nll / tokens:.0f}) is too large for a floating-point number"


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> float | str:
    """The share of texts in [0, 1] that equal their reference once white space at both ends is gone; case counts."""
    if not references:
        return NO_TEXTS
    return sum(guess.strip() == truth.strip() for guess, truth in zip(predictions, references, strict=True)) / len(references)


def rouge_l(predictions: Sequence[str], references: Sequence[str]) -> float | str:
    """Mean ROUGE-L in [0, 1] (Lin 2004): F1 of the longest common subsequence of `tokens_of` the two texts; no stemming.

    Two empty texts are equal, hence 1; an empty one against any other is 0.
    """
    if not references:
        return NO_TEXTS
    pairs = ((tokens_of(guess), tokens_of(truth)) for guess, truth in zip(predictions, references, strict=True))
    return sum(2 * longest_common(a, b) / (len(a) + len(b)) if a or b else 1.0 for a, b in pairs) / len(references)


def chrf(predictions: Sequence[str], references: Sequence[str]) -> float | str:
    """Corpus chrF in [0, 100] (Popovic 2015): F2 of character 1- to 6-grams without white space, sacrebleu's defaults."""
    library = _sacrebleu(references)
    return library if isinstance(library, str) else library.corpus_chrf(predictions, [references]).score


def bleu(predictions: Sequence[str], references: Sequence[str]) -> float | str:
    """Corpus BLEU-4 in [0, 100] (Papineni 2002; Post 2018), case kept, smoothing `exp`, tokenizer by `bleu_tokenizer`.

    Undefined when no reference has four tokens: a perfect copy would then score 0.
    """
    library = _sacrebleu(references)
    if isinstance(library, str):
        return library
    # force: sacrebleu otherwise logs a guess that the texts were tokenised before.
    measure = library.BLEU(tokenize=bleu_tokenizer(references), force=True)
    result = measure.corpus_score(predictions, [references])
    if not result.totals[3] and not measure.corpus_score(references, [references]).totals[3]:
        return "no reference has the four tokens that BLEU compares"
    return result.score


def bleu_tokenizer(references: Sequence[str]) -> str:
    """sacrebleu's tokenizer for these texts: 13a, or where CJK characters are the majority zh, or char.

    zh keeps a run of kana as one word, so Japanese (more than a tenth of its CJK characters are kana) is compared by character;
    ja-mecab would need a dictionary.
    """
    text = "".join("".join(reference.split()) for reference in references)
    cjk = len(_CHARACTER.findall(text))
    if 2 * cjk <= len(text):
        return "13a"
    return "char" if 10 * len(_KANA_CHARACTER.findall(text)) > cjk else "zh"


def tokens_of(text: str) -> list[str]:
    """Lower-cased words between white space, every CJK character (Hangul excepted) a word of its own; punctuation stays attached."""
    return _TOKEN.findall(text.lower())


def longest_common(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    Bit-parallel (Hyyro 2004, "Bit-parallel LCS-length computation revisited"): one row of the table is one integer, and a zero bit
    marks a step up; thousands of tokens take milliseconds.
    """
    where: dict[str, int] = {}
    for place, token in enumerate(left):
        where[token] = where.get(token, 0) | 1 << place
    full = row = (1 << len(left)) - 1
    for token in right:
        match = row & where.get(token, 0)
        row = ((row + match) | (row - match)) & full
    return len(left) - row.bit_count()


def _sacrebleu(references: Sequence[str]) -> ModuleType | str:
    """The library, or why there is nothing for it to do. Imported late: it is slow to load, and optional."""
    if not references:
        return NO_TEXTS
    if not any(reference.strip() for reference in references):
        return EMPTY_REFERENCES
    try:
        import sacrebleu
    except ImportError:
        return "sacrebleu is not installed (pip install sacrebleu)"
    return sacrebleu


OF_TEXTS: dict[str, Callable[[Sequence[str], Sequence[str]], float | str]] = {
    "exact_match": exact_match,
    "rouge_l": rouge_l,
    "chrf": chrf,
    "bleu": bleu,
}
