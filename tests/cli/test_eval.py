"""``pygpt eval``: a fine-tuned run's task, a text, questions; mistakes are one line."""

import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from pygpt.cli import main
from pygpt.train.saved import load_model
from tests.cli.conftest import Out, Run

SHAPE = shlex.split(
    "--tokenizer char --layers 1 --heads 2 --width 16 --context 48 --batch-size 4 --sample-every 0 --validation 0.2"
)


def write(path: Path, *lines: Any) -> str:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT on text, fine-tuned; an encoder-decoder that translates; an encoder with labels."""
    folder = tmp_path_factory.mktemp("eval")
    (folder / "text.txt").write_text("the cat sat on the mat, and the dog sat on the cat.\n" * 40)
    for name, objective in (("gpt", "clm"), ("both", "seq2seq"), ("encoder", "mlm")):
        words = ["--data", str(folder / "text.txt"), "--out", str(folder / name), "--objective", objective]
        assert main(["train", *words, *SHAPE, "--steps", "3"]) == 0
    animals = ("cat", "dog", "mat")
    for name, base, task, (given, asked) in (
        ("answers", "gpt", "summarisation", ("document", "summary")),
        ("translator", "both", "translation", ("source", "target")),
        ("labels", "encoder", "classification", ("text", "label")),
    ):
        lines = [{given: f"the {animal} sat", asked: animal} for animal in animals] * 8
        data = write(folder / f"{task}.jsonl", *lines)
        words = ["--data", data, "--out", str(folder / name), "--base", str(folder / base), "--task", task]
        assert main(["train", *words, "--steps", "60", "--lr", "0.02", "--sample-every", "0", "--eval-every", "0"]) == 0
    return folder


def scores(folder: Path, capsys: Out, *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["eval", *words, "--json", str(folder / "scores.json"), "--show", "1"]) == 0
    printed = capsys.readouterr().out
    found: dict[str, Any] = json.loads((folder / "scores.json").read_text())
    assert all(name in printed for name in found["scores"])
    assert ("asked for" in printed) == bool(found["answers"])
    return found


def test_a_task_is_scored(folder: Path, capsys: Out) -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    found = scores(folder, capsys, str(folder / "answers"), "--data", str(folder / "summarisation.jsonl"))
    assert found["count"] == 24 == len(found["answers"]) and found["left_out"] == 0
    assert found["answers"][0]["reference"] == "cat"
    exact = sum(each["answer"] == each["reference"] for each in found["answers"])
    assert found["scores"]["exact match"] == pytest.approx(100 * exact / 24) and exact > 12
    assert found["scores"]["ROUGE-1"] >= found["scores"]["exact match"] - 1e-6 and found["scores"]["perplexity"] < 2
    small = scores(
        folder, capsys, str(folder / "answers"), "--data", str(folder / "summarisation.jsonl"), "--limit", "5",
        "--batch-size", "2", "--max-new-tokens", "8",
    )  # fmt: skip
    assert small["answers"] == found["answers"][:5]

    found = scores(folder, capsys, str(folder / "translator"), "--data", str(folder / "translation.jsonl"))
    assert {"perplexity", "exact match", "BLEU", "chrF"} == found["scores"].keys()
    found = scores(folder, capsys, str(folder / "labels"), "--data", str(folder / "classification.jsonl"))
    assert (
        found["scores"]["accuracy"] >= found["scores"]["accuracy of the most frequent label"] == pytest.approx(100 / 3)
    )


def test_a_text_is_scored(folder: Path, capsys: Out) -> None:
    found = scores(folder, capsys, str(folder / "gpt"), "--data", str(folder / "text.txt"))["scores"]
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["bits per byte"] == pytest.approx(found["loss"] / math.log(2), rel=1e-2), "a character is a byte"


def test_a_perplexity_beyond_all_numbers_is_told(folder: Path, tmp_path: Path, capsys: Out) -> None:
    model, tokenizer = load_model(folder / "gpt")
    with torch.no_grad():
        model.norm.weight.fill_(1e5)
    model.save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    for name, answer in (("text", "on"), ("cloze", "mmm")):
        data = ["--data", str(folder / "text.txt")]
        if name == "cloze":
            data = ["--task", write(tmp_path / "q.jsonl", {"kind": "cloze", "query": "the cat sat", "answer": answer})]
        capsys.readouterr()
        assert main(["eval", str(tmp_path), *data, "--json", str(tmp_path / "scores.json")]) == 0
        printed = capsys.readouterr().out
        found = json.loads((tmp_path / "scores.json").read_text())["scores"]
        (score,) = (each for each in found if "perplexity" in each)
        assert found[score] is None and any(line.split()[-1] == "inf" for line in printed.splitlines())


def test_questions_are_scored(folder: Path, capsys: Out) -> None:
    lines = [{"query": f"the {a} sat", "choices": ["on", "zz"], "answer": 0} for a in ("cat", "dog", "mat")]
    path = write(folder / "q.jsonl", *[{**line, "choices": ["on the", "tac"]} for line in lines])
    words = [str(folder / "gpt"), "--task", path]
    found = scores(folder, capsys, *words, "--shots", "1")
    assert found["count"] == 3 and found["scores"]["chance"] == 50
    assert scores(folder, capsys, *words, "--shots", "1", "--shots-from", path, "--limit", "1")["count"] == 1


def test_bad_lines_are_counted(folder: Path, tmp_path: Path, capsys: Out, fails: Run) -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    lines = [{"document": "the cat sat", "summary": "cat"}, {"document": "the cat", "summary": ""}]
    data = write(tmp_path / "t.jsonl", *lines, {"document": "the cat " * 9, "summary": "cat"})
    words = ["eval", str(folder / "answers"), "--data", data, "--max-new-tokens", "8"]
    assert "line 2: its summary is empty" in fails(*words)
    assert main([*words, "--skip-bad"]) == 0
    assert "2 lines were left out" in capsys.readouterr().out
    assert main([*words, "--skip-bad", "--truncate"]) == 0
    assert "1 line was left out" in capsys.readouterr().out


def test_mistakes(folder: Path, tmp_path: Path, fails: Run) -> None:
    gpt, labels = str(folder / "gpt"), str(folder / "labels")
    data, text = str(folder / "classification.jsonl"), str(folder / "text.txt")
    other = write(tmp_path / "l.jsonl", {"text": "the cat", "label": "cow"})
    cloze = write(tmp_path / "c.jsonl", {"kind": "cloze", "query": "a", "answer": "b"})
    strange = write(tmp_path / "s.jsonl", *({"query": text, "choices": ["b", "c"], "answer": 0} for text in "aÉ"))
    choice = write(tmp_path / "m.jsonl", {"query": "a", "choices": ["b", "c"], "answer": 0})
    for words, message in [
        ([gpt], "one of the arguments --data --task is required"),
        ([str(tmp_path / "absent"), "--data", text], "there is no folder"),
        ([str(folder / "encoder"), "--data", text], "texts are for a GPT, but"),
        ([labels, "--task", choice], "questions are for a GPT, but"),
        ([labels, "--data", other], "line 1: its label is 'cow', but the model's are cat, dog, mat"),
        ([labels, "--data", data, data], "data must be one file of JSON Lines"),
        ([labels, "--data", text], "line 1: it is no JSON"),
        ([gpt, "--task", choice, "--shots", "1"], "shots must be from 0 to 0"),
        ([gpt, "--task", choice, "--shots-from", cloze], "has questions of kind 'cloze', and"),
        ([labels, "--data", data, "--max-new-tokens", "48"], "max_new_tokens must be less than the context of 48"),
        ([gpt, "--data", text, "--limit", "0"], "limit must be at least 1, not 0"),
        ([gpt, "--data", text, "--show", "-1"], "show must be at least 0, not -1"),
        ([gpt, "--data", text, "--shots", "1"], "shots are shown before the questions of --task"),
        ([gpt, "--data", text, "--shots-from", choice], "shots are shown before the questions of --task"),
        ([gpt, "--task", strange], "line 2: the character 'É' (U+00C9)"),
    ]:
        line = fails("eval", *words, "--json", str(tmp_path / "scores.json"))
        assert message in line, line
        assert not (tmp_path / "scores.json").exists()
