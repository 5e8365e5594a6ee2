from __future__ import annotations

import torch

from pygpt.nn import RMSNorm
from tests.nn.plain import assert_takes_the_place
from tests.support import normal


def test_takes_the_place_of_torchs(generator):
    plain = torch.nn.Sequential(torch.nn.Linear(5, 12), torch.nn.RMSNorm(12, eps=1e-3), torch.nn.Linear(12, 3))
    torch.nn.init.normal_(plain[1].weight, generator=generator)
    assert_takes_the_place(plain, 1, RMSNorm(12, eps=1e-3), normal(generator, 2, 7, 5))


def test_starts_with_a_scale_of_one():
    module = RMSNorm(4, dtype=torch.float64)
    assert (
        module.weight.dtype == torch.float64 and (module.weight == 1).all() and list(module.state_dict()) == ["weight"]
    )
