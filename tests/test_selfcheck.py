"""The checks of ``pygpt doctor --check``: there is one for every op, and on a sound build all pass."""

from __future__ import annotations

import torch

from pygpt import selfcheck
from pygpt.extension import C
from tests.support import fresh_seed


def test_every_implementation_that_runs_here_passes() -> None:
    results = selfcheck.check_all(seed=fresh_seed())
    assert [result for result in results if result.wrong] == []
    checked = {(result.op, result.implementation) for result in results}
    assert checked == {(op, name) for op, entries in C.implementations() for name, reason in entries if not reason}


def test_a_wrong_or_missing_number_is_noticed() -> None:
    right = torch.tensor([1.0, -2.0], dtype=torch.float64)
    for ours in (right * 1.01, right * torch.nan):
        result = selfcheck.Result("add", "cpu_scalar", "float32")
        result.compare("output 0", right, right, allowed=1e-6)
        assert not result.wrong
        result.compare("the gradient of x", ours, right, allowed=1e-6)
        assert "the gradient of x" in result.wrong
