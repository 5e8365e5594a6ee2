"""Questions with shots: prompts are as said, scores are those of the likelihoods, broken lines are named."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pygpt import GPT, GPTConfig
from pygpt.eval.few_shot import Question, _prompt, evaluate_few_shot, read_questions
from pygpt.tasks.records import BadLines
from pygpt.text import ByteTokenizer

TOKENIZER = ByteTokenizer()
SHAPE: dict[str, Any] = {"num_layers": 1, "num_heads": 2, "embedding_dim": 8, "init_std": 0.3}


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=257, context_length=96, **SHAPE)).eval()


CHOICES = [Question(n + 1, f"q{n}", ("aa", "b", "cc c"), (("aa", "b", "cc c")[n % 3],)) for n in range(6)]
CLOZES = [Question(n + 1, f"q{n}", (), (f"a{n}",)) for n in range(4)]


def logprob(model: GPT, prompt: str, answer: str) -> float:
    context, continuation = TOKENIZER.encode(prompt), TOKENIZER.encode(f" {answer}")
    logprobs = model(torch.tensor([context + continuation[:-1]])).detach().log_softmax(-1)[0, len(context) - 1 :]
    return sum(float(row[token]) for row, token in zip(logprobs, continuation, strict=True))


def test_prompts_have_shots_of_the_others() -> None:
    prompts = [_prompt(question, place, CHOICES, 2, 7, True) for place, question in enumerate(CHOICES)]
    for place, prompt in enumerate(prompts):
        *shots, query = prompt.split("\n\n")
        assert query == f"q{place}" and len(set(shots)) == 2
        assert all(shot in {f"{q.query} {q.answers[0]}" for q in CHOICES} - {f"{query} aa"} for shot in shots)
        assert not any(shot.startswith(f"{query} ") for shot in shots)
    assert prompts == [_prompt(question, place, CHOICES, 2, 7, True) for place, question in enumerate(CHOICES)]
    assert prompts != [_prompt(question, place, CHOICES, 2, 8, True) for place, question in enumerate(CHOICES)]
    assert _prompt(CHOICES[0], 0, CLOZES, 0, 0, False) == "q0"


def test_the_likeliest_choice_is_taken(model: GPT) -> None:
    report = evaluate_few_shot(model, TOKENIZER, "multiple choice", CHOICES, 1, seed=3)
    right = 0
    for place, question in enumerate(CHOICES):
        prompt = _prompt(question, place, CHOICES, 1, 3, True)
        found = {choice: logprob(model, prompt, choice) for choice in question.choices}
        best = max(found, key=lambda choice: found[choice])
        assert report.answers[place] == (question.answers[0], best)
        right += best == question.answers[0]
    assert report.scores["accuracy"] == pytest.approx(100 * right / 6)
    assert report.scores["chance"] == pytest.approx(100 / 3) and report.count == 6
    assert evaluate_few_shot(model, TOKENIZER, "multiple choice", CHOICES, 1, seed=3, batch_size=1) == report
    limited = evaluate_few_shot(model, TOKENIZER, "multiple choice", CHOICES, 1, seed=3, limit=2)
    assert limited.answers == report.answers[:2]


def test_cloze_is_right_where_the_answer_is_greedy(model: GPT) -> None:
    report = evaluate_few_shot(model, TOKENIZER, "cloze", CLOZES, examples=CHOICES, shots=2)
    prompts = [_prompt(question, place, CHOICES, 2, 0, False) for place, question in enumerate(CLOZES)]
    logprobs = [logprob(model, prompt, q.answers[0]) for prompt, q in zip(prompts, CLOZES, strict=True)]
    assert report.scores["perplexity of an answer"] == pytest.approx(math.exp(-sum(logprobs) / 4), rel=1e-4)
    ids = torch.tensor([TOKENIZER.encode("q")])
    written = model.generate(ids, max_new_tokens=3, temperature=0)[0, 1:].tolist()
    if written[0] == ord(" ") and all(token < 128 for token in written):
        mine = Question(1, "q", (), (TOKENIZER.decode(written[1:]),))
        assert evaluate_few_shot(model, TOKENIZER, "cloze", [mine]).scores["accuracy"] == 100


def test_written_answers_end_with_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that repeats a learned line: tokens of `` yes`` and a new line after any query."""
    torch.manual_seed(1)
    model = GPT(GPTConfig(vocab_size=257, context_length=64, **{**SHAPE, "embedding_dim": 32}))
    texts = [TOKENIZER.encode(f"ask{n} yes\nmore") for n in range(8)]
    ids = torch.tensor(texts)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(ids[:, :-1], ids[:, 1:]).backward()
        optimizer.step()
    questions = [Question(1, "ask3", (), ("no", "yes")), Question(2, "ask5", (), ("yes sir",))]
    report = evaluate_few_shot(model.eval(), TOKENIZER, "generation", questions)
    assert report.answers == [("yes", "yes"), ("yes sir", "yes")]
    assert report.scores["exact match"] == 50 and report.scores["F1"] == pytest.approx(100 * (1 + 2 / 3) / 2)


