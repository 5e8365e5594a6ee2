"""The README's table of speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import table

ROOT = Path(__file__).resolve().parents[2]


def test_the_readme_shows_what_was_measured() -> None:
    found = table.MARKED.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(found) == 3, "what compare.py measured on a CPU and on a GPU, and what decode.py did"
    for file, shown in found:
        measured = json.loads((ROOT / file).read_text(encoding="utf-8"))
        assert shown == table.markdown(measured), f"python bench/table.py {file} --readme"
        assert all(result.get("name", result.get("label")) in shown for result in measured["results"])


def test_rows_that_are_written_at_once_are_told_apart() -> None:
    results = [
        {"label": who, "dtype": dtype, "batch": batch, "tokens_per_second": 100.0 * batch + len(dtype)}
        for batch in (1, 8)
        for who in ("ours", "theirs")
        for dtype in ("fp32", "q8")
    ]
    assert table.writers(results)[2:] == [
        "| ours | fp32 104, q8 102 |",
        "| theirs | fp32 104, q8 102 |",
        "| ours, 8 rows | fp32 804, q8 802 |",
        "| theirs, 8 rows | fp32 804, q8 802 |",
    ]


def test_results_without_a_place_are_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "results.json"
    for content, words in ((None, "No such file"), ("{", "results.json: "), ("README", "has no marks of")):
        if content == "README":
            content = (ROOT / "bench/results/amd-epyc-2-threads.json").read_text(encoding="utf-8")
        if content is not None:
            file.write_text(content, encoding="utf-8")
        with pytest.raises(SystemExit) as stopped:
            table.main([str(file), "--readme"])
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
