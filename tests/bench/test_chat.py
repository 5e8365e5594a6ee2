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


def test_processor_time_is_that_of_one_thread(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        chat.main(["--cpu-time", "--threads", "2"])
    assert "one thread" in capsys.readouterr().err
