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
    normal,
    on_the_cpu,
    random_generator,
    strided,
    unaligned,
)


@given(shapes=st.lists(st.lists(st.integers(0, 40), max_size=3), max_size=5))
@example(shapes=[])
@example(shapes=[[]])
@example(shapes=[[0, 3]])
@example(shapes=[[20_000], [3]])  # more than one task
def test_norm_matches_the_reference(implementation, shapes):
    generator = random_generator()
    for dtype in dtypes_of(implementation):
        tensors = [normal(generator, *shape, dtype=dtype) for shape in shapes]
        ours = ops.grad_norm(tensors)
        peer = torch.nn.utils.get_total_norm(tensors) if tensors else None
        assert ours.dtype == (torch.float64 if dtype == torch.float64 and tensors else torch.float32)
        assert_accurate(ours, reference.grad_norm(tensors), peer, f"{dtype}")


def test_dtypes_may_differ(implementation, generator):
    tensors = [normal(generator, 30, dtype=dtype) for dtype in dtypes_of(implementation)]
    assert_accurate(ops.grad_norm(tensors).float(), reference.grad_norm(tensors), None, "mixed")


def test_bits_hold(implementation, generator):
    for dtype in dtypes_of(implementation):
        tensors = [normal(generator, *shape, dtype=dtype) for shape in ((50_000,), (3, 70), (9000,))]
        assert_bits_hold(lambda tensors=tensors: [ops.grad_norm(tensors)], f"{dtype}")
        for awkward in (unaligned, strided):
            moved = ops.grad_norm([awkward(tensor) for tensor in tensors])
            assert_same_bits(ops.grad_norm(tensors), moved, awkward.__name__)


def test_nan_and_infinity_show(implementation):
    for bad in (torch.nan, torch.inf):
        norm = ops.grad_norm([torch.ones(100), torch.tensor([1.0, bad])])
        torch.testing.assert_close(norm, torch.tensor(bad), equal_nan=True)


def test_library():
    torch.library.opcheck(torch.ops.pygpt.grad_norm, ([torch.ones(3), torch.ones(2, 2)],))


def test_numpy_in_numpy_out(generator):
    tensors = [normal(generator, 3, 5), normal(generator, 4)]
    norm = ops.grad_norm([tensor.numpy() for tensor in tensors])
    assert isinstance(norm, np.ndarray)
    assert_same_bits(torch.from_numpy(norm), ops.grad_norm(tensors), "NumPy")
    assert ops.grad_norm(tensors=tuple(tensor.numpy() for tensor in tensors)) == norm
    with pytest.raises(TypeError, match="do not mix"):
        ops.grad_norm([tensors[0].numpy(), tensors[1]])


@pytest.mark.parametrize(
    "tensors, error, words",
    [
        ([torch.ones(2), 3.0], TypeError, r"tensors\[1\] must be a torch.Tensor, but is a float"),
        ([torch.ones(2).int()], TypeError, "tensors must be of dtype.*int32"),
        ([torch.ones(2).half(), torch.ones(2).double()], TypeError, "must not be float64 beside others.*float16"),
        ([torch.ones(2).double(), torch.ones(2).half()], TypeError, "must not be float16 beside others.*float64"),
        pytest.param([torch.ones(2).half()], ValueError, "no CPU kernels for float16", marks=on_the_cpu),
    ],
)
def test_bad_input(tensors, error, words):
    with pytest.raises(error, match=words):
        ops.grad_norm(tensors)
