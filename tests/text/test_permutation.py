"""A permutation for every size and key, the same for ever, without a preference for any place."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pygpt.text.permutation import permuted


@given(size=st.integers(1, 3000), seed=st.integers(-(2**70), 2**70), epoch=st.integers(0, 10))
def test_every_element_once(size: int, seed: int, epoch: int) -> None:
    order = permuted(np.arange(size), size, seed, epoch)
    assert np.array_equal(np.sort(order), np.arange(size))
    index = size // 2
    assert permuted(np.array(index), size, seed, epoch) == order[index], "one place alone is what it is among all"


def test_the_order_never_changes() -> None:
    # A changed order would silently break the resumption of runs that older versions began.
    assert permuted(np.arange(10), 10, 0, 0).tolist() == [2, 6, 3, 5, 9, 7, 0, 8, 1, 4]
    assert permuted(np.array([0, 10**12]), 10**13, 7).tolist() == [168919381419, 5086645850067]


@pytest.mark.parametrize("size", [2, 3, 5, 12, 30])
def test_each_element_comes_to_each_place_equally_often(size: int) -> None:
    keys = 3000
    counts = np.zeros((size, size))
    for key in range(keys):
        counts[np.arange(size), permuted(np.arange(size), size, key)] += 1
    expected = keys / size
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = (size - 1) ** 2
    assert abs(chi_square - freedom) < 6 * np.sqrt(2 * freedom)


def test_neighbours_and_epochs_are_unrelated() -> None:
    size = 100_000
    first, second = (permuted(np.arange(size), size, 3, epoch).astype(float) for epoch in (0, 1))
    for a, b in ((first[:-1], first[1:]), (first, second), (first, np.arange(size))):
        assert abs(np.corrcoef(a, b)[0, 1]) < 6 / np.sqrt(size)
