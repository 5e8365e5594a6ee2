"""The command line: help at once, one clear line for every mistake, exit codes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pygpt.cli import COMMANDS, main, one_line
from tests.cli.conftest import Run


def test_help_needs_neither_torch_nor_matplotlib() -> None:
    program = (
        "import sys\nfrom pygpt.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as exit_: assert not exit_.code\n"
        "assert not {'torch', 'matplotlib', 'tokenizers'} & set(sys.modules), sorted(sys.modules)\n"
    )
    for words in (["--help"], *([name, "--help"] for name in COMMANDS)):
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "xample" in done.stdout, words


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("pygpt ")


def test_mistakes_in_words(fails: Run) -> None:
    assert "invalid choice: 'tarin'" in fails("tarin")
    assert fails("train", "--bogus").startswith("pygpt train: error: unrecognized arguments: --bogus")
    assert "unrecognized arguments: --step 3" in fails("train", "--step", "3"), "no abbreviations"
    assert "argument --steps: invalid int value: 'many'" in fails("train", "--steps", "many")
    assert "--schedule: invalid choice: 'cosin'" in fails("train", "--schedule", "cosin")
    assert "the following arguments are required: --model" in fails("sample")


@pytest.mark.parametrize("words", [["sample", "--model", "absent"], ["chat"], ["eval", "absent", "--data", "absent"]])
def test_threads_that_cannot_be_are_named_before_any_starts(fails: Run, words: list[str]) -> None:
    for count in ("0", "-1", "2000000"):
        assert f"threads must be from 1 to 1024, not {count}" in fails(*words, "--threads", count)


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().out


def test_errors_fit_in_one_line() -> None:
    assert one_line(ValueError("two\nlines")) == "two lines"
    assert one_line(OSError(28, "No space left on device", "run/file")) == "No space left on device: run/file"
    assert one_line(OSError("no number")) == "no number"
    assert one_line(MemoryError()) == "MemoryError"


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some text " * 100)
    program = f"{sys.executable} -m pygpt data {tmp_path}/text.txt --out {tmp_path}/tokens --tokenizer byte | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert os.path.exists(tmp_path / "tokens" / "tokens.json")
