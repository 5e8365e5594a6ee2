"""Rows of tokens of several lengths as the tensors that models take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ids = npt.NDArray[np.int64]

IGNORED = -100  # the target that losses leave out


class SpecialTokens(NamedTuple):
    """Tokens that texts do not have, above the tokenizer's own."""

    mask: int
    start: int  # of a pair of sentences ([CLS]), and of a target
    end: int  # of each sentence of a pair ([SEP]), and of a target
    pad: int

    @classmethod
    def above(cls, vocab_size: int) -> SpecialTokens:
        """Those of a tokenizer with that many tokens."""
        return cls(*range(vocab_size, vocab_size + len(cls._fields)))


def stacked(rows: Sequence[Ids], padding: int = 0, time: int | None = None) -> Tensor:
    """Rows of several lengths as one tensor; ``time`` is its width, by default the longest row's."""
    width = max(len(row) for row in rows) if time is None else time
    out = np.full((len(rows), width), padding, np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out)


def source_and_target(examples: Sequence[tuple[Ids, ...]], special: SpecialTokens) -> tuple[Tensor, ...]:
    """Sources and targets as `pygpt.Seq2Seq.loss` takes them: the target's ids are its targets, shifted by one."""
    sources, targets = zip(*examples, strict=True)
    begun = [np.concatenate([[special.start], target]) for target in targets]
    ended = [np.concatenate([target, [special.end]]) for target in targets]
    lengths = torch.tensor([len(row) for row in begun])
    source_lengths = torch.tensor([len(row) for row in sources])
    return stacked(sources, special.pad), stacked(begun, special.pad), stacked(ended, IGNORED), source_lengths, lengths
