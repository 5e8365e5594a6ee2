from __future__ import annotations

import cmath

import pytest
import torch

from pygpt.nn.rotary import rotations


def test_are_cosines_and_sines_of_each_positions_angles():
    table = rotations(5, 6, 100.0)
    assert table.dtype == torch.float64 and table.shape == (5, 6)
    for time in range(5):
        for pair in range(3):
            turn = cmath.exp(1j * time * 100.0 ** (-2 * pair / 6))
            assert complex(table[time, pair], table[time, 3 + pair]) == pytest.approx(turn, abs=1e-15)


def test_position_0_does_not_turn():
    assert rotations(1, 4, 10000.0).tolist() == [[1, 1, 0, 0]]
