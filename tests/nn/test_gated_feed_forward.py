from __future__ import annotations

import copy

import pytest
from torch.nn import functional as F

from pygpt.nn import GatedFeedForward
from tests.nn.test_feed_forward import check_dropout
from tests.support import assert_near, normal

GATES = {"swiglu": F.silu, "geglu": lambda x: F.gelu(x, approximate="tanh")}


@pytest.mark.parametrize("activation", GATES)
@pytest.mark.parametrize("bias", [True, False])
def test_is_three_linear_layers_in_a_plain_model(generator, activation, bias):
    module, x = GatedFeedForward(6, 20, activation, bias), normal(generator, 3, 7, 6)
    exact = copy.deepcopy(module).double()
    out = module(x)
    out.square().sum().backward()
    gate, up, down = (lambda y, m=m: F.linear(y, m.weight, m.bias) for m in (exact.gate, exact.up, exact.down))
    right = down(GATES[activation](gate(x.double())) * up(x.double()))
    right.square().sum().backward()
    assert_near(out.detach(), right.detach(), activation)
    for (name, ours), theirs in zip(module.named_parameters(), exact.parameters(), strict=True):
        assert_near(ours.grad, theirs.grad, name)


def test_dropout_acts_in_training_only(generator):
    check_dropout(GatedFeedForward(6, 24, dropout=0.5), GatedFeedForward(6, 24), generator)


def test_a_gate_that_there_is_not():
    with pytest.raises(ValueError, match="activation must be one of swiglu, geglu, not 'gelu'"):
        GatedFeedForward(6, 24, "gelu")
