from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pygpt.text import Finish, WordList, collapse_repeats, strip_prompt, trim_to_sentence


@pytest.mark.parametrize(
    "text, right",
    [
        ("One. Two! And then", "One. Two!"),
        ("他来了。然后他", "他来了。"),
        ("نعم؟ ثم", "نعم؟"),
        ("no end at all", "no end at all"),
        ("", ""),
        ("“Go.” he", "“Go.” he"),
        ("“Go.” He", "“Go.”"),
    ],
)
def test_a_text_ends_with_its_last_whole_sentence(text, right):
    assert trim_to_sentence(text) == right


def test_the_prompt_is_stripped():
    assert strip_prompt("Once upon a time", "Once") == " upon a time"
    with pytest.raises(ValueError, match="does not begin with the prompt 'Twice', but with 'Once upon'"):
        strip_prompt("Once upon", "Twice")


@pytest.mark.parametrize(
    "text, most, right",
    [
        ("the the the cat", 1, "the cat"),
        ("the the the cat", 2, "the the cat"),
        ("I am here. I am here.\nI am here. Yes.", 1, "I am here. Yes."),
        ("The cat, the Cat, THE CAT, the dog", 1, "The cat, the dog"),
        ("我来了。我来了。我来了。好", 1, "我来了。好"),
        ("谢谢你 天天 哈哈哈", 1, "谢谢你 天天 哈哈哈"),
        ("很好很好很好很好", 1, "很好"),
        ("1000000 it's it's fine", 1, "1000000 it's fine"),
        ("😀😀😀", 1, "😀😀😀"),
        ("a b c", 1, "a b c"),
        ("", 1, ""),
    ],
)
def test_repetitions_are_collapsed(text, most, right):
    assert collapse_repeats(text, most) == right


@given(st.text("ab好😀 .,\n", max_size=60), st.integers(1, 3))
def test_what_is_collapsed_stays_so_and_begins_alike(text, most):
    once = collapse_repeats(text, most)
    assert len(once) <= len(text) and once[:1] == text[:1] and set(once) <= set(text)


def test_a_long_repetition_takes_no_time():
    words = " ".join(f"w{n}" for n in range(64)) + " "
    assert collapse_repeats(words * 200).split() == words.split()
    assert collapse_repeats(" ".join(f"w{n}" for n in range(20_000))).count(" ") == 19_999


def test_steps_follow_one_another():
    finish = Finish(collapse=1, trim=True, mask=WordList(["cat"]))
    assert finish("The cat sat. The cat sat. The ca") == "The *** sat." and finish.changes
    assert Finish()("as it is ") == "as it is " and not Finish().changes
    with pytest.raises(ValueError, match="collapse must be an integer of at least 1, not 0"):
        Finish(collapse=0)
    with pytest.raises(TypeError, match="mask must be a WordList, not 'cat'"):
        Finish(mask="cat")
