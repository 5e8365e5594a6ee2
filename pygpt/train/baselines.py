"""What a loss is worth: those of counting tokens, and of counting pairs of neighbours, on the same targets."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pygpt.text import TokenFile

IGNORED = -100
MOST_TOKENS = 20_000_000  # counted, from the beginning: more change the second digit no longer
_WEIGHTS = (0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # of the unigram in the bigram, as if it had been seen so often


class Counts:
    """How often tokens, and pairs of neighbours, occur in a token file.

    ``unigram(b) = (count(b) + 1) / (tokens + V)`` and ``bigram(b | a) = (count(a b) + w unigram(b)) / (count(a) + w)``.
    An objective's own tokens, such as the end of a target, stand in no text: as targets each has the probability with
    which it is one, and leaves the rest to the others.

    Args:
        file: where the tokens are.
        vocab_size: V, of the model; ids from the file's vocabulary on are the objective's.

    Source: MacKay and Peto, "A Hierarchical Dirichlet Language Model", 1995.
    """

    def __init__(self, file: TokenFile, vocab_size: int) -> None:
        tokens = file.tokens[:MOST_TOKENS].astype(np.int64)
        self._vocab_size, self._text_vocab_size = vocab_size, file.vocab_size
        self._single = np.bincount(tokens, minlength=vocab_size).astype(np.float64)
        self._before = np.bincount(tokens[:-1], minlength=vocab_size).astype(np.float64)
        self._pairs, self._pair_counts = np.unique(tokens[:-1] * vocab_size + tokens[1:], return_counts=True)

    def losses(self, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
        """The mean cross-entropy of targets under the unigram and the bigram.

        Args:
            batches: (previous tokens, targets) of one shape each. Targets of -100 do not count.

        Returns:
            (unigram, bigram), natural logarithms; NaN if there are no targets. The bigram's weight is the one of a few
            that fits the targets best, so that the baseline is no easier than it has to be.
        """
        flat = [(before.flatten().numpy(), targets.flatten().numpy()) for before, targets in batches]
        if not flat:
            return float("nan"), float("nan")
        before, targets = (np.concatenate(parts) for parts in zip(*flat, strict=True))
        before, targets = before[targets != IGNORED], targets[targets != IGNORED]
        if len(targets) == 0:
            return float("nan"), float("nan")
        unigram = (self._single[targets] + 1) / (self._single.sum() + self._vocab_size)
        pair = self._pair_count(before * self._vocab_size + targets)
        smoothed = [(pair + w * unigram) / (self._before[before] + w) for w in _WEIGHTS]
        single, *bigrams = (-np.log(self._with_special(chances, targets)).mean() for chances in (unigram, *smoothed))
        return float(single), float(min(bigrams))

    def _with_special(
        self, chances: npt.NDArray[np.float64], targets: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """The chances of targets of which some are the objective's own tokens."""
        special = targets >= self._text_vocab_size
        shares = np.bincount(targets[special], minlength=self._vocab_size) / len(targets)
        return np.where(special, shares[targets], chances * (1 - special.mean()))

    def _pair_count(self, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        if len(self._pairs) == 0:
            return np.zeros(len(pairs))
        place = np.minimum(np.searchsorted(self._pairs, pairs), len(self._pairs) - 1)
        return np.where(self._pairs[place] == pairs, self._pair_counts[place], 0).astype(np.float64)
