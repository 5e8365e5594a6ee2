from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from pygpt import ops, reference
from tests.philox import dropout_mask
from tests.support import (
    assert_accurate,
    assert_bits_hold,
    assert_same_bits,
    dtypes_of,
    gradients,
    normal,
    random_generator,
    strided,
    unaligned,
)


@given(
    shape=st.lists(st.integers(1, 9), max_size=3),
    p=st.floats(0, 1),
    seed=st.integers(-(2**63), 2**63 - 20),
)
@example(shape=[3, 20_000], p=0.1, seed=7)  # several tasks a row
@example(shape=[2, 3, 129], p=1.0, seed=0)
@example(shape=[65], p=1 - 2.0**-53, seed=2**63 - 20)
@example(shape=[65], p=5e-324, seed=1)
def test_values_and_gradient_follow_the_mask(implementation, shape, p, seed):
    generator = random_generator()
    keep = dropout_mask(tuple(shape), p, seed).to(torch.get_default_device())
    for dtype in dtypes_of(implementation):
        x, grad = normal(generator, *shape, dtype=dtype), normal(generator, *shape, dtype=dtype)
        (out,), (grad_x,) = gradients(lambda x: ops.dropout(x, p, seed), [x], [grad])
        (exact,), (exact_grad,) = gradients(lambda x: reference.dropout(x, p, keep), [x.double()], [grad.double()])
        assert out.dtype == dtype
        for mine, right in ((out, exact), (grad_x, exact_grad)):
            assert ((mine == 0) == (right == 0)).all()
            assert_accurate(mine, right, None, f"{dtype}")


def test_bits_hold_and_a_row_stands_alone(implementation, generator):
    for dtype in dtypes_of(implementation):
        x = normal(generator, 5, 9000, dtype=dtype)

        def run(x=x):
            return [ops.dropout(x, 0.3, 11)]

        assert_bits_hold(run, f"{dtype}")
        for awkward in (unaligned, strided):
            assert_same_bits(run()[0], run(awkward(x))[0], awkward.__name__)
        assert_same_bits(run()[0][2:4], ops.dropout(x[2:4], 0.3, 11 + 2), "rows 2 and 3 alone")
        assert_same_bits(run()[0][:, :70], ops.dropout(x[:, :70], 0.3, 11), "the beginning of each row alone")


def test_the_share_that_is_kept(generator):
    kept = ops.dropout(torch.ones(1, 1_000_000), 0.1, int(torch.randint(2**62, (), generator=generator))) > 0
    share, deviation = float(kept.double().mean()), (0.1 * 0.9 / kept.numel()) ** 0.5
    assert abs(share - 0.9) < 5 * deviation  # fails once in 1.7 million runs
    pairs = float((kept[:, 1:] & kept[:, :-1]).double().mean())
    assert abs(pairs - 0.81) < 8 * deviation


def test_the_seed_comes_from_torchs_generator():
    x = torch.ones(2, 300)
    torch.manual_seed(5)
    first, second = ops.dropout(x, 0.5), ops.dropout(x, 0.5)
    torch.manual_seed(5)
    assert_same_bits(first, ops.dropout(x, 0.5), "the same seed of torch")
    assert (first != second).any()
    torch.manual_seed(5)
    seed = torch.randint(2**63 - 1, ())
    assert_same_bits(first, ops.dropout(x, 0.5, seed), "the seed drawn by hand")
    assert_same_bits(first, ops.dropout(x, 0.5, int(seed)), "the seed as an int")


def test_nothing_dropped_is_the_input_and_all_dropped_is_zero(implementation):
    x = torch.full((3, 5), torch.nan)
    assert ops.dropout(x, 0.0) is x
    assert_same_bits(ops.dropout(x, 1.0), torch.zeros(3, 5), "p = 1")
    for shape in ((0,), (0, 3), (3, 0)):
        assert ops.dropout(torch.ones(shape), 0.5).shape == shape


@pytest.mark.float64
def test_autograd(generator):
    x = normal(generator, 2, 70, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ops.dropout(x, 0.4, 3), (x,))


def test_library(generator):
    torch.library.opcheck(torch.ops.pygpt.dropout, (normal(generator, 2, 70).requires_grad_(), torch.tensor(3), 0.4))


def test_compiled_code_draws_a_new_mask_each_time():
    compiled = torch.compile(lambda x: ops.dropout(x, 0.5), backend="aot_eager", fullgraph=True)
    x = torch.ones(2, 300)
    torch.manual_seed(5)
    first, second = compiled(x), compiled(x)
    assert (first != second).any()
    torch.manual_seed(5)
    assert_same_bits(first, ops.dropout(x, 0.5), "compiled and eager")


def test_numpy_in_numpy_out():
    x = np.ones((2, 50), dtype=np.float32)
    out = ops.dropout(x, 0.5, 3)
    assert isinstance(out, np.ndarray)
    assert_same_bits(torch.from_numpy(out), ops.dropout(torch.from_numpy(x), 0.5, 3), "NumPy")


X = torch.ones(2, 3)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ((X, -0.1), ValueError, "p must be at least 0 and at most 1, but is -0.1"),
        ((X, 1.1), ValueError, "p must be"),
        ((X, float("nan")), ValueError, "p must be"),
        ((X, 0.5, 2**63), ValueError, "seed must fit in 64 bits"),
        ((X, 0.5, torch.tensor([1])), ValueError, r"seed must have shape \(\).*\(1,\)"),
        ((X, 0.5, torch.tensor(1.0)), TypeError, "seed must be int64.*float32"),
        ((X.int(), 0.5), TypeError, "x must be of dtype"),
        (("x", 0.5), TypeError, "x must be a torch.Tensor, but is a str"),
        ((X, 0.5, "seed"), TypeError, "seed must be an int"),
    ],
)
def test_bad_input(arguments, error, words):
    with pytest.raises(error, match=words):
        ops.dropout(*arguments)
