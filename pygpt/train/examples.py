"""What the pre-training objectives make of text: examples drawn from a token file, each from its own random numbers.

An example depends on the data, the seed, the epoch and its own place alone, so that a training that goes on anywhere
sees the same ones. Its random numbers are raw outputs of NumPy's Philox, whose stream NumPy promises to keep.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pygpt.text import TokenFile, Tokenizer
from pygpt.text.permutation import permuted
from pygpt.text.rows import IGNORED, SpecialTokens, source_and_target, stacked

Ids = npt.NDArray[np.int64]

VALIDATION_EPOCH = -1  # the examples of an evaluation are the same each time, and no epoch's


class Draws:
    """Random numbers of one example.

    Args:
        key: integers that name the example.
    """

    def __init__(self, *key: int) -> None:
        words = np.array([operator.index(part) & (2**64 - 1) for part in key], np.uint64)
        self._bits = np.random.Philox(np.random.SeedSequence([int(word) for word in words]))

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """Numbers from [0, 1)."""
        bits: npt.NDArray[np.uint64] = self._bits.random_raw(count)
        out: npt.NDArray[np.float64] = (bits >> np.uint64(11)) * 2.0**-53
        return out

    def below(self, limit: int, count: int) -> Ids:
        """Integers from 0 to ``limit`` - 1."""
        return np.minimum((self.uniform(count) * limit).astype(np.int64), limit - 1)

    def order(self, count: int) -> Ids:
        """0 to ``count`` - 1 in a random order."""
        return np.argsort(self.uniform(count), kind="stable")

    def poisson(self, mean: float) -> int:
        """An integer of the Poisson distribution. Source: Knuth, "Seminumerical Algorithms", section 3.4.1."""
        limit, product, count = math.exp(-mean), float(self.uniform(1)[0]), 0
        while product > limit:
            product *= float(self.uniform(1)[0])
            count += 1
        return count


class Words:
    """Where words and lines begin among tokens: a word is what stands between whitespace.

    Args:
        tokenizer: knows the tokens' text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        texts = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        self._space_before = np.array([text[:1].isspace() for text in texts])
        self._space_after = np.array([text[-1:].isspace() for text in texts])
        self._line_after = np.array([text.endswith(b"\n") for text in texts])

    def starts(self, tokens: Ids) -> Ids:
        """The places of the tokens that begin a word, the first one among them."""
        begins = self._space_before[tokens].copy()
        begins[1:] |= self._space_after[tokens[:-1]]
        begins[:1] = True
        return np.flatnonzero(begins)

    def line_ends(self, tokens: Ids) -> Ids:
        """The places after tokens that end a line, those inside the sequence only."""
        return np.flatnonzero(self._line_after[tokens[:-1]]) + 1


class Examples(Protocol):
    """The examples of an objective in a token file."""

    def __len__(self) -> int:
        """Count them."""

    def example(self, index: int, draws: Draws) -> tuple[Ids, ...]:
        """Make one: arrays, in the order of the loss's arguments."""

    def batch(self, examples: Sequence[tuple[Ids, ...]]) -> tuple[Tensor, ...]:
        """Put several into the arguments of the model's loss."""


