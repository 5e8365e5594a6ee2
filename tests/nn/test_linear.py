from __future__ import annotations

import pytest
import torch

from pygpt.nn import Linear
from tests.nn.plain import assert_takes_the_place
from tests.support import normal


@pytest.mark.parametrize("bias", [True, False])
def test_takes_the_place_of_torchs(generator, bias):
    plain = torch.nn.Sequential(torch.nn.Linear(5, 12), torch.nn.Tanh(), torch.nn.Linear(12, 3, bias=bias))
    assert_takes_the_place(plain, 2, Linear(12, 3, bias=bias), normal(generator, 2, 7, 5))


def test_starts_like_torchs():
    for fan_in in (1, 400):
        module = Linear(fan_in, 1000)
        for parameter in (module.weight, module.bias):
            bound = fan_in**-0.5
            assert parameter.abs().max() <= bound
            assert parameter.detach().std() == pytest.approx(bound / 3**0.5, rel=0.1)
