"""How good a model is at the task that it was fine-tuned for, or at text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pygpt.eval import metrics
from pygpt.eval.answers import tell_labels, write_answers
from pygpt.eval.likelihood import mean_loss
from pygpt.tasks.form import LabelForm, Question, TaskForm
from pygpt.tasks.records import BadLines, Record
from pygpt.text.rows import Ids


@dataclass(frozen=True)
class Report:
    """What an evaluation found.

    Attributes:
        scores: by name; percent, but for perplexities.
        count: how many answers were scored.
        answers: each reference, with the answer beside it.
    """

    scores: dict[str, float]
    count: int
    answers: list[tuple[str, str]]


def evaluate_task(
    model: Any,
    form: TaskForm,
    records: Sequence[Record],
    bad: BadLines,
    *,
    max_new_tokens: int = 64,
    batch_size: int = 16,
    truncate: bool = False,
) -> Report:
    """Score a model's answers to a task's examples, and how likely it finds the right ones.

    Args:
        model: in eval mode.
        form: of the task.
        records: the examples.
        bad: is told of examples that the model cannot read.
        max_new_tokens: the most tokens of an answer.
        batch_size: examples at a time; answers do not depend on it.
        truncate: cut given texts that are too long.

    Raises:
        ValueError: naming the line of an example that the model cannot read; if none is left; or if a package for the
            task's scores is missing, before any work.
    """
    if max_new_tokens >= form.context_length:
        raise ValueError(f"max_new_tokens must be less than the context of {form.context_length}, not {max_new_tokens}")
    metrics.require(form.task)
    encoded: list[tuple[Ids, ...]] = []
    questions: list[Question] = []
    for record in records:
        try:
            example = form.encode(record.values, truncate)
            asked = [] if isinstance(form, LabelForm) else form.ask(record.values, max_new_tokens, truncate)
        except ValueError as error:
            bad.add(record.line, str(error))
            continue
        encoded.append(example)
        questions += asked
    if not encoded:
        raise ValueError(f"no example is left: {bad}")
    order = sorted(range(len(encoded)), key=lambda place: len(encoded[place][0]))
    batches = (
        form.batch([encoded[place] for place in order[first : first + batch_size]])
        for first in range(0, len(order), batch_size)
    )
    loss, _ = mean_loss(model, batches, form.targets, form.arguments)
    if isinstance(form, LabelForm):
        answers = tell_labels(model, form, encoded, batch_size)
        references = [form.labels[int(label[0])] for _, label in encoded]
        scores = {"loss": loss}
    else:
        answers = write_answers(model, form, questions, max_new_tokens, batch_size)
        references = [question.answer for question in questions]
        scores = {"perplexity": metrics.perplexity(loss)}
    scores |= metrics.answer_scores(form.task, answers, references)
    return Report(scores, len(answers), list(zip(references, answers, strict=True)))


def evaluate_text(model: Any, batches: Any, byte_count: float) -> Report:
    """How likely a language model finds a text.

    Args:
        model: a `pygpt.GPT`, in eval mode.
        batches: (ids, targets) of it.
        byte_count: bytes of UTF-8 that a target stands for, on average.
    """
    loss, count = mean_loss(model, batches, 1, ("ids", "targets"))
    scores = {"loss": loss, "perplexity": metrics.perplexity(loss), "bits per byte": loss / math.log(2) / byte_count}
    return Report(scores, count, [])
