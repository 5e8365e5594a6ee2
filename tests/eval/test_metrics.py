"""Scores by hand, and those of packages as they give them."""

import math
import sys

import pytest

from pygpt.eval import metrics


def test_a_perplexity_beyond_all_numbers_is_infinite() -> None:
    assert metrics.perplexity(0) == 1 and metrics.perplexity(709) == math.exp(709)
    assert metrics.perplexity(710) == math.inf and math.isnan(metrics.perplexity(math.nan))


def test_exact_match_and_f1() -> None:
    assert metrics.exact_match(["a", "b ", "c"], ["a", "b", "d"]) == pytest.approx(200 / 3)
    # 2 of 3 words are in 2 of 4: precision 2/3, recall 2/4.
    assert metrics.word_f1(["the cat sat"], ["The cat, dog"]) == pytest.approx(100 * 2 * 2 / 7)
    assert metrics.word_f1(["", "a"], ["", "b"]) == 50


def test_labels() -> None:
    answers, references = ["x", "x", "y", "y"], ["x", "y", "y", "y"]
    scores = metrics.label_scores(answers, references)
    assert scores["accuracy"] == 75 and scores["accuracy of the most frequent label"] == 75
    assert scores["macro F1"] == pytest.approx(100 * (2 * 1 / 3 + 2 * 2 / 5) / 2)


def test_rouge_of_words() -> None:
    pytest.importorskip("rouge_score")
    scores = metrics.rouge(["the cat sat", "same words"], ["the cat ran", "same words"])
    assert scores["ROUGE-1"] == pytest.approx((200 / 3 + 100) / 2)
    assert scores["ROUGE-2"] == pytest.approx((50 + 100) / 2)
    assert scores["ROUGE-L"] == pytest.approx((200 / 3 + 100) / 2)


def test_bleu_and_chrf() -> None:
    pytest.importorskip("sacrebleu")
    text = ["the cat sat on the mat today", "and then it went home again"]
    assert metrics.bleu(text, text)["BLEU"] == pytest.approx(100)
    assert metrics.chrf(text, text)["chrF"] == pytest.approx(100)
    assert metrics.bleu(["the cat"], ["no word here"])["BLEU"] < 20
    assert 0 < metrics.chrf(["你好世界"], ["你好"])["chrF"] < 100


@pytest.mark.parametrize("task, package", [("summarisation", "rouge-score"), ("translation", "sacrebleu")])
def test_an_absent_package_is_named(task: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ValueError, match=rf"needs the package {package}: pip install {package}, or pygpt\[eval\]"):
        metrics.require(task)
    metrics.require("generation")
