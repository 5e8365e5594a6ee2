"""The README's table of speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import table

ROOT = Path(__file__).resolve().parents[2]


def test_the_readme_shows_what_was_measured() -> None:
    found = table.MARKED.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    names = [Path(file).name.removeprefix("amd-epyc-2-threads").removesuffix(".json") for file, _ in found]
    assert names == ["", "-avx2", "-training", "nvidia-h100", "-decode"]
    for file, shown in found:
        measured = json.loads((ROOT / file).read_text(encoding="utf-8"))
        assert shown == table.markdown(measured), f"python bench/table.py {file} --readme"
        assert all(result.get("name", result.get("label")) in shown for result in measured["results"])


def written(batches: tuple[int, ...], alone: str = "") -> list[str]:
    """The table of two who write with two dtypes; one of them may write a single row only."""
    return table.writers(
        {
            "results": [
                {"label": who, "dtype": dtype, "batch": batch, "tokens_per_second": 100.0 * batch + len(dtype)}
                for batch in batches
                for who in ("ours", "theirs")
                for dtype in ("fp32", "q8")
                if who != alone or batch == 1
            ]
        }
    )


def test_each_batch_has_a_column() -> None:
    assert written((1,)) == [
        "| | tokens/s |",
        "| --- | --- |",
        "| ours | fp32 104, q8 102 |",
        "| theirs | fp32 104, q8 102 |",
    ]
    assert written((1, 8), alone="theirs") == [
        "| | tokens/s, 1 row | 8 rows |",
        "| --- | --- | --- |",
        "| ours | fp32 104, q8 102 | fp32 804, q8 802 |",
        "| theirs | fp32 104, q8 102 |  |",
    ]


def test_training_shows_scaling_and_memory() -> None:
    both = {"dtype": "fp32", "seconds": 2.0, "tokens_per_second": 512.0, "one_thread_seconds": 4.0, "scaling": 2.0}
    awake = {"one_thread_seconds": None, "scaling": None, "memory_bytes": {}}
    measured = {
        "batch": 4,
        "time": 256,
        "threads": 2,
        "results": [
            {**both, "label": "pygpt", "memory_bytes": {"256": 2_345_000_000, "1024": 3_000_000_000}},
            {**both, "label": "awake", **awake},
        ],
    }
    assert table.learners(measured) == [
        "| | tokens/s, 1 thread | 2 threads | scaling | memory, 4 × 256 tokens | memory, 4 × 1024 tokens |",
        "| --- | --- | --- | --- | --- | --- |",
        "| pygpt, fp32 | 256 | 512 | 2.00× | 2.35 GB | 3.00 GB |",
        "| awake, fp32 |  | 512 |  |  |  |",
    ]


def test_what_was_held_back_is_folded_and_says_by_what() -> None:
    measured = json.loads((ROOT / "bench/results/amd-epyc-2-threads.json").read_text(encoding="utf-8"))
    plain = table.markdown(measured)
    held = table.markdown({**measured, "environment": {"PYGPT_FORCE": "*:cpu_avx2", "ATEN_CPU_CAPABILITY": "avx2"}})
    said = "<summary>With <code>PYGPT_FORCE=*:cpu_avx2 ATEN_CPU_CAPABILITY=avx2</code></summary>"
    assert held == f"<details>\n{said}\n\n{plain}\n</details>\n"


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
