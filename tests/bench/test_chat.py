"""Three lines, each with both figures."""

from __future__ import annotations

import re

import pytest

from bench import chat
from pygpt.extension import EMULATED
from tests.models.llama_file import smollm2

pytestmark = pytest.mark.skipif(EMULATED is not None, reason="quantised weights are the CPU's")


@pytest.mark.slow
def test_both_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    assert chat.main(["--model", str(smollm2()), "--rounds", "1", "--answer", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["the model alone", "a prompt of 128", "an answer of 4"]
    assert all(re.search(r": pygpt \d+, llama\.cpp \d+ tokens/s, [\d.]+×$", line) for line in lines)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--cpu-time", "--threads", "2"], "--cpu-time is that of one thread"),
        (["--threads", "0"], "--threads must be from 1 to 1024, but is 0"),
        (["--rounds", "0"], "--rounds must be from 1 to 1000, but is 0"),
        (["--model", "no/such.gguf"], "no/such.gguf"),
    ],
)
def test_wrong_arguments_are_one_clear_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], complaint: str
) -> None:
    monkeypatch.setattr(chat, "find_spec", lambda name: True)
    with pytest.raises(SystemExit) as stopped:
        chat.main(words)
    assert stopped.value.code == 2
    assert complaint in capsys.readouterr().err.splitlines()[-1]
