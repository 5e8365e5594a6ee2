"""What a model has written, made fit to be shown: whole sentences, no repetitions, words of a list masked."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pygpt.text.sentences import UNSPACED, sentence_ends
from pygpt.text.words import WordList

# A word, or a character of a script without spaces, with what stands between it and the next.
_ITEM = re.compile(rf"\s*(?:[{UNSPACED}]|[^\W{UNSPACED}]+(?:['’][^\W{UNSPACED}]+)*)[^\w]*|[^\w]+")
_UNSPACED = re.compile(f"[{UNSPACED}]")
_LONGEST_REPEAT = 64  # items of a repeated part


@dataclass(frozen=True)
class Finish:
    """What is done with a text that a model has written, in this order.

    Args:
        collapse: keep this many of what is said several times in a row; None: all. See `collapse_repeats`.
        trim: end with the last whole sentence, if there is one.
        mask: words that are replaced by asterisks.

    Raises: ValueError or TypeError if an option does not fit.
    """

    collapse: int | None = None
    trim: bool = False
    mask: WordList | None = None

    def __post_init__(self) -> None:
        if self.collapse is not None:
            collapse_repeats("", self.collapse)  # which checks it
        if self.mask is not None and not isinstance(self.mask, WordList):
            raise TypeError(f"mask must be a WordList, not {self.mask!r}")

    @property
    def changes(self) -> bool:
        """Whether there is anything to do."""
        return self.collapse is not None or self.trim or self.mask is not None

    def __call__(self, text: str) -> str:
        """The finished text."""
        if self.collapse is not None:
            text = collapse_repeats(text, self.collapse)
        if self.trim:
            text = trim_to_sentence(text)
        return text if self.mask is None else self.mask.mask(text)


def trim_to_sentence(text: str) -> str:
    """A text up to the end of its last whole sentence; all of it, if no sentence ends in it."""
    last = max(sentence_ends(text), default=0)
    return text[:last] if last else text


def strip_prompt(text: str, prompt: str) -> str:
    """A text without the prompt that it begins with.

    Raises: ValueError if it does not begin so.
    """
    if not text.startswith(prompt):
        raise ValueError(f"the text does not begin with the prompt {prompt[:60]!r}, but with {text[:60]!r}")
    return text[len(prompt) :]


def collapse_repeats(text: str, most: int = 1) -> str:
    """A text in which no word, and no sequence of up to 64 words, stands more than ``most`` times in a row.

    Case and the whitespace between words do not matter, punctuation does. In scripts without spaces, characters are
    counted instead of words; a single one may be repeated.

    Raises: ValueError if ``most`` is less than 1.
    """
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        raise ValueError(f"collapse must be an integer of at least 1, not {most!r}")
    items = [match.group() for match in _ITEM.finditer(text)]
    # What ends one item and begins the next stands in its key where it is no whitespace.
    keys = ["".join(item.split()).casefold() for item in items]
    out: list[str] = []
    place = 0
    while place < len(items):
        size, times = _repeat_at(keys, place)
        if times > most:
            out += items[place : place + most * size]
            last = items[place + times * size - 1]
            out[-1] = out[-1].rstrip() + last[len(last.rstrip()) :]  # with the space behind the last
        else:
            size, times = 1, 1
            out.append(items[place])
        place += size * times
    return "".join(out)


def _repeat_at(keys: list[str], place: int) -> tuple[int, int]:
    """The shortest part that is repeated from here: its items, and how often it stands there; if none is, (1, 1)."""
    for size in range(1, min(_LONGEST_REPEAT, (len(keys) - place) // 2) + 1):
        if keys[place] != keys[place + size] or (size == 1 and _UNSPACED.match(keys[place])):
            continue
        part, times = keys[place : place + size], 1
        while keys[place + times * size : place + (times + 1) * size] == part:
            times += 1
        if times > 1:
            return size, times
    return 1, 1
