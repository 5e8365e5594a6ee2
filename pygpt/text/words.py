"""Lists of words and phrases to find in texts: to leave documents out, or to mask them in what a model writes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path

from pygpt.text.sentences import UNSPACED

_SPACED = rf"[^\W{UNSPACED}]"  # letters, digits and _ of scripts with spaces between words


class WordList:
    """Words and phrases, found whatever their case, and only as whole words where a script has spaces between words.

    Args:
        words: whitespace in a phrase stands for any whitespace.

    Raises: ValueError if there is none, or one is empty; TypeError if one is no string, or all are one string.
    """

    def __init__(self, words: Iterable[str]) -> None:
        if isinstance(words, str):
            raise TypeError(f"a list of words must hold words, not be one string, {words!r}")
        listed = list(words)
        for word in listed:
            if not isinstance(word, str):
                raise TypeError(f"a list of words must hold strings, but has {word!r}")
            if not word.strip():
                raise ValueError("a list of words must not hold empty ones")
        if not listed:
            raise ValueError("a list of words needs at least one")
        self._reach = max(len(word) for word in listed) + 1
        # Longer ones first, so that of two that begin alike the whole is found.
        ordered = sorted({_normal(word) for word in listed}, key=lambda word: (-len(word), word))
        self._pattern = re.compile("|".join(map(_as_pattern, ordered)), re.IGNORECASE)

    @property
    def longest(self) -> int:
        """The most characters of a word, with one space between those of a phrase."""
        return self._reach - 1

    @classmethod
    def read(cls, path: str | PathLike[str]) -> WordList:
        """Read a list from a UTF-8 file, one word or phrase a line; empty lines are passed over.

        Raises: OSError; ValueError naming the file if it is not UTF-8 or has no words.
        """
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
        words = [line.strip() for line in lines if line.strip()]
        if not words:
            raise ValueError(f"{path} has no words")
        return cls(words)

    def first_in(self, pieces: Iterable[str]) -> str | None:
        """The first of the words in a text, given as its parts in order; None if there is none."""
        held = ""
        for piece in pieces:
            text = held + piece
            for start, end in self._places(text):
                if end < len(text):  # at the very end, a longer word may go on
                    return text[start:end]
            held = text[-2 * self._reach :]
        return next((held[start:end] for start, end in self._places(held)), None)

    def mask(self, text: str, mark: str = "*") -> str:
        """The text with ``mark`` in place of every character of the words."""
        out, last = [], 0
        for start, end in self._places(text):
            out += [text[last:start], mark * (end - start)]
            last = end
        return "".join([*out, text[last:]])

    def _places(self, text: str) -> Iterator[tuple[int, int]]:
        for match in self._pattern.finditer(text):
            if not (match.end() < len(text) and unicodedata.category(text[match.end()]).startswith("M")):
                yield match.start(), match.end()


def _normal(word: str) -> str:
    return " ".join(unicodedata.normalize("NFC", word).split())


def _as_pattern(word: str) -> str:
    before = rf"(?<!{_SPACED})" if re.match(_SPACED, word) else ""
    after = rf"(?!{_SPACED})" if re.match(_SPACED, word[-1]) else ""
    return before + r"\s+".join(map(re.escape, word.split())) + after
