from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from pygpt import ops, reference
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


@given(shape=st.lists(st.integers(0, 6), max_size=4), dropped=st.integers(0, 4), ones=st.integers(0, 2))
@example(shape=[3, 2, 67], dropped=1, ones=0)
@example(shape=[300, 5], dropped=1, ones=1)  # more parts than one group of a sum
@example(shape=[2, 20_000], dropped=1, ones=0)  # more elements than one task
@example(shape=[2, 20_000], dropped=0, ones=0)
@example(shape=[3, 0, 2], dropped=1, ones=0)
@example(shape=[0, 3], dropped=1, ones=0)
def test_sum_and_gradients_match_the_reference(implementation, shape, dropped, ones):
    generator = random_generator()
    y_shape = shape[dropped:]
    y_shape = [1] * min(ones, len(shape) - len(y_shape)) + y_shape
    for dtype in dtypes_of(implementation):
        x, y = normal(generator, *shape, dtype=dtype), normal(generator, *y_shape, dtype=dtype)
        grad = (normal(generator, *shape) + 4).to(dtype)  # sums that do not cancel have a small relative error
        ours, our_grads = gradients(ops.add, [x, y], [grad])
        exact, exact_grads = gradients(reference.add, [x.double(), y.double()], [grad.double()])
        peer, peer_grads = gradients(torch.add, [x, y], [grad])
        for mine, right, theirs in zip(ours + our_grads, exact + exact_grads, peer + peer_grads, strict=True):
            assert mine.dtype == dtype
            assert_accurate(mine, right, theirs, f"{dtype}")


def test_the_sum_of_nothing_has_a_gradient(implementation):
    # Torch makes it of a number, with strides of 0.
    x = torch.empty(0, 3, requires_grad=True)
    ops.add(x, torch.ones(3)).sum().backward()
    assert x.grad.shape == (0, 3)


def test_bits_hold(implementation, generator):
    for dtype in dtypes_of(implementation):
        x, y, grad = (normal(generator, *s, dtype=dtype) * 1e-38 for s in ((70, 300), (300,), (70, 300)))

        def run(x=x, y=y, grad=grad):
            (out,), grads = gradients(ops.add, [x, y], [grad])
            return [out, *grads]

        assert_bits_hold(run, f"{dtype}")
        for awkward in (unaligned, strided):
            for a, b in zip(run(), run(awkward(x), awkward(y), awkward(grad)), strict=True):
                assert_same_bits(a, b, awkward.__name__)


@pytest.mark.float64
def test_autograd_and_library(generator):
    x, y = normal(generator, 2, 3, 5, dtype=torch.float64), normal(generator, 3, 5, dtype=torch.float64)
    x.requires_grad_()
    y.requires_grad_()
    assert torch.autograd.gradcheck(ops.add, (x, y))
    assert torch.autograd.gradcheck(ops.add, (x, normal(generator, 2, 3, 5, dtype=torch.float64).requires_grad_()))
    torch.library.opcheck(torch.ops.pygpt.add, (x, y))
    torch.library.opcheck(torch.ops.pygpt.add, (x, x.detach() * 2))
    torch.library.opcheck(torch.ops.pygpt.add_backward, (x.detach(), (3, 5)))


def test_numpy_in_numpy_out(generator):
    x, y = normal(generator, 3, 5), normal(generator, 5)
    out = ops.add(x.numpy(), y.numpy())
    assert isinstance(out, np.ndarray)
    assert_same_bits(torch.from_numpy(out), x + y, "NumPy")


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ((torch.ones(2, 3), torch.ones(2)), ValueError, r"y must have the shape of x, \(2, 3\).*\(2,\)"),
        ((torch.ones(3), torch.ones(2, 3)), ValueError, "y must have the shape of x"),
        ((torch.ones(2, 3), torch.ones(2, 1)), ValueError, "y must have the shape of x"),
        ((torch.ones(2, 3), torch.ones(3).double()), TypeError, "y must be float32.*float64"),
        ((torch.ones(2, 3).int(), torch.ones(3).int()), TypeError, "x must be of dtype.*int32"),
        ((torch.ones(2, 3), 1.0), TypeError, "y must be a torch.Tensor"),
    ],
)
def test_bad_input(arguments, error, words):
    with pytest.raises(error, match=words):
        ops.add(*arguments)
