from __future__ import annotations

import copy

import pytest
import torch

from pygpt import ops, reference
from pygpt.nn import Linear, QuantizedLinear
from pygpt.ops.quantized_linear import SCHEMES
from tests.support import assert_same_bits, normal


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_is_its_op(generator, scheme, bias):
    plain = Linear(70, 33, bias)
    module = QuantizedLinear.of(plain.weight, plain.bias, scheme)
    x = normal(generator, 2, 5, 70)
    expected = ops.quantized_linear(x, ops.quantize_weight(plain.weight, scheme), 33, scheme, module.bias, "gelu")
    assert_same_bits(module(x, activation="gelu"), expected, "module and op")
    assert module(x.bfloat16(), out_dtype=torch.float32).dtype == torch.float32
    matrix = reference.quantized_weight(module.weight, 33, 70, scheme)
    assert (matrix - plain.weight).abs().max() < 0.02
    assert f"70, 33, '{scheme}', bias={bias}" in repr(module)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_state_dict_brings_it_back(generator, scheme):
    module = QuantizedLinear.of(normal(generator, 33, 70), normal(generator, 33), scheme)
    other = QuantizedLinear(70, 33, scheme)
    other.load_state_dict(module.state_dict())
    x = normal(generator, 3, 70)
    assert_same_bits(other(x), module(x), "loaded")
    assert_same_bits(copy.deepcopy(module)(x), module(x), "copied")


def test_an_unknown_scheme_is_refused():
    with pytest.raises(ValueError, match="scheme must be one of int8, int4, not 'fp8'"):
        QuantizedLinear(3, 3, "fp8")