def test_too_many_shots_and_too_long_prompts(model: GPT) -> None:
    with pytest.raises(ValueError, match="shots must be from 0 to 5, as many as there are other examples, not 6"):
        evaluate_few_shot(model, TOKENIZER, "multiple choice", CHOICES, 6)
    long = [Question(9, "long " * 30, ("a", "b"), ("a",))]
    with pytest.raises(ValueError, match="line 9 needs 151 tokens with its shots, and the model reads 96: use fewer"):
        evaluate_few_shot(model, TOKENIZER, "multiple choice", long)
    with pytest.raises(ValueError, match="line 3 needs"):
        evaluate_few_shot(model, TOKENIZER, "generation", [Question(3, "x" * 70, (), ("a",))])


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_files_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", {"query": "q", "choices": ["a", "b"], "answer": 1}, "")
    assert read_questions(path, BadLines(path)) == ("multiple choice", [Question(1, "q", ("a", "b"), ("b",))])
    path = write(tmp_path / "q.jsonl", {"kind": "cloze", "query": "q", "answer": "a"})
    assert read_questions(path, BadLines(path)) == ("cloze", [Question(1, "q", (), ("a",))])
    path = write(tmp_path / "q.jsonl", {"kind": "generation", "query": "q", "answer": ["a", "b"]})
    assert read_questions(path, BadLines(path)) == ("generation", [Question(1, "q", (), ("a", "b"))])


@pytest.mark.parametrize(
    "line, words",
    [
        ("{", "it is no JSON"),
        ("3", "it should be a JSON object, but is a int"),
        ({"query": "", "choices": ["a", "b"], "answer": 0}, "its query should be a text, but is ''"),
        ({"query": "q", "choices": ["a"], "answer": 0}, "its choices should be two texts or more, but are ['a']"),
        (
            {"query": "q", "choices": ["a", "b"], "answer": 2},
            "its answer should be the place of a choice, 0 to 1, but is 2",
        ),
        ({"query": "q", "choices": ["a", "b"], "answer": "a"}, "place of a choice, 0 to 1, but is 'a'"),
        ({"query": "q", "answer": "a"}, "it has a kind of None: cloze or generation"),
        ({"kind": "essay", "query": "q", "answer": "a"}, "it has a kind of 'essay'"),
        ({"kind": "cloze", "query": "q", "answer": ["a"]}, "its answer should be a text, but is ['a']"),
        ({"kind": "generation", "query": "q", "answer": []}, "its answer should be a text, but is []"),
        (
            {"kind": "cloze", "query": "q", "answer": "a"},
            "it is of kind 'cloze', and the lines before it are of 'multi",
        ),
    ],
)
def test_a_broken_line_is_named_or_counted(line: Any, words: str, tmp_path: Path) -> None:
    good = {"query": "q", "choices": ["a", "b"], "answer": 1}
    path = write(tmp_path / "q.jsonl", good, line, good)
    with pytest.raises(ValueError, match=r"q\.jsonl, line 2: ") as raised:
        read_questions(path, BadLines(path))
    assert words in str(raised.value)
    bad = BadLines(path, skip=True)
    assert len(read_questions(path, bad)[1]) == 2 and bad.count == 1
    with pytest.raises(ValueError, match="has no question"):
        read_questions(write(tmp_path / "q.jsonl", ""), bad)
