"""Likelihoods are those of the logits, whatever stands beside a row."""

import math
from typing import Any

import pytest
import torch

from pygpt import GPT, GPTConfig
from pygpt.eval.likelihood import Likelihood, continuations, mean_loss

SIZES: dict[str, Any] = {"context_length": 12, "num_layers": 2, "num_heads": 2, "embedding_dim": 8, "init_std": 0.3}


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=17, **SIZES)).eval()


PAIRS = [([1, 2, 3], [4]), ([5], [6, 7, 8]), ([9] * 10, [1, 2]), ([3, 1] * 9, [2, 2, 2]), ([0], [16] * 12)]


def test_they_are_those_of_the_logits(model: GPT) -> None:
    for (context, continuation), found in zip(PAIRS, continuations(model, PAIRS, batch_size=2), strict=True):
        tokens = torch.tensor([[*context, *continuation][-13:]])
        logprobs = model(tokens[:, :-1]).double().log_softmax(-1)[0, -len(continuation) :]
        expected = logprobs.gather(1, torch.tensor(continuation).unsqueeze(1)).sum()
        assert found.logprob == pytest.approx(expected.item(), rel=1e-5)
        assert found.greedy == (logprobs.argmax(-1).tolist() == continuation)


def test_bits_do_not_depend_on_the_batch(model: GPT) -> None:
    alone = [continuations(model, [pair])[0] for pair in PAIRS]
    for size in (1, 2, 16):
        assert continuations(model, PAIRS, size) == alone
    assert continuations(model, []) == []


def test_greedy_text_is_told(model: GPT) -> None:
    written = model.generate(torch.tensor([[1, 2]]), max_new_tokens=3, temperature=0)[0, 2:].tolist()
    assert continuations(model, [([1, 2], written)])[0].greedy
    other = [*written[:2], (written[2] + 1) % 17]
    assert not continuations(model, [([1, 2], other)])[0].greedy
    assert isinstance(continuations(model, [([1, 2], other)])[0], Likelihood)


def test_empty_and_long_ones_are_refused(model: GPT) -> None:
    for pair in (([], [1]), ([1], [])):
        with pytest.raises(ValueError, match="at least one token each"):
            continuations(model, [pair])
    with pytest.raises(ValueError, match="context_length is 12, but a continuation has 13 tokens"):
        continuations(model, [([1], [2] * 13)])


def test_the_mean_is_over_targets(model: GPT) -> None:
    ids = torch.arange(24).view(2, 12) % 17
    targets = ids.roll(-1, 1)
    targets[1, 3:] = -100
    loss, count = mean_loss(model, [(ids[:1], targets[:1]), (ids[1:], targets[1:])], 1, ("ids", "targets"))
    assert count == 15 and loss == pytest.approx(model.loss(ids, targets).item(), rel=1e-6)
    assert math.isnan(mean_loss(model, [], 1, ("ids", "targets"))[0])
