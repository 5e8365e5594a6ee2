"""The pictures of speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import plot

RESULTS = Path(__file__).resolve().parents[2] / "bench/results"


def test_a_row_is_compared_with_the_fastest_way_that_pytorch_has() -> None:
    row = {"seconds": 2.0, "peer_seconds": 6.0, "compiled_seconds": None, "rival_seconds": {}}
    assert plot.fastest_ratio(row) == 3
    assert plot.fastest_ratio({**row, "compiled_seconds": 5.0}) == 2.5
    assert plot.fastest_ratio({**row, "rival_seconds": {"flash": 4.0, "math": 9.0}}) == 2


@pytest.mark.parametrize("name", ["amd-epyc-2-threads", "nvidia-h100"])
def test_the_pictures_are_drawn_from_the_committed_results(name: str, tmp_path: Path) -> None:
    picture = tmp_path / "bars.png"
    assert plot.main([str(RESULTS / f"{name}.json"), str(picture)]) == 0
    measured = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    width, height = (int.from_bytes(picture.read_bytes()[at : at + 4], "big") for at in (16, 20))
    assert width > 1000
    assert height > 60 * len({(row["name"], row["shape"]) for row in measured["results"] if row["share"]}) / 3
    assert (RESULTS / f"{name}.png").is_file(), "the README shows it"


def test_results_that_are_not_there_are_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        plot.main([str(tmp_path / "none.json"), str(tmp_path / "bars.png")])
    assert stopped.value.code == 2
    assert "none.json" in capsys.readouterr().err.splitlines()[-1]
