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
    on_the_cpu,
    random_generator,
    strided,
    unaligned,
)


def random_ids(generator, vocabulary, *shape):
    return torch.randint(vocabulary, shape, generator=generator)


@given(shape=st.lists(st.integers(0, 9), max_size=3), vocabulary=st.integers(1, 300), width=st.integers(0, 70))
@example(shape=[1500], vocabulary=2, width=33)  # each row of the table is met more often than one group of a sum
@example(shape=[], vocabulary=1, width=1)
@example(shape=[0], vocabulary=5, width=3)
def test_rows_and_gradient_match_the_reference(implementation, shape, vocabulary, width):
    generator = random_generator()
    ids = random_ids(generator, vocabulary, *shape)
    for dtype in dtypes_of(implementation):
        table = normal(generator, vocabulary, width, dtype=dtype)
        grad = (normal(generator, *shape, width) + 4).to(dtype)  # sums that do not cancel have a small relative error
        (out,), (grad_table,) = gradients(lambda t: ops.embedding(ids, t), [table], [grad])
        _, (exact,) = gradients(lambda t: reference.embedding(ids, t), [table.double()], [grad.double()])
        peer = exact
        if width > 0:  # which PyTorch's CUDA kernel refuses
            _, (peer,) = gradients(lambda t: torch.nn.functional.embedding(ids, t), [table], [grad])
        assert_same_bits(out, table[ids], f"{dtype}")
        assert grad_table.dtype == dtype
        assert_accurate(grad_table, exact, peer, f"{dtype}")


def test_bits_hold(implementation, generator):
    ids = random_ids(generator, 400, 3, 700)
    ids[:, ::3] = 5  # one id stands for a third
    for dtype in dtypes_of(implementation):
        table, grad = normal(generator, 400, 37, dtype=dtype), normal(generator, 3, 700, 37, dtype=dtype) * 1e-37

        def run(ids=ids, table=table, grad=grad):
            (out,), grads = gradients(lambda t: ops.embedding(ids, t), [table], [grad])
            return [out, *grads]

        assert_bits_hold(run, f"{dtype}")
        for awkward in (unaligned, strided):
            for a, b in zip(run(), run(awkward(ids), awkward(table), awkward(grad)), strict=True):
                assert_same_bits(a, b, awkward.__name__)


def test_ids_out_of_range(implementation, generator):
    table, ids = normal(generator, 4, 40), torch.tensor([3, -1, 0, 4, 3, 2**40])
    if implementation.startswith("cpu"):
        with pytest.raises(ValueError, match=r"ids\[1\] is -1"):
            ops.embedding(ids, table)
        assert_same_bits(ops.embedding(torch.tensor([3, 0]), table), table[[3, 0]], "the process is unharmed")
        return
    grad = normal(generator, 6, 40)
    (out,), (grad_table,) = gradients(lambda t: ops.embedding(ids, t), [table], [grad])
    exists = [0, 2, 4]
    assert_same_bits(out[exists], table[ids[exists]], "rows that exist")
    assert out[[1, 3, 5]].isnan().all()
    _, (exact,) = gradients(lambda t: ops.embedding(ids[exists], t), [table], [grad[exists]])
    assert_same_bits(grad_table, exact, "the other ids have no gradient")


@pytest.mark.float64
def test_autograd(generator):
    ids, table = random_ids(generator, 4, 2, 5), normal(generator, 4, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: ops.embedding(ids, t), (table,))


def test_library(generator):
    ids, table = random_ids(generator, 4, 2, 5), normal(generator, 4, 3).requires_grad_()
    torch.library.opcheck(torch.ops.pygpt.embedding, (ids, table))
    torch.library.opcheck(torch.ops.pygpt.embedding_backward, (normal(generator, 2, 5, 3), ids, 4))


def test_numpy_in_numpy_out(generator):
    ids, table = random_ids(generator, 4, 2, 5), normal(generator, 4, 3)
    out = ops.embedding(ids.numpy(), table.numpy())
    assert isinstance(out, np.ndarray)
    assert_same_bits(torch.from_numpy(out), table[ids], "NumPy")


TABLE = torch.ones(4, 3)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        pytest.param(
            *(
                (torch.tensor([[0, 1], [7, -9]]), TABLE),
                ValueError,
                r"ids\[1, 0\] is 7, .*less than 4, the table's number",
            ),
            marks=on_the_cpu,
        ),
        pytest.param(*((torch.tensor([[0, -1], [7, 1]]), TABLE), ValueError, r"ids\[0, 1\] is -1"), marks=on_the_cpu),
        pytest.param(*((torch.tensor(2**62), TABLE), ValueError, f"ids is {2**62}"), marks=on_the_cpu),
        pytest.param(
            *((torch.tensor([0]), torch.ones(0, 3)), ValueError, r"ids\[0\] is 0, .* less than 0"), marks=on_the_cpu
        ),
        ((torch.tensor([0], dtype=torch.int32), TABLE), TypeError, "ids must be int64.*int32"),
        ((torch.tensor([0]), torch.ones(4)), ValueError, r"table must be \(vocabulary, width\)"),
        ((torch.tensor([0]), torch.ones(4, 3).int()), TypeError, "table must be of dtype"),
        ((torch.zeros([1] * 8, dtype=torch.int64), TABLE), ValueError, "at most 8"),
        (([0], TABLE), TypeError, "ids must be a torch.Tensor, but is a list"),
    ],
)
def test_bad_input(arguments, error, words):
    with pytest.raises(error, match=words):
        ops.embedding(*arguments)
