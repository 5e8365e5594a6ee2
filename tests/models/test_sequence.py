"""Where tokens stand; ids and lengths that do not fit are refused in words."""

import math

import pytest
import torch

from pygpt.models.sequence import check_ids, check_shape, document_positions, past_lengths, sinusoids


def test_sinusoids() -> None:
    table = sinusoids(5, 6)
    assert table.dtype == torch.float64 and table.shape == (5, 6)
    for time in range(5):
        for pair in range(3):
            angle = time / 10000 ** (2 * pair / 6)
            assert table[time, 2 * pair] == pytest.approx(math.sin(angle), abs=1e-15)
            assert table[time, 2 * pair + 1] == pytest.approx(math.cos(angle), abs=1e-15)


def test_sinusoids_of_odd_width() -> None:
    table = sinusoids(4, 3)
    torch.testing.assert_close(table[:, 0], torch.arange(4, dtype=torch.float64).sin())
    torch.testing.assert_close(table[:, 1], torch.arange(4, dtype=torch.float64).cos())


def test_what_lies_past_a_rows_length() -> None:
    ids = torch.zeros(3, 4, dtype=torch.int64)
    assert past_lengths(ids, None) is None
    past = past_lengths(ids, torch.tensor([4, 1, 0]))
    assert past.tolist() == [[False] * 4, [False, True, True, True], [True] * 4]


def test_positions_begin_anew_in_every_document() -> None:
    cpu = torch.device("cpu")
    assert document_positions(4, None, cpu).tolist() == [0, 1, 2, 3]
    assert document_positions(6, torch.tensor([0, 2, 2, 5, 6]), cpu).tolist() == [0, 1, 0, 1, 2, 0]


IDS = torch.zeros(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (([1], None, None), TypeError, "ids must be a tensor, not a list"),
        ((IDS[0], None, None), ValueError, r"ids must have shape \(batch, time\), not \(3,\)"),
        ((IDS.float(), None, None), TypeError, r"ids must be int64, not torch\.float32"),
        ((IDS, 2, None), ValueError, "context_length is 2, but ids has 3 positions"),
        ((IDS, 3, [1, 2]), TypeError, "lengths must be a tensor, not a list"),
        ((IDS, 3, torch.ones(3, dtype=torch.int64)), ValueError, r"lengths must be int64 of shape \(2,\)"),
        ((IDS, 3, torch.tensor([1, 4])), ValueError, r"at least 0 and at most 3, but is \[1, 4\]"),
        ((IDS, 3, torch.tensor([-1, 3])), ValueError, r"at least 0 and at most 3, but is \[-1, 3\]"),
    ],
)
def test_ids_and_lengths_that_do_not_fit(arguments: tuple, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        check_ids(*arguments)


def test_ids_and_lengths_that_fit() -> None:
    check_ids(IDS, 3, torch.tensor([0, 3]))
    check_ids(IDS[:0], None, torch.zeros(0, dtype=torch.int64))
    check_shape("targets", IDS, IDS)
    with pytest.raises(ValueError, match=r"targets must have the shape of ids, \(2, 3\), not \(2, 2\)"):
        check_shape("targets", IDS[:, :2], IDS)
    with pytest.raises(TypeError, match=r"targets must be int64, not torch\.int32"):
        check_shape("targets", IDS.int(), IDS)
