"""Scores of answers beside what was asked for, in percent.

ROUGE is the package rouge-score's, BLEU and chrF are sacrebleu's. Exact match, F1 and accuracy are a line each.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any


def perplexity(loss: float) -> float:
    """The exponential of a mean loss; infinite where a float64 does not reach so far, as NaN is NaN."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def exact_match(answers: Sequence[str], references: Sequence[str]) -> float:
    """The share of answers that are the reference, whitespace at the ends aside."""
    return _percent(a.strip() == r.strip() for a, r in zip(answers, references, strict=True))


def word_f1(answers: Sequence[str], references: Sequence[str]) -> float:
    """The mean, over answers, of the harmonic mean of precision and recall of their words, without case.

    Source: Rajpurkar et al., "SQuAD", 2016, section 6.1.
    """
    return 100 * _mean([_word_f1(a, r) for a, r in zip(answers, references, strict=True)])


def label_scores(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Accuracy; F1 of each label that occurs, all labels weighing the same; accuracy of the most frequent label."""
    f1 = []
    for label in sorted({*answers, *references}):
        both = sum(a == r == label for a, r in zip(answers, references, strict=True))
        f1.append(2 * both / (answers.count(label) + references.count(label)))
    return {
        "accuracy": _percent(a == r for a, r in zip(answers, references, strict=True)),
        "macro F1": 100 * _mean(f1),
        "accuracy of the most frequent label": 100 * max(Counter(references).values()) / len(references),
    }


def rouge(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L (F), without stemming: of words of the letters a to z and digits only.

    Raises:
        ValueError: if the package rouge-score is not installed.

    Source: Lin, "ROUGE", 2004.
    """
    names = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL"}
    scorer = _package("rouge_score.rouge_scorer", "ROUGE", "rouge-score").RougeScorer(list(names.values()))
    scores = [scorer.score(r, a) for a, r in zip(answers, references, strict=True)]
    return {name: 100 * _mean([score[kind].fmeasure for score in scores]) for name, kind in names.items()}


def chrf(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """chrF2 of the whole corpus; it needs no words, so that it fits any script.

    Raises:
        ValueError: if the package sacrebleu is not installed.

    Source: Popović, "chrF", 2015.
    """
    score = _package("sacrebleu", "chrF", "sacrebleu").corpus_chrf(list(answers), [list(references)])
    return {"chrF": float(score.score)}


def bleu(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """BLEU of the whole corpus, with sacrebleu's default tokeniser (13a).

    Raises:
        ValueError: if the package sacrebleu is not installed.

    Source: Post, "A Call for Clarity in Reporting BLEU Scores", 2018.
    """
    score = _package("sacrebleu", "BLEU", "sacrebleu").corpus_bleu(list(answers), [list(references)])
    return {"BLEU": float(score.score)}


def require(task: str) -> None:
    """Raise a ValueError if a package is missing that a task's scores come from."""
    if task == "summarisation":
        rouge(["a"], ["a"])
    if task in ("summarisation", "translation"):
        chrf(["a"], ["a"])


def answer_scores(task: str, answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The scores of a task's answers."""
    if task == "classification":
        return label_scores(answers, references)
    scores = {"exact match": exact_match(answers, references)}
    if task == "summarisation":
        return scores | rouge(answers, references) | chrf(answers, references)
    if task == "translation":
        return scores | bleu(answers, references) | chrf(answers, references)
    return scores | {"F1": word_f1(answers, references)}


def _word_f1(answer: str, reference: str) -> float:
    ours, theirs = (re.findall(r"\w+|[^\w\s]", text.lower()) for text in (answer, reference))
    both = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * both / (len(ours) + len(theirs)) if both else float(not ours and not theirs)


def _percent(hits: Any) -> float:
    return 100 * _mean([float(hit) for hit in hits])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _package(module: str, what: str, package: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(f"{what} needs the package {package}: pip install {package}, or pygpt[eval]") from None
