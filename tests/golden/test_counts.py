"""No kernel takes more than it did: the emulated device's counts beside those recorded. README.md says what to do."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.golden.counts import COUNTS

ROOT = COUNTS.parents[2]
WORSE = 1.01  # times what is recorded: more is a failure


def changes(before: dict[str, Any], now: dict[str, Any]) -> tuple[list[str], list[str]]:
    """In words: all that has changed, and what of it is worse."""
    changed, worse = [], []
    for run in sorted(before.keys() | now.keys()):
        old_kernels, new_kernels = before.get(run, {}), now.get(run, {})
        for kernel in sorted(old_kernels.keys() | new_kernels.keys()):
            old, new = old_kernels.get(kernel, {}), new_kernels.get(kernel, {})
            for what in sorted(old.keys() | new.keys()):
                if old.get(what, 0) == new.get(what, 0):
                    continue
                words = f"{run}: {kernel}: {what} {old.get(what, 0)} -> {new.get(what, 0)}"
                changed.append(words)
                total = what in ("instructions", "shared_wavefronts", "global_sectors")
                if old and total and new.get(what, 0) > WORSE * old.get(what, 0):
                    worse.append(words)
    return changed, worse


@pytest.mark.skipif(importlib.util.find_spec("pygpt._C_emulated") is None, reason="this build has no emulated device")
def test_kernels_take_no_more_than_is_recorded():
    program = "import json, sys; sys.path.append(sys.argv[1]); from tests.golden.counts import counts"
    run = subprocess.run(
        [sys.executable, "-c", program + "; print(json.dumps(counts()))", str(ROOT)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYGPT_EMULATE": "80"},
    )
    assert run.returncode == 0, run.stderr
    now, recorded = json.loads(run.stdout.splitlines()[-1]), json.loads(COUNTS.read_text())
    if now["compiler"] != recorded["compiler"]:
        pytest.skip(f"recorded with {recorded['compiler']}, but this is {now['compiler']}")
    changed, worse = changes(recorded["counts"], now["counts"])
    print("\n".join(changed))
    assert not worse, "see tests/golden/README.md"


def test_what_is_worse_is_told_from_what_has_changed():
    before = {"add": {"kernel": {"instructions": 100, "fp32": 3}, "other": {"instructions": 7}}}
    now = {"add": {"kernel": {"instructions": 102, "fp32": 4}, "new": {"instructions": 9}}}
    changed, worse = changes(before, now)
    assert worse == ["add: kernel: instructions 100 -> 102"]
    assert len(changed) == 4
    now["add"]["kernel"]["instructions"] = 60
    assert changes(before, now)[1] == []
