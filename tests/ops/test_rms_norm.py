from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from pygpt import ops, reference
from pygpt.extension import C
from tests.support import (
    assert_accurate,
    assert_bits_hold,
    assert_same_bits,
    dtypes_of,
    gradients,
    least_accurate,
    normal,
    on_the_cpu,
    random_generator,
    strided,
    unaligned,
    with_residual_streams,
)


def torchs(x, weight, eps=1e-5):
    return torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, eps)


@pytest.mark.parametrize("rows, width", [(1, 1), (5, 8), (130, 67), (3, 1000), (2, 20_000)])
def test_forward_and_gradients_match_the_reference(implementation, generator, rows, width):
    eps = 0.5 if width == 1 else 1e-5  # a single value's gradient is what eps leaves of it
    for dtype in dtypes_of(implementation):
        x, grad = normal(generator, rows, width, dtype=dtype), normal(generator, rows, width, dtype=dtype)
        weight = normal(generator, width, dtype=dtype)
        ours, our_grads = gradients(lambda x, w: ops.rms_norm(x, w, eps), [x, weight], [grad])
        exact, exact_grads = gradients(
            lambda x, w: reference.rms_norm(x, w, eps), [x.double(), weight.double()], [grad.double()]
        )
        peer, peer_grads = gradients(lambda x, w: torchs(x, w, eps), [x, weight], [grad])
        for mine, right, theirs in zip(ours + our_grads, exact + exact_grads, peer + peer_grads, strict=True):
            assert mine.dtype == dtype
            assert_accurate(mine, right, theirs, f"{dtype}")


@given(
    shape=st.lists(st.integers(0, 7), min_size=0, max_size=3),
    width=st.integers(1, 70),
    offset=st.floats(-1000, 1000),
)
@example(shape=[0], width=3, offset=0.0)
@example(shape=[], width=17, offset=0.0)
def test_any_shape(implementation, shape, width, offset):
    generator = random_generator()
    x, weight = normal(generator, *shape, width) + offset, normal(generator, width)
    assert_accurate(ops.rms_norm(x, weight), reference.rms_norm(x, weight), torchs(x, weight), f"{(*shape, width)}")


def test_add_rms_norm_is_the_two_operations(implementation, generator):
    for dtype, stream in with_residual_streams(dtypes_of(implementation)):
        x, residual = normal(generator, 9, 70, dtype=dtype), normal(generator, 9, 70, dtype=stream)
        weight = normal(generator, 70, dtype=stream)
        grads = [normal(generator, 9, 70, dtype=dtype), normal(generator, 9, 70, dtype=stream)]
        (out, total), fused = gradients(ops.add_rms_norm, [x, residual, weight], grads)
        assert_same_bits(total, x + residual, "sum")
        assert_same_bits(out, ops.rms_norm(x + residual, weight).to(dtype), "normalised")
        assert_same_bits(fused[0], fused[1].to(dtype), "the two summands' gradients")
        _, (grad_sum, grad_weight) = gradients(
            reference.rms_norm, [total.double(), weight.double()], [grads[0].double()]
        )
        exact = grad_sum + grads[1].double()
        for mine, right in zip(fused, [exact, exact, grad_weight], strict=True):
            assert_accurate(mine, right, None, f"{dtype} added to {stream}")


def test_float32_weight_of_bfloat16_input(implementation, generator):
    x, grad = normal(generator, 70, 33, dtype=torch.bfloat16), normal(generator, 70, 33, dtype=torch.bfloat16)
    weight = normal(generator, 33)
    (out,), grads = gradients(ops.rms_norm, [x, weight], [grad])
    (exact,), exact_grads = gradients(reference.rms_norm, [x.double(), weight.double()], [grad.double()])
    assert out.dtype == torch.bfloat16 and grads[1].dtype == torch.float32

    def torch_in_some_order():
        """PyTorch's, with the weight's gradient summed over the rows in another order."""
        order = torch.randperm(70, generator=generator)
        (theirs,), (grad_x, grad_weight) = gradients(torchs, [x.float()[order], weight], [grad.float()[order]])
        return [theirs[order.argsort()], grad_x[order.argsort()], grad_weight]

    right = [exact, *exact_grads]
    peer = least_accurate([torch_in_some_order() for _ in range(4)], right)
    for mine, expected, theirs in zip([out, *grads], right, peer, strict=True):
        assert_accurate(mine, expected, theirs, "mixed dtypes")


