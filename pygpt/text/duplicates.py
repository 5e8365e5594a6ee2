"""Documents that were seen before, as they are or nearly so, found without keeping their texts.

A document that is the same is found by its hash. One that is nearly the same is found by MinHash (the package
datasketch): the share of their shingles that two documents have in common is estimated from 128 numbers of each. A
shingle is 12 bytes in a row of the text without case and whitespace: about two English words, four Chinese characters
or six Arabic letters, so that scripts without spaces need nothing else.

Source: Broder, "On the resemblance and containment of documents", 1997.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

_SHINGLE = 12  # bytes
_PERMUTATIONS = 128
_AT_ONCE = 1 << 12  # shingles, of which each takes 128 numbers for a moment


class ExactDuplicates:
    """Finds texts that were there before; keeps 16 bytes of each."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self.begin()

    def begin(self) -> None:
        """Begin a text."""
        self._hash = hashlib.blake2b(digest_size=16)

    def read(self, piece: str) -> None:
        """Take the next part of the text."""
        self._hash.update(piece.encode("utf-8"))

    def was_there(self) -> bool:
        """Whether the text, which ends here, was there before; if not, it is from now on."""
        digest = self._hash.digest()
        before = digest in self._seen
        self._seen.add(digest)
        return before


class NearDuplicates:
    """Finds texts most of which was there before; keeps about 6 kB of each text that is new.

    Args:
        threshold: from which share of common shingles, 0 to 1, two texts are nearly the same.

    Raises: ValueError if the threshold does not fit, or the package datasketch is not installed.
    """

    def __init__(self, threshold: float) -> None:
        if not isinstance(threshold, int | float) or isinstance(threshold, bool) or not 0 < threshold < 1:
            raise ValueError(f"near_duplicates must be a number between 0 and 1, not {threshold!r}")
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError as error:
            raise ValueError("near-duplicates need the package datasketch: pip install 'pygpt[data]'") from error
        self._new: Callable[[], Any] = lambda: MinHash(num_perm=_PERMUTATIONS, hashfunc=int)
        self._threshold = threshold
        self._index = MinHashLSH(min(threshold, 0.9), _PERMUTATIONS)  # what it finds is compared with the threshold
        self._kept: list[Any] = []
        self.begin()

    def begin(self) -> None:
        """Begin a text."""
        self._current = self._new()
        self._rest = b""
        self._empty = True

    def read(self, piece: str) -> None:
        """Take the next part of the text."""
        folded = "".join(unicodedata.normalize("NFKC", piece).casefold().split()).encode("utf-8")
        data = self._rest + folded
        if len(data) >= _SHINGLE:
            self._take(_shingles(data))
            self._rest = data[1 - _SHINGLE :]
        else:
            self._rest = data

    def was_there(self) -> bool:
        """Whether nearly the same as the text, which ends here, was there before; if not, it is from now on."""
        if self._empty:  # shorter than a shingle
            self._take(_shingles(self._rest.ljust(_SHINGLE, b"\0")))
        near = self._index.query(self._current)
        if any(self._kept[other].jaccard(self._current) >= self._threshold for other in near):
            return True
        self._index.insert(len(self._kept), self._current)
        self._kept.append(self._current)
        return False

    def _take(self, shingles: npt.NDArray[np.uint64]) -> None:
        for start in range(0, len(shingles), _AT_ONCE):
            self._current.update_batch(shingles[start : start + _AT_ONCE].tolist())
        self._empty = False


def share_in_common(first: Iterable[str], second: Iterable[str]) -> float:
    """The share of shingles that two texts have in common, computed and not estimated: their Jaccard similarity."""
    sets = []
    for pieces in (first, second):
        folded = "".join(unicodedata.normalize("NFKC", "".join(pieces)).casefold().split()).encode("utf-8")
        sets.append(set(_shingles(folded.ljust(_SHINGLE, b"\0")).tolist()))
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def _shingles(data: bytes) -> npt.NDArray[np.uint64]:
    """A 32-bit hash of every shingle, each hash once."""
    values = np.frombuffer(data, np.uint8).astype(np.uint64)
    count = len(values) - _SHINGLE + 1
    hashes = np.zeros(count, np.uint64)
    for place in range(_SHINGLE):
        hashes = hashes * np.uint64(0x100000001B3) + values[place : place + count] + np.uint64(1)
    hashes = (hashes ^ (hashes >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return np.unique(hashes >> np.uint64(32))