class MaskedTokens:
    """Masked language modelling: windows of ``context_length`` tokens, of which some are hidden.

    Of a window's tokens a share is chosen; of these 80 % become the mask, 10 % a random token, 10 % stay. The model
    has to tell what they were.

    Args:
        file: where the tokens are.
        context_length: T, tokens of a window.
        special: the mask, and which ids are tokens of the text.
        rate: the share that is chosen, of each window at least one token.
        words: choose whole words, as many as do not exceed the share; None: single tokens.

    Source: Devlin et al., "BERT", 2019, section 3.1 and appendix A.1.
    """

    def __init__(
        self,
        file: TokenFile,
        context_length: int,
        special: SpecialTokens,
        rate: float = 0.15,
        words: Words | None = None,
    ) -> None:
        self._file, self._time = file, context_length
        self._special, self._rate, self._words = special, rate, words
        self._windows = count_windows(file, context_length)

    def __len__(self) -> int:
        """Count the windows."""
        return self._windows

    def example(self, index: int, draws: Draws) -> tuple[Ids, ...]:
        """(ids, targets), each (T,)."""
        return self.hide(_tokens(self._file, index * self._time, self._time), draws)

    def hide(self, tokens: Ids, draws: Draws) -> tuple[Ids, Ids]:
        """Hide some of a text's tokens; gives what is seen, and what stands behind it where it was chosen."""
        chosen = self._choose(tokens, draws)
        ids, targets = tokens.copy(), np.full_like(tokens, IGNORED)
        targets[chosen] = tokens[chosen]
        kind = draws.uniform(len(chosen))
        random = draws.below(self._special.mask, len(chosen))  # ids below the mask are the text's
        ids[chosen] = np.where(kind < 0.8, self._special.mask, np.where(kind < 0.9, random, tokens[chosen]))
        return ids, targets

    def batch(self, examples: Sequence[tuple[Ids, ...]]) -> tuple[Tensor, ...]:
        """(ids, targets), each (batch, T)."""
        ids, targets = zip(*examples, strict=True)
        return stacked(ids), stacked(targets)

    def _choose(self, tokens: Ids, draws: Draws) -> Ids:
        budget = max(1, round(len(tokens) * self._rate))
        if self._words is None:
            return np.sort(draws.order(len(tokens))[:budget])
        starts = self._words.starts(tokens)
        ends = np.append(starts[1:], len(tokens))
        chosen: list[int] = []
        for word in draws.order(len(starts)).tolist():
            size = int(ends[word] - starts[word])
            if not chosen or len(chosen) + size <= budget:
                chosen.extend(range(int(starts[word]), int(ends[word])))
            if len(chosen) >= budget:
                break
        return np.array(sorted(chosen), np.int64)


