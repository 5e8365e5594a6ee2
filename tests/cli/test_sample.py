"""``pygpt sample``: what a run or a folder writes, as it comes, and every mistake in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pygpt import GPT
from pygpt.cli import main
from tests.cli.conftest import Out, Run, newest


def test_writes(finished: Path, capsys: Out) -> None:
    def sample(*words: str) -> str:
        capsys.readouterr()
        assert main(["sample", "--model", str(finished), "--max-new-tokens", "12", *words]) == 0
        return capsys.readouterr().out

    first = sample("--prompt", "the cat")
    assert first.startswith("the cat") and len("the cat\n") < len(first) <= len("the cat\n") + 12
    assert sample("--prompt", "the cat") == first
    assert sample("--prompt", "the cat", "--seed", "5") != first
    assert sample("--prompt", "the cat", "--temperature", "0", "--top-k", "3").startswith("the cat")
    several = sample("--prompt", "the", "--num-samples", "3", "--top-p", "0.9")
    assert several.count("the") >= 3
    for scheme in ("int8", "int4"):
        assert sample("--prompt", "the cat", "--quantize", scheme).startswith("the cat")
    assert sample() != ""
    assert main(["sample", "--model", str(newest(finished)), "--prompt", "the"]) == 0, (
        "a checkpoint is a model by itself"
    )


def test_the_text_appears_as_it_is_written(finished: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on the terminal when a token has been told: all the text up to it."""
    shown: list[str] = []
    generate = GPT.generate

    def watched(model: GPT, ids: Any, stream: Callable[[int, int], None], **options: Any) -> Any:
        def told(row: int, token: int) -> None:
            stream(row, token)
            shown.append(capsys.readouterr().out)

        shown.append(capsys.readouterr().out)
        return generate(model, ids, stream=told, **options)

    monkeypatch.setattr(GPT, "generate", watched)
    assert main(["sample", "--model", str(finished), "--prompt", "the cat", "--max-new-tokens", "12"]) == 0
    assert shown[0] == "the cat" and len(shown) > 4
    assert all(len(piece) == 1 for piece in shown[1:-1]), "a token of this model is a character"
    assert len(shown[-1]) <= 1, "the last may be the end of a document"


def test_every_flag_arrives(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, object]] = []
    monkeypatch.setattr(GPT, "generate", lambda model, ids, **options: told.append(options))
    words = "--max-new-tokens 7 --temperature 0.5 --top-k 3 --top-p 0.9 --min-p 0.1 --repetition-penalty 1.5 --seed 4"
    words += " --stop a --stop b --num-samples 2"
    assert main(["sample", "--model", str(finished), "--prompt", "the", *words.split()]) == 0
    expected = {"max_new_tokens": 7, "temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.1}
    expected |= {"repetition_penalty": 1.5, "stop": ["a", "b"], "overflow": "slide"}
    assert [options["seed"] for options in told] == [4, 5]
    for options in told:
        assert {name: options[name] for name in expected} == expected


def test_goes_on_past_the_context(finished: Path, capsys: Out) -> None:
    longest = 0
    for seed in range(8):  # some end early, by an end-of-document token
        words = ["--prompt", "the", "--max-new-tokens", "40", "--seed", str(seed)]
        assert main(["sample", "--model", str(finished), *words]) == 0
        longest = max(longest, len(capsys.readouterr().out))
    assert 2 * 16 < longest <= 3 + 40 + 1


def test_mistakes(finished: Path, copy: Path, tmp_path: Path, fails: Run) -> None:
    def sample(*words: str) -> str:
        return fails("sample", "--model", str(finished), *words)

    assert "there is no folder" in fails("sample", "--model", str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in fails("sample", "--model", str(tmp_path / "empty"))
    assert "'é'" in sample("--prompt", "é")
    assert "the prompt is empty" in sample("--prompt", "")
    assert "temperature" in sample("--prompt", "the", "--temperature", "-1")
    assert "top_p" in sample("--prompt", "the", "--top-p", "0")
    assert "num_samples must be at least 1, not 0" in sample("--num-samples", "0")
    assert "device must be cpu, cuda or cuda:N, not 'meta'" in sample("--device", "meta")
    assert "invalid choice: 'int2'" in sample("--quantize", "int2")
    assert "threads must be from 1 to 1024, not 0" in sample("--threads", "0")
    other = json.loads((newest(copy) / "tokenizer.json").read_text())
    other["characters"] = other["characters"][:-1]
    (newest(copy) / "tokenizer.json").write_text(json.dumps(other))
    assert "vocabulary" in fails("sample", "--model", str(copy))
    shutil.rmtree(copy / "checkpoints")
    assert "holds no checkpoint" in fails("sample", "--model", str(copy))
