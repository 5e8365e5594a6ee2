"""The loss curve: a real PNG, and a chart whose shape follows the numbers."""

from pathlib import Path

import pytest

from pygpt.train.plot import draw_chart, loss_curves, save_loss_plot, smoothed

RECORDS = [
    {"step": 1, "loss": 4.0},
    {"step": 2, "loss": None, "skipped": "the loss is nan"},
    {"step": 3, "loss": 2.0},
    {"step": 3, "validation_loss": 2.5},
    {"step": 3, "sample": "text"},
]


def test_curves_leave_out_skipped_steps() -> None:
    assert loss_curves(RECORDS) == ([(1, 4.0), (3, 2.0)], [(3, 2.5)])


def test_smoothing_keeps_a_constant_and_follows_a_fall() -> None:
    assert [y for _, y in smoothed([(i, 5.0) for i in range(500)])] == pytest.approx([5.0] * 500)
    falling = [y for _, y in smoothed([(i, 1 / (i + 1)) for i in range(500)])]
    assert falling == sorted(falling, reverse=True)


def test_picture(tmp_path: Path) -> None:
    for records in (RECORDS, []):
        save_loss_plot(tmp_path / "loss.png", records, r"no formula: $\x$")
        assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_chart() -> None:
    assert draw_chart([(step, 10.0 - step) for step in range(9)], width=9, height=2).splitlines() == [
        "  10.000 ┤█▆▄▂▁    ",
        "   2.000 ┤█████▇▅▃▁",
        "         └─────────",
        "          0  step 8",
    ]
    assert [len(line) for line in draw_chart([(s, float(s % 7)) for s in range(1000)]).splitlines()] == [10 + 72] * 14
    assert draw_chart([(1, 2.0)]).splitlines()[-2] == " " * 9 + "└─"
    assert draw_chart([]) == "(nothing to draw)"
