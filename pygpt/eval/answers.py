"""What models answer: texts that they write, labels that they tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pygpt.models import Seq2Seq
from pygpt.tasks.form import LabelForm, Question, TaskForm
from pygpt.text.rows import stacked


@torch.no_grad()
def write_answers(
    model: Any, form: TaskForm, questions: Sequence[Question], max_new_tokens: int, batch_size: int = 16
) -> list[str]:
    """The greedy answer to each question: what comes up to the token that ends an answer.

    Args:
        model: a `GPT` or a `Seq2Seq`.
        form: of its task.
        questions: from the form's ``ask``.
        max_new_tokens: the most tokens of an answer; a prompt and this many fit into the model's context.
        batch_size: questions at a time; answers do not depend on it.
    """
    order = sorted(range(len(questions)), key=lambda i: len(questions[i].prompt))  # rows of one length waste nothing
    answers = [""] * len(questions)
    device = model.token_embedding.weight.device
    with model.session(max_new_tokens):
        for first in range(0, len(order), batch_size):
            places = order[first : first + batch_size]
            lengths = torch.tensor([len(questions[i].prompt) for i in places], device=device)
            prompts = stacked([torch.tensor(questions[i].prompt).numpy() for i in places]).to(device)
            options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": 0.0, "return_logprobs": True}
            if isinstance(model, Seq2Seq):
                written = model.generate(prompts, source_lengths=lengths, **options)
                begins = [1] * len(places)
            else:
                written = model.generate(prompts, prompt_lengths=lengths, stop_tokens=form.stop_tokens, **options)
                begins = lengths.tolist()
            ends = written.lengths.tolist()
            for place, row, begin, end in zip(places, written.tokens.tolist(), begins, ends, strict=True):
                tokens = row[begin:end]
                if tokens and tokens[-1] in form.stop_tokens:
                    tokens = tokens[:-1]
                known = [token for token in tokens if token < form.tokenizer.vocab_size]
                answers[place] = form.tokenizer.decode(known)
    return answers


@torch.no_grad()
def tell_labels(model: Any, form: LabelForm, examples: Sequence[Any], batch_size: int = 16) -> list[str]:
    """The label of each example that ``form`` has encoded."""
    device = model.token_embedding.weight.device
    labels: list[str] = []
    for first in range(0, len(examples), batch_size):
        ids, lengths, _ = (each.to(device) for each in form.batch(examples[first : first + batch_size]))
        chosen = model.label_logits(model(ids, lengths=lengths)).argmax(-1).tolist()
        labels += [form.labels[number] for number in chosen]
    return labels
