"""Tasks that a model is not trained for, but shown: a few solved questions in its prompt, then the one to solve.

A file has one question a line, in JSON::

    {"query": "The sky is", "choices": ["blue", "green"], "answer": 0}             multiple choice
    {"kind": "cloze", "query": "Twinkle, twinkle, little", "answer": "star"}       the answer must be the likeliest text
    {"kind": "generation", "query": "2 + 2 =", "answer": ["4", "four"]}            what is written up to the line's end

All lines of a file are of one kind. A prompt is shots and the question, separated by an empty line; a space stands
between a query and its answer.

Source: Brown et al., "Language Models are Few-Shot Learners", 2020, section 2.4.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pygpt.eval.likelihood import continuations
from pygpt.eval.metrics import exact_match, perplexity, word_f1
from pygpt.eval.scores import Report
from pygpt.tasks.records import BadLines
from pygpt.text import Tokenizer
from pygpt.text.rows import stacked
from pygpt.train.examples import Draws

KINDS = ("multiple choice", "cloze", "generation")
MOST_WRITTEN = 32  # tokens of a written answer


class Question(NamedTuple):
    """One line.

    Attributes:
        line: where it stands in its file, from 1.
        query: what is asked.
        choices: the answers to choose from; none: the answer is written.
        answers: the right ones.
    """

    line: int
    query: str
    choices: tuple[str, ...]
    answers: tuple[str, ...]


def read_questions(path: str | Path, bad: BadLines) -> tuple[str, list[Question]]:
    """Read a file; gives the kind of its questions, and them.

    Raises:
        ValueError: naming the line that is broken or of another kind than those before; or if there is no question.
    """
    kind = ""
    questions = []
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                its_kind, question = _question(number, line)
                if kind and its_kind != kind:
                    raise ValueError(f"it is of kind {its_kind!r}, and the lines before it are of {kind!r}")
            except ValueError as error:
                bad.add(number, str(error))
                continue
            kind = its_kind
            questions.append(question)
    if not questions:
        raise ValueError(f"{path} has no question" + (f": {bad}" if bad.count else ""))
    return kind, questions


def evaluate_few_shot(
    model: Any,
    tokenizer: Tokenizer,
    kind: str,
    questions: Sequence[Question],
    shots: int = 0,
    *,
    examples: Sequence[Question] | None = None,
    seed: int = 0,
    batch_size: int = 16,
    limit: int | None = None,
) -> Report:
    """Ask a model questions, each after a few solved ones.

    Args:
        model: a `pygpt.GPT`, in eval mode.
        tokenizer: the model's.
        kind: one of ``KINDS``.
        questions: what is asked.
        shots: how many solved questions stand before each.
        examples: where they are drawn from; None: from the other questions.
        seed: draws them; the same for every model.
        batch_size: rows at a time; results do not depend on it.
        limit: ask the first so many; the others are there to be shown.

    Raises:
        ValueError: if there are too few examples, or naming the line whose prompt does not fit into the model's context
            or has characters that the tokenizer lacks.
    """
    pool = questions if examples is None else examples
    available = len(pool) - (1 if examples is None else 0)
    if not 0 <= shots <= available:
        raise ValueError(f"shots must be from 0 to {available}, as many as there are other examples, not {shots}")
    questions = questions[:limit]
    prompts = [_prompt(q, place, pool, shots, seed, examples is None) for place, q in enumerate(questions)]
    contexts = [_encoded(tokenizer, question, prompt) for question, prompt in zip(questions, prompts, strict=True)]
    if kind == "generation":
        return _written(model, tokenizer, questions, contexts, batch_size)
    pairs, where = [], []
    for place, question in enumerate(questions):
        for choice in question.choices or question.answers:
            continuation = _encoded(tokenizer, question, f" {choice}")
            _check_room(model, question, len(contexts[place]) + len(continuation) - 1)
            pairs.append((contexts[place], continuation))
            where.append((place, choice))
    found = continuations(model, pairs, batch_size)
    if kind == "cloze":
        scores = {
            "accuracy": 100 * sum(each.greedy for each in found) / len(found),
            "perplexity of an answer": perplexity(-math.fsum(each.logprob for each in found) / len(found)),
        }
        return Report(scores, len(questions), [])
    right, right_by_length = 0, 0
    answers = []
    for place, question in enumerate(questions):
        mine = [(choice, each.logprob) for (at, choice), each in zip(where, found, strict=True) if at == place]
        best = max(mine, key=lambda each: each[1])[0]
        by_length = max(mine, key=lambda each: each[1] / len(each[0].encode()))[0]
        right += best in question.answers
        right_by_length += by_length in question.answers
        answers.append((question.answers[0], best))
    chance = sum(1 / len(question.choices) for question in questions) / len(questions)
    scores = {
        "accuracy": 100 * right / len(questions),
        "accuracy by logprob per byte": 100 * right_by_length / len(questions),
        "chance": 100 * chance,
    }
    return Report(scores, len(questions), answers)


def _written(
    model: Any, tokenizer: Tokenizer, questions: Sequence[Question], contexts: list[list[int]], batch_size: int
) -> Report:
    answers = []
    device = model.token_embedding.weight.device
    for question, context in zip(questions, contexts, strict=True):
        _check_room(model, question, len(context) + MOST_WRITTEN)
    with model.session(len(questions) * MOST_WRITTEN):
        for first in range(0, len(contexts), batch_size):
            rows = contexts[first : first + batch_size]
            lengths = torch.tensor([len(row) for row in rows], device=device)
            written = model.generate(
                stacked([torch.tensor(row).numpy() for row in rows]).to(device),
                max_new_tokens=MOST_WRITTEN,
                temperature=0.0,
                prompt_lengths=lengths,
                stop="\n",
                tokenizer=tokenizer,
                return_logprobs=True,
            )
            ends = written.lengths.tolist()
            for row, begin, end in zip(written.tokens.tolist(), lengths.tolist(), ends, strict=True):
                answers.append(tokenizer.decode(row[begin:end]).partition("\n")[0].strip())
    best = [max(q.answers, key=lambda right: word_f1([a], [right])) for q, a in zip(questions, answers, strict=True)]
    exact = [a if a in question.answers else right for question, a, right in zip(questions, answers, best, strict=True)]
    scores = {"exact match": exact_match(answers, exact), "F1": word_f1(answers, best)}
    return Report(scores, len(questions), list(zip(best, answers, strict=True)))


def _prompt(question: Question, place: int, pool: Sequence[Question], shots: int, seed: int, own: bool) -> str:
    order = Draws(seed, place).order(len(pool)).tolist()
    chosen = [other for other in order if not (own and other == place)][:shots]
    solved = [f"{pool[other].query} {pool[other].answers[0]}" for other in chosen]
    return "\n\n".join([*solved, question.query])


def _encoded(tokenizer: Tokenizer, question: Question, text: str) -> list[int]:
    try:
        return tokenizer.encode(text)
    except ValueError as error:
        raise ValueError(f"line {question.line}: {error}") from None


def _check_room(model: Any, question: Question, tokens: int) -> None:
    limit = model.config.context_length
    if tokens > limit:
        raise ValueError(
            f"line {question.line} needs {tokens} tokens with its shots, and the model reads {limit}: use fewer shots"
        )


def _question(number: int, line: bytes) -> tuple[str, Question]:
    try:
        given = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no JSON: {error}") from None
    if not isinstance(given, dict):
        raise ValueError(f"it should be a JSON object, but is a {type(given).__name__}")
    query, choices, answer = given.get("query"), given.get("choices"), given.get("answer")
    if not isinstance(query, str) or not query.strip():
        raise ValueError(f"its query should be a text, but is {query!r}")
    kind = given.get("kind", None if choices is None else KINDS[0])
    if kind not in KINDS or (kind == KINDS[0]) != (choices is not None):
        raise ValueError(f"it has a kind of {kind!r}: cloze or generation without choices, or choices without a kind")
    if kind == KINDS[0]:
        if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
            raise ValueError(f"its choices should be two texts or more, but are {choices!r}")
        if type(answer) is not int or not 0 <= answer < len(choices):
            raise ValueError(f"its answer should be the place of a choice, 0 to {len(choices) - 1}, but is {answer!r}")
        return kind, Question(number, query, tuple(choices), (choices[answer],))
    answers = answer if isinstance(answer, list) and kind == "generation" else [answer]
    if not answers or not all(isinstance(each, str) and each.strip() for each in answers):
        raise ValueError(f"its answer should be a text, but is {answer!r}")
    return kind, Question(number, query, (), tuple(map(str, answers)))