def test_bits_do_not_depend_on_batch_threads_alignment_or_mode(implementation, generator):
    for dtype in dtypes_of(implementation):
        x, grad = normal(generator, 200, 77, dtype=dtype) * 1e-3, normal(generator, 200, 77, dtype=dtype)
        x[3] *= 1e-36  # squares and means among the denormals
        weight = normal(generator, 77, dtype=dtype)

        def run(moved=lambda t: t, x=x, weight=weight, grad=grad):
            (out,), grads = gradients(ops.rms_norm, [moved(x), moved(weight)], [moved(grad)])
            return [out, *grads]

        assert_bits_hold(run, f"{dtype}")
        out = ops.rms_norm(x, weight)
        assert_same_bits(out[3:4], ops.rms_norm(x[3:4], weight), "one row alone")
        for awkward in (unaligned, strided):
            for a, b in zip(run(), run(awkward), strict=True):
                assert_same_bits(a, b, awkward.__name__)


@pytest.mark.float64
def test_autograd_and_library(generator):
    x, residual = normal(generator, 2, 3, 5, dtype=torch.float64), normal(generator, 2, 3, 5, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (x, residual, normal(generator, 5, dtype=torch.float64))]
    assert torch.autograd.gradcheck(ops.rms_norm, (inputs[0], inputs[2]))
    assert torch.autograd.gradcheck(ops.add_rms_norm, tuple(inputs))
    torch.library.opcheck(torch.ops.pygpt.rms_norm, (inputs[0], inputs[2], 1e-5))
    torch.library.opcheck(torch.ops.pygpt.add_rms_norm, (*inputs, 1e-5))
    single = [t.detach().float().requires_grad_() for t in inputs]
    narrow = single[0].detach().bfloat16().requires_grad_()
    torch.library.opcheck(torch.ops.pygpt.add_rms_norm, (narrow, *single[1:], 1e-5))


def test_numpy_in_numpy_out(generator):
    x, weight = normal(generator, 3, 5), normal(generator, 5)
    out = ops.rms_norm(x.numpy(), weight.numpy())
    assert isinstance(out, np.ndarray)
    assert_same_bits(torch.from_numpy(out), ops.rms_norm(x, weight), "NumPy")


def test_nan_stays_in_its_row(implementation, generator):
    x, weight = normal(generator, 4, 20), normal(generator, 20)
    x[1, 7] = torch.nan
    out = ops.rms_norm(x, weight)
    assert out[1].isnan().all()
    assert out[[0, 2, 3]].isfinite().all()


def test_bad_input_of_the_kernels():
    """What only the op's own Python code could get wrong."""
    x, weight, rows = torch.ones(2, 3).bfloat16(), torch.ones(3), torch.ones(2)
    with pytest.raises(ValueError, match="residual and sum must both be given, or neither"):
        C.rms_norm_forward(x, x, weight, 1e-5, torch.empty_like(x), None, None)
    with pytest.raises(TypeError, match=r"grad_weight must be float32.*bfloat16"):
        C.rms_norm_backward(x, None, x, weight, rows, torch.empty_like(x), None, x[0])


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ((torch.ones(2, 3), torch.ones(4)), ValueError, r"weight must have shape \(3,\).*\(4,\)"),
        ((torch.ones(2, 3), torch.ones(3, dtype=torch.float64)), TypeError, "weight must be float32.*float64"),
        ((torch.ones(2, 3, dtype=torch.int64), torch.ones(3)), TypeError, "x must be of dtype.*int64"),
        ((torch.ones(2, 0), torch.ones(0)), ValueError, "last dimension of at least 1"),
        ((torch.ones(2, 3), torch.ones(3), -1.0), ValueError, "eps must be at least 0"),
        pytest.param(
            *((torch.ones(2, 3).half(), torch.ones(3).half()), ValueError, "no CPU kernels for float16"),
            marks=on_the_cpu,
        ),
        (([1.0], torch.ones(1)), TypeError, "x must be a torch.Tensor, but is a list"),
    ],
)
def test_bad_input(arguments, error, words):
    with pytest.raises(error, match=words):
        ops.rms_norm(*arguments)
