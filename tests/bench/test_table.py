"""The README's table of speed."""

from __future__ import annotations

import json
from pathlib import Path

from bench import table

ROOT = Path(__file__).resolve().parents[2]


def test_the_readme_shows_what_was_measured() -> None:
    found = table.MARKED.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(found) == 3, "what compare.py measured on a CPU and on a GPU, and what decode.py did"
    for file, shown in found:
        measured = json.loads((ROOT / file).read_text(encoding="utf-8"))
        assert shown == table.markdown(measured), f"python bench/table.py {file} --readme"
        assert all(result.get("name", result.get("label")) in shown for result in measured["results"])
