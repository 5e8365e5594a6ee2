from __future__ import annotations

import pytest

from pygpt.text import WordList


def test_words_are_found_whole_where_there_are_spaces_and_anywhere_where_there_are_none():
    words = WordList(["love", "bad word", "坏", "كلب", "c++"])
    right = {
        "I LOVE gloves, beloved": "I **** gloves, beloved",
        "我love你": "我****你",
        "a bad\n word, badword": "a *********, badword",
        "他是坏人": "他是*人",
        "هذا كلب كبير": "هذا *** كبير",
        "C++ and c+": "*** and c+",
        "loves love_ love2 love": "loves love_ love2 ****",
        "": "",
    }
    for text, masked in right.items():
        assert words.mask(text) == masked
    assert WordList(["क"]).mask("कि क") == "कि *", "a letter with its vowel sign is another"
    assert WordList(["😀"]).mask("a😀b", mark="-") == "a-b"


def test_parts_of_a_text_are_searched_as_one():
    words = WordList(["bad word", "love", "坏"])
    assert words.first_in(["a ba", "d wo", "rd x"]) == "bad word"
    assert words.first_in(["I lo", "ve"]) == "love"
    assert words.first_in(["I love", "ly"]) is None and words.first_in(["g", "love"]) is None
    assert words.first_in(["很", "坏"]) == "坏" and words.first_in([]) is None
    assert words.first_in(["x " * 1000, "love" + " y" * 1000]) == "love"


def test_a_list_is_read_from_a_file(tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes("\ufefflove\r\n\n  bad word \n".encode())
    assert WordList.read(path).mask("love a bad word") == "**** a ********"
    path.write_bytes(b"\xe9")
    with pytest.raises(ValueError, match=r"words\.txt is not UTF-8 text"):
        WordList.read(path)
    path.write_text("\n \n")
    with pytest.raises(ValueError, match=r"words\.txt has no words"):
        WordList.read(path)
    for bad, error, words in (
        ([], ValueError, "at least one"),
        (["a", " "], ValueError, "must not hold empty ones"),
        ([3], TypeError, "must hold strings, but has 3"),
        ("abc", TypeError, "must hold words, not be one string, 'abc'"),
    ):
        with pytest.raises(error, match=words):
            WordList(bad)
