from __future__ import annotations

import torch

from pygpt.nn import Embedding
from tests.nn.plain import assert_takes_the_place


def test_takes_the_place_of_torchs(generator):
    plain = torch.nn.Sequential(torch.nn.Embedding(11, 6), torch.nn.Linear(6, 3))
    assert_takes_the_place(plain, 0, Embedding(11, 6), torch.randint(11, (4, 5), generator=generator))
