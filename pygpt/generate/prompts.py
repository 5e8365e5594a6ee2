"""What sampling and searching have in common: the model they ask, checks of prompts, when a row ends."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pygpt.generate.cache import KeyValueCache


class TokenBytes(Protocol):
    """What stop strings need of a tokenizer."""

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for."""


class LanguageModel(Protocol):
    """What tokens are sampled from: a `pygpt.GPT`, or an encoder–decoder that knows its sources."""

    config: Any  # with vocab_size and context_length

    def hidden(self, ids: Tensor, lengths: Tensor | None = None, *, cache: KeyValueCache | None = None) -> Tensor:
        """What the head sees, (rows, time, width)."""

    def logits(self, hidden: Tensor, decode: bool = False) -> Tensor:
        """The head."""

    def session(self, passes: int = 0) -> contextlib.AbstractContextManager[Any]:
        """Inside, the weights do not change; gives what keeps things for as long: its attribute ``decoding``."""

    def modules(self) -> Iterator[torch.nn.Module]:
        """What can be in training mode."""


class Stops:
    """When a row ends."""

    def __init__(self, tokens: Sequence[int], strings: str | Sequence[str], tokenizer: TokenBytes | None) -> None:
        try:
            self.tokens = frozenset(operator.index(token) for token in tokens)
        except TypeError:
            raise TypeError(f"stop_tokens must hold integers, but is {tokens!r}") from None
        try:
            strings = (strings,) if isinstance(strings, str) else tuple(strings)
        except TypeError:
            raise TypeError(f"stop must be a string or hold strings, but is {strings!r}") from None
        if not all(isinstance(string, str) and string for string in strings):
            raise ValueError(f"stop must hold strings that are not empty, but is {strings!r}")
        if strings and tokenizer is None:
            raise ValueError("stop needs a tokenizer, to know the text of the tokens")
        self.tokenizer = tokenizer
        self.strings = tuple(string.encode() for string in strings)
        self.reach = max((len(string) for string in self.strings), default=1) - 1

    def ends(self, token: int, tail: bytes) -> tuple[bool, bytes]:
        """Whether a row ends with this token, whose text before it ended in ``tail``; and its new tail."""
        if self.strings and self.tokenizer is not None:
            text = tail + self.tokenizer.token_bytes(token)
            if any(string in text for string in self.strings):
                return True, b""
            tail = text[len(text) - min(self.reach, len(text)) :]
        return token in self.tokens, tail


def tell_and_stop(
    chosen: Tensor, on: list[bool], stops: Stops, tails: list[bytes], stream: Callable[[int, int], None] | None
) -> bool:
    """Hand new tokens of the rows that are ``on`` to the caller; mark those that end, and say whether there are any."""
    if stream is None and not stops.tokens and not stops.strings:
        return False
    before = sum(on)
    for row, token in enumerate(chosen.tolist()):
        if not on[row]:
            continue
        ended, tails[row] = stops.ends(token, tails[row])
        on[row] = not ended
        if stream is not None:
            stream(row, token)
    return sum(on) < before


def prompt_lengths_of(ids: Tensor, given: Sequence[int] | Tensor | None) -> Tensor:
    """The lengths of prompts, (batch,) int64, all of their row where none are given.

    Raises:
        ValueError: if a shape or length does not fit.
        TypeError: if ``ids`` is no int64 tensor.
    """
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
        raise TypeError(f"ids must be an int64 tensor, not {getattr(ids, 'dtype', type(ids).__name__)}")
    if ids.dim() != 2 or ids.shape[1] == 0:
        raise ValueError(f"ids must have shape (batch, time) with a time of at least 1, not {tuple(ids.shape)}")
    batch, time = ids.shape
    if given is None:
        return ids.new_full((batch,), time)
    lengths = torch.as_tensor(given, device=ids.device)
    if lengths.dtype != torch.int64 or lengths.shape != (batch,):
        raise ValueError(
            f"prompt_lengths must be int64 of shape ({batch},), not {lengths.dtype} of shape {tuple(lengths.shape)}"
        )
    if batch and (int(lengths.min()) < 1 or int(lengths.max()) > time):
        raise ValueError(f"prompt_lengths must be at least 1 and at most {time}, but is {lengths.tolist()}")
    return lengths


def check_ids(ids: Tensor, prompt_lengths: Tensor, stops: Stops, pad_token: int, vocabulary: int) -> None:
    """Refuse tokens that are not in a model's vocabulary. Raises: ValueError."""
    real = ids[torch.arange(ids.shape[1], device=ids.device) < prompt_lengths.unsqueeze(1)]
    outside = real[(real < 0) | (real >= vocabulary)]
    if outside.numel():
        raise ValueError(f"ids must be at least 0 and less than the vocabulary of {vocabulary}, but has {outside[0]}")
    for token in stops.tokens:
        if not 0 <= token < vocabulary:
            raise ValueError(f"stop_tokens must be at least 0 and less than {vocabulary}, but has {token}")
    if not isinstance(pad_token, int):
        raise TypeError(f"pad_token must be an integer, not {pad_token!r}")
    if not 0 <= pad_token < vocabulary:
        raise ValueError(f"pad_token must be at least 0 and less than {vocabulary}, but is {pad_token}")


def check_room(prompt_lengths: Tensor, max_new_tokens: int, limit: int, overflow: str) -> None:
    """Refuse prompts that leave no room in the context, unless it slides. Raises: ValueError."""
    longest = int(prompt_lengths.max()) if prompt_lengths.numel() else 0
    if overflow == "error" and longest + max_new_tokens > limit:
        raise ValueError(
            f"context_length is {limit}, but the prompt has {longest} tokens and max_new_tokens is {max_new_tokens}; "
            "shorten them, or pass overflow='slide'"
        )
