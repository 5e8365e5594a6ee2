"""The baselines are the formulas, on any targets."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pygpt.text import CharTokenizer, Document, TokenFile, prepare
from pygpt.train.baselines import Counts


def test_losses_are_those_of_counting(tmp_path: Path) -> None:
    text = "abracadabra alakazam " * 3
    prepare([Document("", text)], CharTokenizer("".join(sorted(set(text)))), tmp_path, 0)
    file = TokenFile(tmp_path)
    tokens, size = file.tokens.astype(np.int64).tolist(), file.vocab_size + 2
    before, targets = torch.tensor([tokens[5:15], [size - 1] * 10]), torch.tensor([tokens[6:16], tokens[:10]])
    targets[0, 3] = -100

    def unigram(b: int) -> float:
        return (tokens.count(b) + 1) / (len(tokens) + size)

    def bigram(a: int, b: int, weight: float) -> float:
        pairs = list(itertools.pairwise(tokens))
        return (pairs.count((a, b)) + weight * unigram(b)) / (tokens[:-1].count(a) + weight)

    known = [(a, b) for a, b in zip(before.flatten().tolist(), targets.flatten().tolist(), strict=True) if b != -100]
    expected = [-math.fsum(map(math.log, map(unigram, [b for _, b in known]))) / len(known)]
    expected.append(min(-math.fsum(math.log(bigram(a, b, w)) for a, b in known) / len(known) for w in
                        (0.1, 1, 3, 10, 30, 100, 300)))  # fmt: skip
    assert Counts(file, size).losses([(before, targets)]) == pytest.approx(expected)
    assert expected[1] < expected[0]
    text_tokens = torch.tensor(tokens[6:10])
    unigram_alone = Counts(file, size).losses([(before[:1, :4], text_tokens)])[0]
    ends = torch.tensor([*tokens[6:10], size - 1])  # one in five is the objective's own
    with_end = Counts(file, size).losses([(before[:1, :5], ends)])[0]
    assert with_end == pytest.approx((4 * (unigram_alone - math.log(0.8)) - math.log(0.2)) / 5)
    total = sum(bigram(tokens[0], b, 3.0) for b in range(size))
    assert total == pytest.approx(1), "a distribution"


def test_without_targets_there_is_no_loss(tmp_path: Path) -> None:
    prepare([Document("", "ab")], CharTokenizer("ab"), tmp_path, 0)
    none = torch.full((2, 3), -100)
    counts = Counts(TokenFile(tmp_path), 3)
    assert all(map(math.isnan, counts.losses([(none, none)]))) and all(map(math.isnan, counts.losses([])))
