"""What an evaluation counts: examples that are read, tokens of a text."""

import math
from typing import Any

import pytest
import torch

from pygpt import GPT, GPTConfig
from pygpt.eval.scores import evaluate_task, evaluate_text
from pygpt.tasks.form import make_form, needed_tokens
from pygpt.tasks.records import BadLines, Record
from pygpt.text import ByteTokenizer
from tests.models.test_gpt import lively

SIZES: dict[str, Any] = {"context_length": 32, "num_layers": 1, "num_heads": 2, "embedding_dim": 16}
PLAIN = ByteTokenizer()


@pytest.fixture(scope="module")
def made() -> tuple[GPT, Any]:
    tokenizer = PLAIN.with_special(needed_tokens("generation", GPT(GPTConfig(257, **SIZES)), PLAIN, None))
    model = lively(GPTConfig(tokenizer.vocab_size, **SIZES)).eval()
    return model, make_form("generation", model, tokenizer, None)


def records(*prompts: str) -> list[Record]:
    return [Record(line, {"prompt": prompt, "completion": "it"}) for line, prompt in enumerate(prompts, start=1)]


def test_a_tasks_scores_do_not_depend_on_the_batch(made: tuple[GPT, Any]) -> None:
    model, form = made
    report = evaluate_task(model, form, records("a", "to b", "c"), BadLines("f"), max_new_tokens=4)
    assert report.count == 3 and report.scores.keys() == {"perplexity", "exact match", "F1"}
    assert [reference for reference, _ in report.answers] == ["it"] * 3
    alone = evaluate_task(model, form, records("a", "to b", "c"), BadLines("f"), max_new_tokens=4, batch_size=1)
    assert alone.answers == report.answers
    assert alone.scores["perplexity"] == pytest.approx(report.scores["perplexity"], rel=1e-6)


def test_examples_that_do_not_fit_are_named_or_left_out(made: tuple[GPT, Any]) -> None:
    model, form = made
    asked = records("a", "x" * 40)
    with pytest.raises(ValueError, match="f, line 2"):
        evaluate_task(model, form, asked, BadLines("f"), max_new_tokens=4)
    bad = BadLines("f", skip=True)
    assert evaluate_task(model, form, asked, bad, max_new_tokens=4).count == 1 and bad.count == 1
    with pytest.raises(ValueError, match="no example is left"):
        evaluate_task(model, form, asked[1:], BadLines("f", skip=True), max_new_tokens=4)
    with pytest.raises(ValueError, match="max_new_tokens must be less than the context of 32, not 32"):
        evaluate_task(model, form, asked, BadLines("f"), max_new_tokens=32)


def test_a_text_is_scored_per_token_and_per_byte(made: tuple[GPT, Any]) -> None:
    model, _ = made
    ids = torch.randint(256, (3, 9), generator=torch.Generator().manual_seed(0))
    batches = [(ids[:2, :-1], ids[:2, 1:]), (ids[2:, :-1], ids[2:, 1:])]
    report = evaluate_text(model, batches, 1.5)
    with torch.no_grad():
        loss = float(model.loss(ids[:, :-1], ids[:, 1:]))
    assert report.count == 24 and report.scores["loss"] == pytest.approx(loss, rel=1e-6)
    assert report.scores["perplexity"] == pytest.approx(math.exp(loss), rel=1e-6)
    assert report.scores["bits per byte"] == pytest.approx(loss / math.log(2) / 1.5, rel=1e-6)
