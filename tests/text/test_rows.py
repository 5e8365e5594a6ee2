"""Rows of several lengths as the tensors that models take."""

import numpy as np

from pygpt.text.rows import IGNORED, SpecialTokens, source_and_target, stacked


def row(*ids: int) -> np.ndarray:
    return np.array(ids, np.int64)


def test_rows_are_padded_to_the_longest_or_to_a_width() -> None:
    rows = [row(1, 2, 3), row(), row(4)]
    assert stacked(rows).tolist() == [[1, 2, 3], [0, 0, 0], [4, 0, 0]]
    assert stacked(rows, IGNORED, 4)[2].tolist() == [4, IGNORED, IGNORED, IGNORED]
    assert stacked([row()]).shape == (1, 0)


def test_special_tokens_stand_above_those_of_texts() -> None:
    assert SpecialTokens.above(10) == SpecialTokens(mask=10, start=11, end=12, pad=13)


def test_a_target_is_read_from_its_start_and_told_to_its_end() -> None:
    special = SpecialTokens.above(10)
    source, ids, targets, source_lengths, lengths = source_and_target(
        [(row(1, 2), row(3)), (row(4), row(5, 6))], special
    )
    assert source.tolist() == [[1, 2], [4, 13]] and source_lengths.tolist() == [2, 1]
    assert ids.tolist() == [[11, 3, 13], [11, 5, 6]] and lengths.tolist() == [2, 3]
    assert targets.tolist() == [[3, 12, IGNORED], [5, 6, 12]]
