from __future__ import annotations

import random

import pytest

from pygpt.text.duplicates import ExactDuplicates, NearDuplicates, share_in_common
from tests.support import fresh_seed

pytest.importorskip("datasketch", reason="datasketch, which finds near-duplicates, is not installed")

ALPHABETS = {
    "english": "abcdefghij ",
    "chinese": "的一是不了人我在有他这为之大来以个中上们。",
    "arabic": "ابتثجحخدذر ",
    "emoji": "😀👍🏽👩‍👩‍👧🎉🐱",
}


def seen(duplicates: ExactDuplicates | NearDuplicates, *pieces: str) -> bool:
    duplicates.begin()
    for piece in pieces:
        duplicates.read(piece)
    return duplicates.was_there()


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_near_duplicates_are_those_that_share_enough(alphabet):
    """The estimate against the share itself: 128 numbers have a standard error of at most 0.045."""
    draws = random.Random(fresh_seed())

    def text(size: int) -> str:
        return "".join(draws.choice(ALPHABETS[alphabet]) for _ in range(size))

    original = text(2000)
    for part in (0.02, 0.5, 0.999):
        start = int(len(original) * (1 - part))
        changed = original[:start] + text(len(original) - start)
        share = share_in_common([original], [changed])
        duplicates = NearDuplicates(0.7)
        assert not seen(duplicates, original)
        found = seen(duplicates, changed)
        assert found == (share >= 0.7) or abs(share - 0.7) < 0.2, f"{share} of {part}"


def test_neither_case_nor_whitespace_nor_pieces_matter():
    text = "The quick brown fox jumps over the lazy dog. 敏捷的棕色狐狸。"
    duplicates = NearDuplicates(0.99)
    assert not seen(duplicates, text)
    assert seen(duplicates, *(text.upper().replace(" ", "\n  ")))
    assert (
        not seen(duplicates, "")
        and seen(duplicates, " ")
        and not seen(duplicates, "short")
        and seen(duplicates, "SHORT")
    )


def test_the_same_text_is_found():
    duplicates = ExactDuplicates()
    assert not seen(duplicates, "abc") and seen(duplicates, "a", "bc") and not seen(duplicates, "ABC")


@pytest.mark.parametrize("threshold", [0, 1, 1.5, "most", True])
def test_bad_thresholds(threshold):
    with pytest.raises(ValueError, match="near_duplicates must be a number between 0 and 1"):
        NearDuplicates(threshold)
