from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from pygpt import ops, reference
from pygpt.nn.rotary import rotations
from tests.support import (
    assert_accurate,
    assert_bits_hold,
    assert_same_bits,
    dtypes_of,
    gradients,
    normal,
    on_the_cpu,
    random_generator,
    strided,
    unaligned,
)

ROWS = 50  # of tables


def table_of(head_dim, dtype):
    return rotations(ROWS, head_dim, 100.0).to(torch.get_default_device(), dtype)


def some_positions(generator, *shape):
    return torch.randint(ROWS, shape, generator=generator)


def torchs(x, positions, table):
    """As transformers has it, in the dtype of ``x``."""
    cosine, sine = table[positions].to(x.dtype).unsqueeze(-2).chunk(2, dim=-1)
    first, second = x.chunk(2, dim=-1)
    return x * torch.cat([cosine, cosine], -1) + torch.cat([-second, first], -1) * torch.cat([sine, sine], -1)


@given(
    batch=st.integers(0, 3),
    time=st.integers(0, 5),
    heads=st.integers(0, 5),
    half=st.sampled_from([0, 1, 3, 4, 8, 17, 32, 128]),
    own=st.booleans(),
    rounded_table=st.booleans(),
)
@example(batch=2, time=3, heads=40, half=64, own=True, rounded_table=False)
@example(batch=1, time=300, heads=2, half=24, own=False, rounded_table=False)
def test_forward_and_gradient_match_the_reference(implementation, batch, time, heads, half, own, rounded_table):
    generator = random_generator()
    positions = some_positions(generator, batch, time) if own else some_positions(generator, time)
    for dtype in dtypes_of(implementation):
        x, grad = (normal(generator, batch, time, heads, 2 * half, dtype=dtype) for _ in range(2))
        table = table_of(2 * half, dtype if rounded_table else torch.float32)

        def of(function, x, grad, positions=positions, table=table):
            (out,), (grad_x,) = gradients(lambda x: function(x, positions, table), [x], [grad])
            return out, grad_x

        ours, exact = of(ops.rotary, x, grad), of(reference.rotary, x.double(), grad.double())
        for mine, right, theirs in zip(ours, exact, of(torchs, x, grad), strict=True):
            assert mine.dtype == dtype and mine.is_contiguous()
            assert_accurate(mine, right, theirs, f"{dtype}")


def test_queries_and_keys_in_one_call_are_two(implementation, generator):
    """Heads that are part of more, as a product has made them."""
    for dtype in dtypes_of(implementation):
        qkv = normal(generator, 2, 5, 9, 16, dtype=dtype)
        positions, table = some_positions(generator, 2, 5), table_of(16, torch.float32)
        both = ops.rotary(qkv[:, :, :7], positions, table)
        assert_same_bits(both[:, :, :5], ops.rotary(qkv[:, :, :5].contiguous(), positions, table), "queries")
        assert_same_bits(both[:, :, 5:], ops.rotary(qkv[:, :, 5:7], positions, table), "keys")


def test_bits_hold(implementation, generator):
    positions = some_positions(generator, 2, 70)
    for dtype in dtypes_of(implementation):
        x, grad = (normal(generator, 2, 70, 3, 24, dtype=dtype) * 1e-38 for _ in range(2))
        table = table_of(24, torch.float32)

        def run(moved=lambda t: t, x=x, grad=grad, table=table):
            (out,), grads = gradients(lambda x: ops.rotary(x, positions, moved(table)), [moved(x)], [moved(grad)])
            return [out, *grads]

        assert_bits_hold(run, f"{dtype}")
        for awkward in (unaligned, strided):
            for a, b in zip(run(), run(awkward), strict=True):
                assert_same_bits(a, b, awkward.__name__)
        alone = ops.rotary(x[1:, 7:8], positions[1:, 7:8], table)
        assert_same_bits(run()[0][1:, 7:8], alone, "one token alone")


@pytest.mark.float64
def test_autograd_and_library(generator):
    x, positions = normal(generator, 2, 3, 2, 6, dtype=torch.float64).requires_grad_(), some_positions(generator, 3)
    table = table_of(6, torch.float64)
    assert torch.autograd.gradcheck(lambda x: ops.rotary(x, positions, table), (x,))
    torch.library.opcheck(torch.ops.pygpt.rotary, (x, positions, table, False))


def test_numpy_in_numpy_out(generator):
    x, positions, table = normal(generator, 1, 4, 2, 6), some_positions(generator, 4), table_of(6, torch.float32)
    out = ops.rotary(x.numpy(), positions.numpy(), table.numpy())
    assert isinstance(out, np.ndarray)
    assert_same_bits(torch.from_numpy(out), ops.rotary(x, positions, table), "NumPy")


@pytest.mark.parametrize("outside", [-1, ROWS])
def test_a_position_out_of_range(implementation, generator, outside):
    """An error on the CPU; NaN for its token on a CUDA device."""
    x, positions, table = normal(generator, 1, 4, 2, 6), some_positions(generator, 4), table_of(6, torch.float32)
    ops.rotary(x, positions, table)
    positions[2] = outside
    if implementation.startswith("cuda"):
        out = ops.rotary(x, positions, table)
        assert out[:, 2].isnan().all() and out[:, [0, 1, 3]].isfinite().all()
        return
    with pytest.raises(ValueError, match=rf"positions\[2\] is {outside}"):
        ops.rotary(x, positions, table)


X, AT, TABLE = torch.ones(2, 3, 4, 6), torch.zeros(3, dtype=torch.int64), torch.ones(5, 6)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ((X[0], AT, TABLE), ValueError, r"x must be.*\(batch, time, heads, head_dim\)"),
        ((X[..., :5], AT, TABLE[:, :5]), ValueError, "even head_dim"),
        ((X, AT[:2], TABLE), ValueError, r"positions must have shape \(3,\)"),
        ((X, AT.view(1, 3), TABLE), ValueError, r"positions must have shape \(2, 3\)"),
        ((X, AT.int(), TABLE), TypeError, "positions must be int64"),
        ((X, AT, TABLE[:, :4]), ValueError, r"table must have shape \(5, 6\)"),
        ((X, AT, TABLE.double()), TypeError, "table must be float32.*float64"),
        ((X.int(), AT, TABLE), TypeError, "x must be of dtype.*int32"),
        ((X, AT, TABLE.clone().requires_grad_()), ValueError, "table must not require a gradient"),
        ((X, [0, 1, 2], TABLE), TypeError, "positions must be a torch.Tensor"),
        pytest.param((X.half(), AT, TABLE), ValueError, "no CPU kernels for float16", marks=on_the_cpu),
    ],
)
def test_bad_input(arguments, error, words):
    with pytest.raises(error, match=words):
        ops.rotary(*arguments)
