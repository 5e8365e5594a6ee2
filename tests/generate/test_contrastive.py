from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from pygpt import GPT, ops
from pygpt.generate import Generation
from tests.models import test_seq2seq
from tests.models.test_config import small
from tests.models.test_gpt import lively, tokens
from tests.models.test_seq2seq import Reader
from tests.support import assert_same_bits, threads


def by_hand(model: GPT | Reader, prompt: list[int], new: int, alpha: float, k: int) -> list[int]:
    """The formula, in float64, from a whole forward pass for every candidate."""
    row = list(prompt)
    for _ in range(new):
        probabilities = model(torch.tensor([row]))[0, -1].detach().double().softmax(-1)
        scores = []
        for token in probabilities.topk(k).indices.tolist():
            hidden = F.normalize(model.hidden(torch.tensor([[*row, token]]))[0].detach().double(), dim=-1)
            likeness = float((hidden[:-1] @ hidden[-1]).max())
            scores.append(((1 - alpha) * float(probabilities[token]) - alpha * likeness, token))
        row.append(max(scores)[1])
    return row[len(prompt) :]


@pytest.mark.parametrize("alpha, k", [(0.6, 4), (0.3, 2), (0.9, 23), (1.0, 3)])
def test_is_the_papers_formula(alpha, k):
    model = lively(small())
    ids, lengths = tokens(model, 3, 5), [5, 1, 3]
    out = model.contrastive_search(
        ids, 8, penalty_alpha=alpha, top_k=k, prompt_lengths=lengths, return_logprobs=True, pad_token=3
    )
    assert isinstance(out, Generation)
    for row, length in enumerate(lengths):
        new = out.tokens[row, length : length + 8]
        assert new.tolist() == by_hand(model, ids[row, :length].tolist(), 8, alpha, k)
        logits = model(out.tokens[row : row + 1, : length + 7])[0, length - 1 :].detach()
        right = -ops.cross_entropy(logits, new, reduction="none")
        assert_same_bits(out.logprobs[row], right, f"log-probabilities of row {row}")
        assert (out.tokens[row, length + 8 :] == 3).all()


@pytest.mark.parametrize("variant", [{}, test_seq2seq.BART])
@pytest.mark.parametrize("alpha, k", [(0.6, 4), (0.9, 6)])
def test_an_encoder_decoder_is_searched_by_the_same_formula(variant, alpha, k):
    model = test_seq2seq.lively(test_seq2seq.small(**variant))
    source, lengths = torch.randint(29, (3, 6)), [6, 1, 3]
    out = model.contrastive_search(
        source, 7, penalty_alpha=alpha, top_k=k, source_lengths=lengths, return_logprobs=True
    )
    for row, length in enumerate(lengths):
        reader, start = Reader(model, source[row : row + 1, :length]), model.config.start_token
        right = [start, *by_hand(reader, [start], 7, alpha, k)]
        assert out.tokens[row].tolist() == right
        logits = reader(torch.tensor([right[:-1]]))[0].detach()
        logprobs = -ops.cross_entropy(logits, torch.tensor(right[1:]), reduction="none")
        assert_same_bits(out.logprobs[row], logprobs, f"log-probabilities of row {row}")


@pytest.mark.parametrize("options", [{"penalty_alpha": 0.0}, {"top_k": 1}])
def test_without_a_choice_it_is_greedy(options):
    model = lively(small())
    ids = tokens(model, 3, 4)
    greedy = model.generate(ids, 9, temperature=0.0, stop_tokens=[5])
    assert torch.equal(model.contrastive_search(ids, 9, stop_tokens=[5], **options), greedy)


def test_a_prompt_alone_is_the_prompt_in_a_batch():
    model = lively(small())
    ids = tokens(model, 3, 4)
    told: list[tuple[int, int]] = []
    together = model.contrastive_search(ids, 9, stop_tokens=[5, 8], stream=lambda *pair: told.append(pair))
    for row in range(3):
        with threads(row + 1):
            assert torch.equal(model.contrastive_search(ids[row : row + 1], 9, stop_tokens=[5, 8])[0], together[row])
        new = [token for r, token in told if r == row]
        assert together[row, 4 : 4 + len(new)].tolist() == new
        assert len(new) == 9 or new[-1] in (5, 8)


def test_rules_hold():
    model = lively(small())
    ids = torch.tensor([[0, 1, 2, 3]])
    out = model.contrastive_search(ids, 10, no_repeat_ngram_size=2, prefixes=[[22]], force_words=[[21], [20, 19]])
    row, new = out[0].tolist(), out[0, 4:].tolist()
    pairs = list(itertools.pairwise(row))
    assert new[0] == 22 and 21 in new and (20, 19) in pairs and len(set(pairs)) == len(pairs)
    free = model.contrastive_search(ids, 10)[0, 4:].tolist()
    banned = model.contrastive_search(ids, 10, bad_words=[[free[0]], free[1:3]])[0, 4:].tolist()
    assert free[0] not in banned


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"top_k": 0}, ValueError, "top_k must be an integer of at least 1, not 0"),
        ({"penalty_alpha": 1.5}, ValueError, "penalty_alpha must be at least 0 and at most 1, but is 1.5"),
        ({"penalty_alpha": None}, TypeError, "penalty_alpha must be a number, not None"),
        ({"stream": 1}, TypeError, "stream must be a function of row and token, not 1"),
        ({"bad_words": [[n] for n in range(23)]}, ValueError, "row 0 has no token that prefixes"),
    ],
)
def test_bad_input(changes, error, words):
    with pytest.raises(error, match=words):
        GPT(small()).contrastive_search(torch.zeros(1, 2, dtype=torch.int64), 4, **changes)
