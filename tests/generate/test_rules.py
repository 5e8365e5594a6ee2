from __future__ import annotations

import itertools

import pytest
import torch

from pygpt import reference
from pygpt.generate.rules import ForcedWords
from tests.generate.test_beam import contains
from tests.generate.test_generate import chi_square_p
from tests.models import test_seq2seq
from tests.models.test_config import small
from tests.models.test_gpt import lively, tokens
from tests.support import random_generator


@pytest.mark.parametrize(
    "words",
    [[[[0]]], [[[0, 1]], [[1, 2]]], [[[0, 0, 1]], [[0, 1, 0]]], [[[0, 1, 2], [2, 2]], [[1]]], [[[1, 1]], [[1, 1, 1]]]],
)
def test_the_distance_is_the_fewest_tokens_that_complete_the_words(words):
    forced = ForcedWords(words)

    def met(row: tuple[int, ...]) -> bool:
        return all(any(contains(row, part) for part in word) for word in words)

    for size in range(4):
        for row in itertools.product(range(4), repeat=size):
            fewest = next(n for n in range(7) if any(met(row + e) for e in itertools.product(range(4), repeat=n)))
            assert forced.distance(row) == fewest
            nearer = {token for token in range(4) if forced.distance((*row, token)) < fewest}
            assert set(forced.nearer(row)) == nearer
            for left in range(1, 5):
                allowed = forced.allowed(row, left)
                right = {token for token in range(4) if forced.distance((*row, token)) < left}
                assert right == (set(range(4)) if allowed is None else allowed)


def test_samples_obey():
    model = lively(small())
    ids = 14 + tokens(model, 3, 4) % 9  # none that a rule names: a pair of these in a prompt could leave no way on
    rules = {"no_repeat_ngram_size": 2, "bad_words": [[3], [4, 5]], "prefixes": [[7, 8], [9]]}
    lengths = [4, 2, 1]
    out = model.generate(
        ids, 9, num_samples=4, force_words=[[[11, 12], [13]]], prompt_lengths=lengths, temperature=3.0, **rules
    )
    for number, row in enumerate(out.tolist()):
        start = lengths[number // 4]
        new, pairs = tuple(row[start : start + 9]), [*itertools.pairwise(row[: start + 9])]
        assert new[:2] == (7, 8) or new[0] == 9
        assert contains(new, [11, 12]) or 13 in new
        assert 3 not in new and (4, 5) not in pairs[start - 1 :]
        assert all(pair not in pairs[:place] for place, pair in enumerate(pairs) if place >= start - 1)
    with pytest.raises(ValueError, match="row 0 has no token that prefixes"):
        model.generate(ids, 3, bad_words=[[token] for token in range(23)])


def test_what_is_forbidden_leaves_the_others_their_distribution():
    model = lively(small(vocab_size=6))
    prompt, draws = tokens(model, 1, 3), 3000
    seed = random_generator().initial_seed()
    out = model.generate(prompt, 1, num_samples=draws, seed=seed, bad_words=[[2], [int(prompt[0, -1]), 4]])[:, 3]
    logits = model(prompt)[:, -1].detach()
    logits[0, [2, 4]] = -torch.inf
    assert chi_square_p(torch.bincount(out, minlength=6).double(), reference.sample(logits)[0]) > 1e-6


def test_an_encoder_decoder_obeys_too():
    model = test_seq2seq.lively(test_seq2seq.small())
    source = torch.randint(29, (2, 5))
    out = model.generate(source, 6, prefixes=[[5]], force_words=[[6, 7]], bad_words=[[8]], no_repeat_ngram_size=2)
    for row in out.tolist():
        pairs = list(itertools.pairwise(row))
        assert row[:2] == [0, 5] and (6, 7) in pairs and 8 not in row and len(set(pairs)) == len(pairs)
