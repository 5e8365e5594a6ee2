"""The README's table of speed."""

from __future__ import annotations

import json
from pathlib import Path

from bench import table

ROOT = Path(__file__).resolve().parents[2]


def test_the_readme_shows_what_was_measured() -> None:
    found = table.MARKED.search((ROOT / "README.md").read_text(encoding="utf-8"))
    assert found is not None, "README.md has no table of speed"
    measured = json.loads((ROOT / found[1]).read_text(encoding="utf-8"))
    assert found[2] == table.markdown(measured), f"python bench/table.py {found[1]} --readme"
    assert all(result["name"] in found[2] for result in measured["results"])
