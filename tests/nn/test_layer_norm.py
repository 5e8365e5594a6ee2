from __future__ import annotations

import pytest
import torch

from pygpt.nn import LayerNorm
from tests.nn.plain import assert_takes_the_place
from tests.support import normal


@pytest.mark.parametrize("bias", [True, False])
def test_takes_the_place_of_torchs(generator, bias):
    plain = torch.nn.Sequential(
        torch.nn.Linear(5, 12), torch.nn.LayerNorm(12, eps=1e-3, bias=bias), torch.nn.Linear(12, 3)
    )
    torch.nn.init.normal_(plain[1].weight, generator=generator)
    assert_takes_the_place(plain, 1, LayerNorm(12, eps=1e-3, bias=bias), normal(generator, 2, 7, 5))


def test_starts_as_the_identity():
    module = LayerNorm(4, dtype=torch.float64)
    assert module.weight.dtype == torch.float64 and (module.weight == 1).all() and (module.bias == 0).all()
