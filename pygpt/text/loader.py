"""Batches of token windows from a token file: shuffled for training, in order for evaluation."""

import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pygpt.text.permutation import permuted
from pygpt.text.token_file import TokenFile


class BatchLoader:
    """Windows of a token file in a shuffled order that goes on for ever, and whose position can be saved.

    Window i is tokens i · T to i · T + T, with T = ``context_length``: inputs are its first T tokens, targets its last
    T, so that targets[b, t] is the token after inputs[b, t]. Each epoch visits every window once, in its own order; a
    batch at its end goes on into the next. A last window too short to fill T is not visited. Documents follow one
    another within a window.

    Args:
        token_file: where the tokens are.
        batch_size: windows in a batch, at least 1.
        context_length: T, at least 1.
        seed: decides the orders.

    Raises: ValueError if an argument is out of range, or the file has not T + 1 tokens.
    """

    def __init__(self, token_file: TokenFile, batch_size: int, context_length: int, seed: int = 0) -> None:
        self.token_file = token_file
        self.batch_size = _positive("batch_size", batch_size)
        self.context_length = _positive("context_length", context_length)
        self.seed = operator.index(seed)
        self.num_windows = _count_windows(token_file, context_length)
        self.position = 0  # windows given so far, in all epochs

    @property
    def epoch(self) -> int:
        """The epoch of the next window, from 0."""
        return self.position // self.num_windows

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Give batches without end."""
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        """Give the next batch: (inputs, targets), each (batch_size, context_length) int64.

        Raises: ValueError if the file holds an id outside its vocabulary.
        """
        places = np.arange(self.position, self.position + self.batch_size)
        epochs, places = np.divmod(places, self.num_windows)
        windows = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            windows[here] = permuted(places[here], self.num_windows, self.seed, epoch)
        batch = _batch(self.token_file, windows, self.context_length)
        self.position += self.batch_size
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Give the position, and what it is a position in, as JSON can hold it."""
        return {"position": self.position, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position; the next batch is the one that would have come then.

        The batch size may differ: the position counts windows.

        Raises: ValueError if the data, the context length or the seed is not the saved one's, or ``state`` is no state.
        """
        for name, own in self._identity().items():
            if name not in state:
                raise ValueError(f"state is no BatchLoader's: it has no {name!r}")
            if state[name] != own:
                raise ValueError(f"state was saved with {name} {state[name]!r}, but this loader has {own!r}")
        position = state.get("position")
        if not isinstance(position, int) or position < 0:
            raise ValueError(f"state is no BatchLoader's: its position is {position!r}")
        self.position = position

    def _identity(self) -> dict[str, Any]:
        return {
            "content_hash": self.token_file.content_hash,
            "split": self.token_file.split,
            "context_length": self.context_length,
            "seed": self.seed,
        }


def sequential_batches(
    token_file: TokenFile, batch_size: int, context_length: int, max_batches: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Give every window once, in order, for evaluation; the last batch may be smaller.

    Args:
        token_file: where the tokens are.
        batch_size: windows in a batch, at least 1.
        context_length: T, at least 1.
        max_batches: end after so many.

    Returns: an iterator over (inputs, targets), each (up to batch_size, context_length) int64.

    Raises: ValueError as :class:`BatchLoader`, at the call or at the batch that is bad.
    """
    _positive("batch_size", batch_size)
    _positive("context_length", context_length)
    windows = _count_windows(token_file, context_length)
    if max_batches is not None:
        windows = min(windows, _positive("max_batches", max_batches) * batch_size)
    return (
        _batch(token_file, np.arange(first, min(first + batch_size, windows)), context_length)
        for first in range(0, windows, batch_size)
    )


def _batch(token_file: TokenFile, windows: npt.NDArray[np.int64], context_length: int) -> tuple[Tensor, Tensor]:
    tokens = np.empty((len(windows), context_length + 1), np.int64)
    for row, start in zip(tokens, (windows * context_length).tolist(), strict=True):
        row[:] = token_file.tokens[start : start + context_length + 1]
    largest = int(tokens.max())
    if largest >= token_file.vocab_size:
        raise ValueError(
            f"{token_file.path} is damaged: it holds token {largest}, but its vocabulary has {token_file.vocab_size}"
        )
    both = torch.from_numpy(tokens)
    return both[:, :-1].contiguous(), both[:, 1:].contiguous()


def _count_windows(token_file: TokenFile, context_length: int) -> int:
    windows = (len(token_file) - 1) // context_length
    if windows < 1:
        raise ValueError(
            f"the {token_file.split} split has {len(token_file)} tokens, but "
            f"context_length {context_length} needs at least {context_length + 1}: use more text or a shorter context"
        )
    return windows


def _positive(name: str, value: int) -> int:
    if operator.index(value) < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return operator.index(value)
