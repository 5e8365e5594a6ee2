"""Where sentences end, in any language: by the characters that end them, and what stands around those.

Some characters end a sentence wherever they stand (。！？ । ؟ ։ and others). ``.``, ``!``, ``?`` and ``…`` do so before
whitespace, the end, or a script that is written without spaces; and a ``.`` not inside a number, after an initial or a
word without vowels (Dr., vs.), or before a small letter. Quotes and brackets that close belong to the sentence before
them. An empty line ends one in any case.

Source: Unicode Standard Annex #29, "Unicode Text Segmentation", section 5, whose rules these simplify.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

UNSPACED = (
    r"\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3021-\u312f\u31a0-\u31ff"
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
"""Scripts that are written without spaces, as they stand between the brackets of a regular expression: Thai, Lao,
Tibetan, Burmese, Khmer, Chinese, Japanese."""

_ALWAYS = "。！？｡．։؟۔܀܁܂߹।॥၊။።፧፨᙮᜵᜶᠃᠉᱾᱿‼‽⁇⁈⁉⸮꓿꘎꘏꛳꛷꡶꡷꣎꣏꤯꧈꧉꩝꩞꩟꫰꫱꯫﹒﹖﹗"
_BEFORE_SPACE = ".!?…"
_CLOSING = "\"'"
_RUN = re.compile(f"[{re.escape(_ALWAYS + _BEFORE_SPACE)}]+")
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n\s*")
_AFTER = re.compile(rf"\s|[{UNSPACED}]|$")
_WORD_BEFORE = re.compile(r"[^\W\d_]+$")
_MOST_CHARACTERS = 1 << 16  # of a sentence in a stream


def sentence_ends(text: str) -> Iterator[int]:
    """The places behind the sentences that end in a text, closing quotes and brackets included, whitespace not."""
    for match in _RUN.finditer(text):
        end = match.end()
        while end < len(text) and (text[end] in _CLOSING or unicodedata.category(text[end]) in ("Pe", "Pf")):
            end += 1
        marks = match.group()
        if any(mark in _ALWAYS for mark in marks) or (
            _AFTER.match(text, end) and not (set(marks) <= {".", "…"} and _goes_on(text, match.start(), marks, end))
        ):
            yield end


def sentences(text: str | Iterable[str]) -> Iterator[str]:
    """Cut a text into its sentences, without the whitespace between them.

    Args:
        text: or its parts in order, of which no more is held than the sentence that is being read; one of more than
            65,536 characters comes in parts.
    """
    rest = ""
    for piece in (text,) if isinstance(text, str) else text:
        rest += piece
        last = 0
        for end in _all_ends(rest):
            if len(rest[end : end + 99].lstrip()) < 2:  # what follows decides whether the sentence ends here
                break
            yield from _stripped(rest[last:end])
            last = end
        rest = rest[last:]
        while len(rest) > _MOST_CHARACTERS:
            cut = rest.rfind(" ", 1, _MOST_CHARACTERS)
            cut = _MOST_CHARACTERS if cut < 0 else cut
            yield from _stripped(rest[:cut])
            rest = rest[cut:]
    last = 0
    for end in _all_ends(rest):
        yield from _stripped(rest[last:end])
        last = end
    yield from _stripped(rest[last:])


def _all_ends(text: str) -> list[int]:
    """Those of sentences and of what stands before empty lines."""
    return sorted({*sentence_ends(text), *(match.start() for match in _BLANK_LINE.finditer(text))})


def _stripped(text: str) -> Iterator[str]:
    text = text.strip()
    if text:
        yield text


def _goes_on(text: str, start: int, marks: str, end: int) -> bool:
    """Whether a sentence goes on after ``.`` or ``…``, of which the next word and the one before may tell."""
    following = text[end:].lstrip()[:1]
    if following.islower():
        return True
    before = _WORD_BEFORE.search(text, max(0, start - 20), start)
    if marks != "." or before is None or not following:
        return False
    word = before.group().lower()
    latin = all("LATIN" in unicodedata.name(letter, "") for letter in word)
    return latin and (len(word) == 1 or not re.search("[aeiouy]", unicodedata.normalize("NFD", word)))
