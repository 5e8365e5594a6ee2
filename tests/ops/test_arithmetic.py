"""Equal bits do not rest on a guess: small cases of what is promised equal, over three guesses at the arithmetic.

Of CUDA's arithmetic the emulated device knows some to the bit, and wgmma and the approximations within bounds only
(tests/emulator/README.md, "Arithmetic"). Bits that agree because a guess made two kernels alike differ with another.
Each op's own tests compare many shapes over the first guess; what they repeat over several, `assert_bits_hold` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pygpt import ops
from tests.support import ARITHMETICS, EMULATED, arithmetic, assert_same_bits, gradients, normal

pytestmark = pytest.mark.skipif(not EMULATED, reason="all is known of the CPU's arithmetic")


@pytest.fixture(autouse=True, params=ARITHMETICS)
def guess(request):
    with arithmetic(request.param):
        yield


dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def draw(generator, time, dtype, batch=1):
    """q, k, v, and a gradient of what attention makes of them."""
    shapes = (batch, time, 2, 24), (batch, time, 1, 24), (batch, time, 1, 24), (batch, time, 2, 24)
    return [normal(generator, *shape, dtype=dtype) for shape in shapes]


def results(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """Output and gradients; the last input is the gradient of the output."""
    outputs, grads = gradients(function, inputs[:-1], inputs[-1:])
    return [*outputs, *grads]


@dtypes
def test_a_row_of_attention_alone(generator, dtype):
    batch = draw(generator, 70, dtype, batch=2)
    length = 33
    for x in batch[1:3]:
        x[0, length:] = math.nan
    batch[3][0, length:] = 0
    together = results(lambda *x: ops.attention(*x, causal="top_left", key_lengths=torch.tensor([length, 70])), *batch)
    alone = results(lambda *x: ops.attention(*x, causal="top_left"), *(x[:1, :length] for x in batch))
    for a, b in zip(together, alone, strict=True):
        assert_same_bits(a[:1, :length], b, "in a batch, and alone")


@dtypes
def test_a_packed_document_alone(generator, dtype):
    tensors = draw(generator, 103, dtype)
    packed = results(lambda *x: ops.attention(*x, causal=True, cu_seqlens=torch.tensor([0, 33, 103])), *tensors)
    alone = results(lambda *x: ops.attention(*x, causal=True), *(x[:, 33:] for x in tensors))
    for a, b in zip(packed, alone, strict=True):
        assert_same_bits(a[:, 33:], b, "packed, and alone")


@dtypes
def test_attention_to_a_cache(generator, dtype):
    q, k, v, _ = draw(generator, 70, dtype)
    whole = ops.attention(q, k, v, causal=True)
    for begin, end in ((0, 1), (1, 34), (34, 69), (69, 70)):
        start = torch.tensor([begin])
        part = ops.attention(q[:, begin:end], k, v, causal=True, query_start=start)
        assert_same_bits(part, whole[:, begin:end], f"queries {begin} to {end}")


@dtypes
def test_a_query_of_a_step_alone(generator, dtype):
    """Of the kernels for few queries."""
    q, k, v, _ = draw(generator, 140, dtype, batch=2)
    lengths = torch.tensor([140, 77])
    step = {"causal": True, "decode": True}
    batch = ops.attention(q[:, :1], k, v, key_lengths=lengths, query_start=lengths - 1, **step)
    alone = ops.attention(q[1:, :1], k[1:, :77], v[1:, :77], query_start=lengths[1:] - 1, **step)
    assert_same_bits(batch[1:], alone, "in a batch, and alone")


@dtypes
@pytest.mark.parametrize("decode", [False, True])
def test_a_row_of_a_product_alone(generator, dtype, decode):
    x, weight, bias = (normal(generator, *shape, dtype=dtype) for shape in ((70, 40), (75, 40), (75,)))
    for a in range(0, 70, 23):
        rows = slice(a, a + 1)
        one = ops.linear(x[rows], weight, bias, "gelu", decode=decode)
        assert_same_bits(ops.linear(x, weight, bias, "gelu", decode=decode)[rows], one, f"row {a}")


@dtypes
def test_a_row_of_a_layer_alone(generator, dtype):
    """Forward, and the gradient of the input, which is a row's own."""
    x, grad = (normal(generator, 70, 40, dtype=dtype) for _ in range(2))
    w_in, w_out, norm = (normal(generator, *shape, dtype=dtype) for shape in ((75, 40), (40, 75), (40,)))
    layers = {
        "linear": lambda x: ops.linear(x, w_out.T.contiguous()[:40], activation="gelu_tanh"),
        "feed_forward": lambda x: ops.feed_forward(x, w_in, None, w_out, None),
        "layer_norm": lambda x: ops.layer_norm(x, norm),
        "rms_norm": lambda x: ops.rms_norm(x, norm),
        "gated_product": lambda x: ops.gated_product(x, x.clone()),
    }
    for name, layer in layers.items():
        for a, b in zip(results(layer, x, grad), results(layer, x[3:4], grad[3:4]), strict=True):
            assert_same_bits(a[3:4], b, name)


@dtypes
def test_the_loss_of_logits_that_are_never_held(generator, dtype):
    hidden, weight = normal(generator, 9, 40, dtype=dtype), normal(generator, 70, 40, dtype=dtype)
    targets = torch.arange(9) * 7
    loss = ops.linear_cross_entropy(hidden, weight, targets, reduction="none")
    logits = ops.linear(hidden, weight, out_dtype=torch.float32)
    assert_same_bits(loss, ops.cross_entropy(logits, targets, reduction="none"), "of logits that are held")
    assert_same_bits(loss[3:4], ops.linear_cross_entropy(hidden[3:4], weight, targets[3:4], reduction="none"), "row 3")


def test_a_token_alone(generator):
    logits = normal(generator, 3, 500) * 3
    rows = {"seeds": torch.arange(3), "positions": torch.arange(3)}
    batch = ops.sample(logits, top_k=40, top_p=0.9, **rows)
    one = ops.sample(logits[1:2], top_k=40, top_p=0.9, **{name: x[1:2] for name, x in rows.items()})
    for a, b in zip(batch, one, strict=True):
        assert_same_bits(a[1:2], b, "row 1")
