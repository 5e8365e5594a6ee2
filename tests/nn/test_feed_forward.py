from __future__ import annotations

import copy

import pytest
import torch

from pygpt.nn import FeedForward
from tests.support import assert_near, assert_same_bits, normal

PLAIN = {"gelu_tanh": torch.nn.GELU(approximate="tanh"), "gelu": torch.nn.GELU(), "relu": torch.nn.ReLU()}


@pytest.mark.parametrize("activation", PLAIN)
@pytest.mark.parametrize("bias", [True, False])
def test_is_two_linear_layers_in_a_plain_model(generator, activation, bias):
    module = FeedForward(6, 20, activation, bias)
    inner = torch.nn.Sequential(torch.nn.Linear(6, 20, bias), PLAIN[activation], torch.nn.Linear(20, 6, bias))
    inner[0].load_state_dict(module.up.state_dict())
    inner[2].load_state_dict(module.down.state_dict())
    head = torch.nn.Linear(6, 2)
    x = normal(generator, 3, 7, 6)
    results = []
    for part, dtype in ((module, torch.float32), (inner, torch.float64)):
        model = copy.deepcopy(torch.nn.Sequential(part, head)).to(dtype)
        out = model(x.to(dtype))
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad for p in model.parameters())])
    for ours, exact in zip(*results, strict=True):
        assert_near(ours, exact, activation)


def check_dropout(module, plain, generator):
    """A half is dropped in training, nothing in evaluation; `plain` is the same module without dropout."""
    plain.load_state_dict(module.state_dict())
    x = normal(generator, 50, 6)
    kept = module(x)
    assert 0.3 < float((kept == 0).float().mean()) < 0.7
    assert_same_bits(torch.where(kept == 0, 0, kept), torch.where(kept == 0, 0, plain(x) * 2), "kept elements")
    assert_same_bits(module.eval()(x), plain(x), "eval")


def test_dropout_acts_in_training_only(generator):
    module = FeedForward(6, dropout=0.5)
    assert module.up.out_features == 24
    check_dropout(module, FeedForward(6), generator)
