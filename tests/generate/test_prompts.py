"""Prompts and their lengths, what ends a row, what is told to the caller."""

import pytest
import torch
from torch import Tensor

from pygpt.generate.prompts import (
    Stops,
    check_ids,
    check_room,
    prompt_lengths_of,
    tell_and_stop,
)

IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


class Bytes:
    """A token is its byte."""

    def token_bytes(self, token: int) -> bytes:
        return bytes([token])


def test_a_stop_string_is_found_across_tokens() -> None:
    stops = Stops((7,), "abc", Bytes())
    tail = b""
    for token in b"xab":
        ended, tail = stops.ends(token, tail)
        assert not ended
    assert tail == b"ab", "as much as the longest stop can begin with"
    assert stops.ends(ord("c"), tail) == (True, b"")
    assert stops.ends(7, b"")[0] and not stops.ends(8, b"")[0]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (((1.5,), (), None), TypeError, r"stop_tokens must hold integers, but is \(1.5,\)"),
        (((), 3, None), TypeError, "stop must be a string or hold strings, but is 3"),
        (((), ["a", ""], Bytes()), ValueError, "stop must hold strings that are not empty"),
        (((), "a", None), ValueError, "stop needs a tokenizer"),
    ],
)
def test_what_cannot_end_a_row(arguments: tuple, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Stops(*arguments)


def test_rows_that_are_on_are_told_and_end() -> None:
    told: list[tuple[int, int]] = []
    on, tails = [True, False, True], [b"", b"", b""]
    chosen, stops = torch.tensor([1, 2, 3]), Stops((3,), (), None)
    assert tell_and_stop(chosen, on, stops, tails, lambda row, token: told.append((row, token)))
    assert told == [(0, 1), (2, 3)] and on == [True, False, False]
    assert not tell_and_stop(chosen, on, stops, tails, None)
    assert not tell_and_stop(chosen, on, Stops((), (), None), tails, None) and on == [True, False, False]


def test_lengths_are_the_rows_unless_they_are_given() -> None:
    assert prompt_lengths_of(IDS, None).tolist() == [3, 3]
    assert prompt_lengths_of(IDS, [1, 3]).tolist() == [1, 3]
    assert prompt_lengths_of(IDS[:0], None).shape == (0,)


@pytest.mark.parametrize(
    ("ids", "lengths", "error", "words"),
    [
        (IDS.float(), None, TypeError, "ids must be an int64 tensor, not torch.float32"),
        ([1], None, TypeError, "ids must be an int64 tensor, not list"),
        (IDS[0], None, ValueError, r"ids must have shape \(batch, time\)"),
        (IDS[:, :0], None, ValueError, "time of at least 1"),
        (IDS, [1], ValueError, r"prompt_lengths must be int64 of shape \(2,\)"),
        (IDS, [0, 1], ValueError, r"prompt_lengths must be at least 1 and at most 3, but is \[0, 1\]"),
        (IDS, [1, 4], ValueError, r"prompt_lengths must be at least 1 and at most 3, but is \[1, 4\]"),
    ],
)
def test_prompts_that_do_not_fit(ids: Tensor, lengths: list[int] | None, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        prompt_lengths_of(ids, lengths)


def test_tokens_outside_the_vocabulary_are_named_and_padding_is_not_looked_at() -> None:
    lengths, stops = torch.tensor([2, 3]), Stops((), (), None)
    check_ids(IDS.masked_fill(IDS == 3, 99), lengths, stops, 0, 7)
    with pytest.raises(ValueError, match="ids must be at least 0 and less than the vocabulary of 6, but has 6"):
        check_ids(IDS, lengths, stops, 0, 6)
    with pytest.raises(ValueError, match="stop_tokens must be at least 0 and less than 7, but has 7"):
        check_ids(IDS, lengths, Stops((7,), (), None), 0, 7)
    with pytest.raises(ValueError, match="pad_token must be at least 0 and less than 7, but is -1"):
        check_ids(IDS, lengths, stops, -1, 7)


def test_room_for_new_tokens() -> None:
    lengths = torch.tensor([2, 5])
    check_room(lengths, 3, 8, "error")
    check_room(lengths, 4, 8, "slide")
    check_room(lengths[:0], 8, 8, "error")
    with pytest.raises(ValueError, match="context_length is 8, but the prompt has 5 tokens and max_new_tokens is 4"):
        check_room(lengths, 4, 8, "error")
