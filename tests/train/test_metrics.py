"""The record of a run: what is written is read, and a resumed run goes on where its checkpoint was."""

import math
from pathlib import Path

import pytest

from pygpt.train.metrics import Metrics, read_metrics


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    metrics = Metrics(path)
    metrics.write(1, loss=1 / 3, tokens=7)
    metrics.write(2, loss=math.nan, skipped="the loss is nan")
    metrics.write(2, sample="two\nlines, é")
    assert read_metrics(path) == [  # before closing: nothing is held back
        {"step": 1, "loss": 1 / 3, "tokens": 7},
        {"step": 2, "loss": None, "skipped": "the loss is nan"},
        {"step": 2, "sample": "two\nlines, é"},
    ]
    metrics.close()


def test_going_on_removes_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    for step in range(1, 6):
        metrics.write(step, loss=float(step))
    metrics.close()
    with path.open("ab") as file:
        file.write(b'{"step": 6, "lo')  # a crash cut this off
    metrics = Metrics(path, step=3)
    metrics.write(4, loss=44.0)
    metrics.close()
    assert [(r["step"], r["loss"]) for r in read_metrics(path)] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 44.0)]


@pytest.mark.parametrize("line", [b"{", b"[1]", b'{"loss": 1}', b"\xff"])
def test_a_foreign_file_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b"\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2, is not a record"):
        Metrics(path)
