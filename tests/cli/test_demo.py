"""``pygpt demo``: everything it promises, with a few steps of training."""

from pathlib import Path

import pytest

from pygpt.cli import main
from pygpt.cli.demo import PROMPTS, _free_name
from tests.cli.conftest import Run


@pytest.mark.slow
def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--steps", "3"]) == 0
    out = capsys.readouterr().out
    for heading in ("Text", "Training", "Loss", "What it writes", "Where it is, and what to try next"):
        assert f"\n{heading} ───" in out
    for prompt in PROMPTS:
        assert f"│ {prompt.strip()}" in out
    assert "step 3/3" in out and "validation loss" in out and "┤█" in out
    assert "<|endoftext|>" not in out.partition("What it writes")[2]
    assert "\x1b" not in out, "no control characters where there is no terminal"
    run = tmp_path / "runs" / "demo"
    for name in ("loss.png", "metrics.jsonl", "config.toml", "tokenizer.json", "checkpoints"):
        assert f"runs/demo/{name}" in out
        assert (run / name).exists()
    assert main(["sample", "--model", "runs/demo", "--max-new-tokens", "5"]) == 0


def test_another_demo_takes_another_folder(tmp_path: Path) -> None:
    assert _free_name(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").touch()
    assert _free_name(tmp_path / "demo") == tmp_path / "demo-3"


def test_mistakes(tmp_path: Path, fails: Run) -> None:
    (tmp_path / "file").touch()
    assert "is there already" in fails("demo", "--steps", "1", "--out", str(tmp_path / "file"))
    assert "seconds must be positive" in fails("demo", "--seconds", "0")
    assert "steps must be at least 1" in fails("demo", "--steps", "0")
    assert "threads must be at least 1" in fails("demo", "--threads", "0")
