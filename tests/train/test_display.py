"""What a training shows: one line that changes in a terminal, plain lines elsewhere."""

import io

import pytest
from rich.console import Console

from pygpt.train.display import StepReport, TerminalDisplay


def report(step: int, skipped: str | None = None, share: float | None = 0.425) -> StepReport:
    return StepReport(step, 3.21, 0.5, 1e-3, tokens=1000, seconds=0.5, share_of_peak=share, skipped=skipped)


def shown(terminal: bool, width: int = 100) -> str:
    out = io.StringIO()
    display = TerminalDisplay(Console(file=out, force_terminal=terminal, width=width), log_every=2)
    display.begin(done=0, steps=5)
    for step in range(1, 6):
        display.step(report(step, "the loss is nan" if step == 4 else None))
    display.evaluation(5, 2.5)
    display.sample(5, "one [bold]line\n\nanother")
    display.end()
    return out.getvalue()


def test_lines() -> None:
    out = shown(terminal=False)
    assert "\x1b" not in out and "\r" not in out
    lines = out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("step ") and "tokens/s" in line] == [
        "1/5", "2/5", "4/5", "5/5",
    ]  # fmt: skip
    assert lines[0].startswith("step 1/5  loss 3.2100  2,000 tokens/s  42% of peak  0:00 left")
    assert "step 4 skipped: the loss is nan" in lines
    assert lines[-4:] == [
        "step      5  validation loss 2.5000",
        "step      5  sample",
        "  │ one [bold]line",
        "  │ another",
    ]


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_progress_line_fits(width: int) -> None:
    out = shown(terminal=True, width=width)
    assert "training" in out and "validation loss" in out
    assert "5/5" in out and "0:00 left" in out
    assert "…" not in out, "nothing was cut"


def test_without_a_known_peak_there_is_no_share() -> None:
    out = io.StringIO()
    display = TerminalDisplay(Console(file=out, width=100), log_every=1)
    display.begin(0, 1)
    display.step(report(1, share=None))
    assert "peak" not in out.getvalue() and "tokens/s" in out.getvalue()
