from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pygpt.text import sentences


@pytest.mark.parametrize(
    "text, right",
    [
        ("Hello there. How are you?  Fine!", ["Hello there.", "How are you?", "Fine!"]),
        (
            "Dr. Smith paid 3.14 dollars to J. R. Jones. Really?!",
            ["Dr. Smith paid 3.14 dollars to J. R. Jones.", "Really?!"],
        ),
        ("He said “Go.” Then (he left.) And came.", ["He said “Go.”", "Then (he left.)", "And came."]),
        ("See a.b/c?d=1, e.g. this one. Next…  End", ["See a.b/c?d=1, e.g. this one.", "Next…", "End"]),
        ("他来了。你好吗？“很好！”再见", ["他来了。", "你好吗？", "“很好！”", "再见"]),
        ("I like 猫。Yes! これはペンです。", ["I like 猫。", "Yes!", "これはペンです。"]),
        ("هل أنت بخير؟ نعم. شكرا", ["هل أنت بخير؟", "نعم.", "شكرا"]),
        ("यह है। वह है।", ["यह है।", "वह है।"]),
        ("Great 👍🏽! 👩‍👩‍👧 came. 🎉", ["Great 👍🏽!", "👩‍👩‍👧 came.", "🎉"]),
        ("A title\n\nA body\nof two lines.", ["A title", "A body\nof two lines."]),
        ("no end", ["no end"]),
        (" \n ", []),
        ("", []),
    ],
)
def test_sentences_of_many_languages(text, right):
    assert list(sentences(text)) == right


@given(
    st.lists(
        st.sampled_from(
            ["A", "b", "Dr", "他", "好", "é", "😀", " ", "\n", ".", "!", "。", "？", "؟", '"', "”", ")", "7"]
        ),
        max_size=40,
    ),
    st.lists(st.integers(1, 7), min_size=1, max_size=40),
)
def test_a_stream_has_the_sentences_of_the_whole(parts, sizes):
    text, pieces, place = "".join(parts), [], 0
    while place < len(text):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(text[place : place + size])
        place += size
    found = list(sentences(pieces))
    assert "".join("".join(found).split()) == "".join(text.split()), "nothing is lost"
    assert found == list(sentences(text))


def test_a_stream_without_an_end_does_not_grow():
    longest = max(len(part) for part in sentences("word " * 100 for _ in range(1000)))
    assert longest <= 1 << 16