class SentencePairs:
    """Masked language modelling and next-sentence prediction: ``[start] A [end] B [end]``.

    A stretch of a document is cut in two, at the line's end that is nearest to its middle. In half of the examples B
    is what follows A (class 0), in the others a stretch of another document (class 1). Then tokens of A and B are
    hidden as in `MaskedTokens`.

    Args:
        file: where the tokens are; it needs two documents that are long enough.
        context_length: T, the most tokens of an example.
        special: the tokens that texts do not have.
        masked: hides tokens.
        words: knows where lines end.

    Raises:
        ValueError: if there are not two documents of at least four tokens, or T is less than 8.

    Source: Devlin et al., "BERT", 2019, section 3.1.
    """

    _SHORTEST = 4

    def __init__(
        self, file: TokenFile, context_length: int, special: SpecialTokens, masked: MaskedTokens, words: Words
    ) -> None:
        if context_length < 8:
            raise ValueError(f"context must be at least 8 for pairs of sentences, but is {context_length}")
        self._file, self._special, self._masked, self._words = file, special, masked, words
        self._room = context_length - 3
        sizes = np.diff(file.boundaries)
        long_enough = np.flatnonzero(sizes >= self._SHORTEST)
        if len(long_enough) < 2:
            raise ValueError(
                f"the {file.split} split has {len(long_enough)} documents of {self._SHORTEST} tokens or more, and "
                "pairs of sentences need two: give several files, or say with --separator what stands between documents"
            )
        stretches = np.maximum(1, sizes[long_enough] // self._room)
        self._document = np.repeat(long_enough, stretches)  # of each stretch
        self._part = np.arange(len(self._document)) - np.repeat(stretches.cumsum() - stretches, stretches)

    def __len__(self) -> int:
        """Count the stretches."""
        return len(self._document)

    def example(self, index: int, draws: Draws) -> tuple[Ids, ...]:
        """(ids, targets, segments, class)."""
        document = int(self._document[index])
        stretch = self._stretch(document, int(self._part[index]) * self._room)
        ends = self._words.line_ends(stretch)
        cut = len(stretch) // 2 if len(ends) == 0 else int(ends[np.abs(ends - len(stretch) // 2).argmin()])
        a, b = stretch[:cut], stretch[cut:]
        other = bool(draws.uniform(1)[0] < 0.5)
        if other:
            b = self._elsewhere(document, len(b), draws)
        pair, targets = self._masked.hide(np.concatenate([a, b]), draws)
        edge = ([self._special.start], [self._special.end], [self._special.end])
        ids = np.concatenate([edge[0], pair[: len(a)], edge[1], pair[len(a) :], edge[2]])
        none = [IGNORED]
        hidden = np.concatenate([none, targets[: len(a)], none, targets[len(a) :], none])
        segments = np.repeat([0, 1], [len(a) + 2, len(b) + 1])
        return ids, hidden, segments, np.array([int(other)])

    def batch(self, examples: Sequence[tuple[Ids, ...]]) -> tuple[Tensor, ...]:
        """(ids, targets, segments, lengths, classes): as `pygpt.Encoder.loss` takes them."""
        ids, targets, segments, classes = zip(*examples, strict=True)
        time = self._room + 3
        return (
            stacked(ids, self._special.pad, time),
            stacked(targets, IGNORED, time),
            stacked(segments, 0, time),
            torch.tensor([len(row) for row in ids]),
            torch.from_numpy(np.concatenate(classes)),
        )

    def _stretch(self, document: int, start: int) -> Ids:
        begin, end = self._file.boundaries[document : document + 2].tolist()
        return _tokens(self._file, begin + start, min(self._room, end - begin - start))

    def _elsewhere(self, document: int, size: int, draws: Draws) -> Ids:
        """Up to ``size`` tokens from a line's beginning in another document, drawn by the documents' lengths."""
        while True:  # a document that is nearly all of the text makes this long, but not for ever: there is another
            index = int(draws.below(len(self), 1)[0])
            if self._document[index] != document:
                break
        stretch = self._stretch(int(self._document[index]), int(self._part[index]) * self._room)
        ends = self._words.line_ends(stretch)
        starts = ends[ends + size <= len(stretch)]
        start = int(starts[draws.below(len(starts), 1)[0]]) if len(starts) else 0
        return stretch[start : start + size]


class Continuations:
    """Sequence to sequence: the beginning of a window is the source, the rest the target.

    The cut is drawn between a quarter and three quarters of the window's ``context_length`` tokens.

    Args:
        file: where the tokens are.
        context_length: the most tokens of a source and of a target.
        special: the tokens that texts do not have.
    """

    def __init__(self, file: TokenFile, context_length: int, special: SpecialTokens) -> None:
        if context_length < 4:
            raise ValueError(f"context must be at least 4 for sources and targets, but is {context_length}")
        self._file, self._time, self._special = file, context_length, special
        self._windows = count_windows(file, context_length)

    def __len__(self) -> int:
        """Count the windows."""
        return self._windows

    def example(self, index: int, draws: Draws) -> tuple[Ids, ...]:
        """(source, target)."""
        window = _tokens(self._file, index * self._time, self._time)
        quarter = self._time // 4
        cut = quarter + int(draws.below(self._time - 2 * quarter, 1)[0])
        return window[:cut], window[cut:]

    def batch(self, examples: Sequence[tuple[Ids, ...]]) -> tuple[Tensor, ...]:
        """(source, ids, targets, source_lengths, lengths): as `pygpt.Seq2Seq.loss` takes them."""
        return source_and_target(examples, self._special)


class NoisyTexts:
    """Denoising: the source is a text with noise, the target the text.

    Sentences (lines) are put into a random order, and stretches of Poisson(3) tokens are each replaced by one mask (a
    stretch of none: a mask is put in), until a share of the tokens is gone.

    Args:
        file: where the tokens are.
        context_length: the most tokens of a source and of a target.
        special: the tokens that texts do not have.
        rate: the share of the tokens that is replaced.
        words: knows where lines end.
        noise: which of ``"masking"`` (single tokens, each by a mask), ``"infilling"`` and ``"permutation"``.

    Source: Lewis et al., "BART", 2020, section 2.2.
    """

    def __init__(
        self,
        file: TokenFile,
        context_length: int,
        special: SpecialTokens,
        rate: float,
        words: Words,
        noise: Sequence[str] = ("permutation", "infilling"),
    ) -> None:
        if context_length < 4:
            raise ValueError(f"context must be at least 4 for sources and targets, but is {context_length}")
        self._file, self._time, self._special = file, context_length - 1, special
        self._rate, self._words, self._noise = rate, words, noise
        self._windows = count_windows(file, self._time)

    def __len__(self) -> int:
        """Count the windows."""
        return self._windows

    def example(self, index: int, draws: Draws) -> tuple[Ids, ...]:
        """(source, target)."""
        target = _tokens(self._file, index * self._time, self._time)
        source = target
        if "permutation" in self._noise:
            lines = np.split(source, self._words.line_ends(source))
            source = np.concatenate([lines[line] for line in draws.order(len(lines)).tolist()])
        if "infilling" in self._noise:
            source = self._fill(source, draws)
        if "masking" in self._noise:
            source = source.copy()
            source[draws.order(len(source))[: round(self._rate * len(source))]] = self._special.mask
        return source, target

    def batch(self, examples: Sequence[tuple[Ids, ...]]) -> tuple[Tensor, ...]:
        """(source, ids, targets, source_lengths, lengths): as `pygpt.Seq2Seq.loss` takes them."""
        return source_and_target(examples, self._special)

    def _fill(self, tokens: Ids, draws: Draws) -> Ids:
        budget, gone, parts = round(self._rate * len(tokens)), 0, []
        spans: list[int] = []
        while gone < budget:
            spans.append(min(draws.poisson(3.0), budget - gone))
            gone += spans[-1]
        # What stays is cut at random places into one part more than there are stretches.
        kept = len(tokens) - gone
        cuts = np.sort(draws.below(kept + 1, len(spans))).tolist()
        at = 0
        for span, before, cut in zip(spans, [0, *cuts], cuts, strict=False):
            parts += [tokens[at : at + cut - before], [self._special.mask]]
            at += cut - before + span
        return np.concatenate([*parts, tokens[at:]])[: self._time + 1].astype(np.int64)


class ExampleLoader:
    """Batches of examples in a shuffled order that goes on for ever, and whose position can be saved.

    Each epoch visits every example once, in its own order and with its own random numbers.

    Args:
        examples: of an objective or a task.
        batch_size: examples in a batch.
        seed: decides orders and examples.
        identity: what else decides them, such as a hash of the data, for `load_state_dict` to compare.
    """

    def __init__(self, examples: Examples, batch_size: int, seed: int, identity: dict[str, Any]) -> None:
        self._examples, self._batch_size, self._seed = examples, batch_size, seed
        self._identity = {"seed": seed, **identity}
        self.position = 0  # examples given so far, in all epochs

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Give batches without end."""
        return self

    def __next__(self) -> tuple[Tensor, ...]:
        """Give the next batch. Raises: ValueError if the file holds an id outside its vocabulary."""
        made = []
        for place in range(self.position, self.position + self._batch_size):
            epoch, place = divmod(place, len(self._examples))
            index = int(permuted(np.array([place]), len(self._examples), self._seed, epoch)[0])
            made.append(self._examples.example(index, Draws(self._seed, epoch, index)))
        self.position += self._batch_size
        return self._examples.batch(made)

    def state_dict(self) -> dict[str, Any]:
        """Give the position, and what it is a position in, as JSON can hold it."""
        return {"position": self.position, **self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position. Raises: ValueError if it is one in other data or of another objective."""
        for name, own in self._identity.items():
            if state.get(name) != own:
                raise ValueError(f"state was saved with {name} {state.get(name)!r}, but this loader has {own!r}")
        self.position = int(state["position"])


def fixed_batches(examples: Examples, batch_size: int, max_batches: int, seed: int) -> list[tuple[Tensor, ...]]:
    """The first examples in order, for evaluation: the same each time."""
    count = min(len(examples), batch_size * max_batches)
    made = [examples.example(index, Draws(seed, VALIDATION_EPOCH, index)) for index in range(count)]
    return [examples.batch(made[first : first + batch_size]) for first in range(0, count, batch_size)]


def count_windows(file: TokenFile, time: int) -> int:
    """How many windows of that many tokens there are. Raises: ValueError if there is none."""
    if len(file) < time:
        raise ValueError(
            f"the {file.split} split has {len(file)} tokens, but a context of {time} needs as many: use more text or a "
            "shorter context"
        )
    return len(file) // time


def _tokens(file: TokenFile, start: int, count: int) -> Ids:
    tokens = file.tokens[start : start + count].astype(np.int64)
    if len(tokens) and int(tokens.max()) >= file.vocab_size:
        raise ValueError(
            f"{file.path} is damaged: it holds token {int(tokens.max())}, but its vocabulary has {file.vocab_size}"
        )
    return tokens
