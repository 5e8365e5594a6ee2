from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import pygpt
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


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("rows, width", [(1, 1), (5, 8), (130, 67), (3, 1000), (2, 20_000)])
def test_forward_and_gradients_match_the_reference(implementation, generator, rows, width, with_bias):
    for dtype in dtypes_of(implementation):
        x, grad = normal(generator, rows, width, dtype=dtype), normal(generator, rows, width, dtype=dtype)
        weight = normal(generator, width, dtype=dtype)
        bias = normal(generator, width, dtype=dtype) if with_bias else None
        ours, our_grads = gradients(ops.layer_norm, [x, weight, bias], [grad])
        upcast = [None if t is None else t.double() for t in (x, weight, bias)]
        exact, exact_grads = gradients(reference.layer_norm, upcast, [grad.double()])
        peer, peer_grads = gradients(
            lambda x, w, b, width=width: torch.nn.functional.layer_norm(x, (width,), w, b), [x, weight, bias], [grad]
        )
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
    x = normal(generator, *shape, width) + offset
    weight, bias = normal(generator, width), normal(generator, width)
    ours = ops.layer_norm(x, weight, bias)
    exact = reference.layer_norm(x, weight, bias)

    def torch_in_some_order():
        """PyTorch's, with the mean summed in another order: with an offset its rounding is most of the error."""
        order = torch.randperm(width, generator=generator)
        out = torch.nn.functional.layer_norm(x[..., order], (width,), weight[order], bias[order])
        return [out[..., order.argsort()]]

    (peer,) = least_accurate([torch_in_some_order() for _ in range(6)], [exact])
    assert_accurate(ours, exact, peer, f"shape {(*shape, width)}")


def test_add_layer_norm_is_the_two_operations(implementation, generator):
    for dtype, stream in with_residual_streams(dtypes_of(implementation)):
        x, residual = normal(generator, 9, 70, dtype=dtype), normal(generator, 9, 70, dtype=stream)
        weight, bias = normal(generator, 70, dtype=stream), normal(generator, 70, dtype=stream)
        grads = [normal(generator, 9, 70, dtype=dtype), normal(generator, 9, 70, dtype=stream)]
        (out, total), fused = gradients(ops.add_layer_norm, [x, residual, weight, bias], grads)
        assert_same_bits(total, x + residual, "sum")
        assert_same_bits(out, ops.layer_norm(x + residual, weight, bias).to(dtype), "normalised")
        assert_same_bits(fused[0], fused[1].to(dtype), "the two summands' gradients")
        upcast = [t.double() for t in (total, weight, bias)]
        _, (grad_sum, grad_weight, grad_bias) = gradients(reference.layer_norm, upcast, [grads[0].double()])
        exact = grad_sum + grads[1].double()
        for mine, right in zip(fused, [exact, exact, grad_weight, grad_bias], strict=True):
            assert_accurate(mine, right, None, f"{dtype} added to {stream}")


def test_float32_parameters_of_bfloat16_input(implementation, generator):
    x, grad = normal(generator, 70, 33, dtype=torch.bfloat16), normal(generator, 70, 33, dtype=torch.bfloat16)
    weight, bias = normal(generator, 33), normal(generator, 33)
    (out,), grads = gradients(ops.layer_norm, [x, weight, bias], [grad])
    upcast = [t.double() for t in (x, weight, bias)]
    (exact,), exact_grads = gradients(reference.layer_norm, upcast, [grad.double()])
    assert out.dtype == torch.bfloat16 and grads[1].dtype == torch.float32

    def torch_in_some_order():
        """PyTorch's, with the parameters' gradients summed over the rows in another order."""
        order = torch.randperm(70, generator=generator)
        (theirs,), (grad_x, *others) = gradients(
            lambda x, w, b: torch.nn.functional.layer_norm(x, (33,), w, b),
            [x.float()[order], weight, bias],
            [grad.float()[order]],
        )
        return [theirs[order.argsort()], grad_x[order.argsort()], *others]

    right = [exact, *exact_grads]
    peer = least_accurate([torch_in_some_order() for _ in range(4)], right)
    for mine, expected, theirs in zip([out, *grads], right, peer, strict=True):
        assert_accurate(mine, expected, theirs, "mixed dtypes")


def test_bits_do_not_depend_on_batch_threads_alignment_or_mode(implementation, generator):
    for dtype in dtypes_of(implementation):
        x, grad = normal(generator, 200, 77, dtype=dtype) * 1e-3, normal(generator, 200, 77, dtype=dtype)
        x[3] *= 1e-36  # squares and means among the denormals
        weight, bias = normal(generator, 77, dtype=dtype), normal(generator, 77, dtype=dtype)

        def run(moved=lambda t: t, x=x, weight=weight, bias=bias, grad=grad):
            (out,), grads = gradients(ops.layer_norm, [moved(x), moved(weight), moved(bias)], [moved(grad)])
            return [out, *grads]

        assert_bits_hold(run, f"{dtype}")
        out = ops.layer_norm(x, weight, bias)
        assert_same_bits(out[3:4], ops.layer_norm(x[3:4], weight, bias), "one row alone")
        for awkward in (unaligned, strided):
            for a, b in zip(run(), run(awkward), strict=True):
                assert_same_bits(a, b, awkward.__name__)


@pytest.mark.float64
def test_gradcheck():
    generator = random_generator()
    x, residual = normal(generator, 2, 3, 5, dtype=torch.float64), normal(generator, 2, 3, 5, dtype=torch.float64)
    weight, bias = normal(generator, 5, dtype=torch.float64), normal(generator, 5, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (x, residual, weight, bias)]
    assert torch.autograd.gradcheck(ops.layer_norm, (inputs[0], *inputs[2:]))
    assert torch.autograd.gradcheck(ops.layer_norm, (inputs[0], inputs[2]))
    assert torch.autograd.gradcheck(ops.add_layer_norm, tuple(inputs))


def test_a_sum_that_is_not_normalised_further_has_its_gradient(implementation, generator):
    x, residual = normal(generator, 3, 20, dtype=torch.bfloat16), normal(generator, 3, 20)
    grad = normal(generator, 3, 20)
    _, grads = gradients(lambda a, b: ops.add_layer_norm(a, b, torch.ones(20))[1], [x, residual], [grad])
    assert_same_bits(grads[0], grad.bfloat16(), "x")
    assert_same_bits(grads[1], grad, "residual")


def test_opcheck(generator):
    x, weight, bias = (normal(generator, *shape).requires_grad_() for shape in ((2, 3, 5), (5,), (5,)))
    torch.library.opcheck(torch.ops.pygpt.layer_norm, (x, weight, bias, 1e-5))
    torch.library.opcheck(torch.ops.pygpt.layer_norm, (x, weight, None, 1e-5))
    torch.library.opcheck(torch.ops.pygpt.add_layer_norm, (x, x.detach() * 2, weight, bias, 1e-5))
    narrow = x.detach().bfloat16().requires_grad_()
    torch.library.opcheck(torch.ops.pygpt.add_layer_norm, (narrow, x, weight, bias, 1e-5))


def test_compiled_gives_the_same_bits(generator):
    x, weight, bias = (normal(generator, *shape).requires_grad_() for shape in ((6, 16), (16,), (16,)))
    compiled = torch.compile(ops.layer_norm, backend="aot_eager", fullgraph=True)
    grad = normal(generator, 6, 16)
    eager_out, eager_grads = gradients(ops.layer_norm, [x, weight, bias], [grad])
    out, grads = gradients(compiled, [x, weight, bias], [grad])
    for a, b in zip(eager_out + eager_grads, out + grads, strict=True):
        assert_same_bits(a, b, "compiled")


def test_numpy_in_numpy_out(generator):
    x, weight = normal(generator, 3, 5), normal(generator, 5)
    out = ops.layer_norm(x.numpy(), weight.numpy())
    assert isinstance(out, np.ndarray)
    assert_same_bits(torch.from_numpy(out), ops.layer_norm(x, weight), "NumPy")


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ((torch.ones(2, 3), torch.ones(4)), ValueError, r"weight must have shape \(3,\).*\(4,\)"),
        ((torch.ones(2, 3), torch.ones(3), torch.ones(2)), ValueError, "bias must have shape"),
        ((torch.ones(2, 3), torch.ones(3, dtype=torch.float64)), TypeError, "weight must be float32.*float64"),
        ((torch.ones(2, 3, dtype=torch.int64), torch.ones(3)), TypeError, "x must be of dtype.*int64"),
        ((torch.ones(2, 0), torch.ones(0)), ValueError, "last dimension of at least 1"),
        ((torch.tensor(1.0), torch.ones(1)), ValueError, "last dimension of at least 1"),
        ((torch.ones(2, 3), torch.ones(3), None, -1.0), ValueError, "eps must be at least 0"),
        ((torch.ones(2, 3), torch.ones(3), None, float("nan")), ValueError, "eps must be at least 0"),
        pytest.param(
            *((torch.ones(2, 3).half(), torch.ones(3).half()), ValueError, "no CPU kernels for float16"),
            marks=on_the_cpu,
        ),
        ((torch.ones(2, 3), "weight"), TypeError, "weight"),
        (([1.0], torch.ones(1)), TypeError, "x must be a torch.Tensor, but is a list"),
        ((torch.ones(2, 3), torch.ones(3, device="meta")), (TypeError, ValueError), "weight|device"),
    ],
)
def test_bad_input(arguments, error, words):
    with pytest.raises(error, match=words):
        ops.layer_norm(*arguments)


@pytest.mark.parametrize(
    "residual, weight, words",
    [
        (torch.ones(2, 4), torch.ones(3), r"residual must have the shape of x, \(2, 3\), but has \(2, 4\)"),
        (torch.ones(2, 3).double(), torch.ones(3), "residual must be bfloat16 .the dtype of x.* but is float64"),
        (torch.ones(2, 3).half(), torch.ones(3), "residual must be bfloat16 .the dtype of x.* but is float16"),
        (torch.ones(2, 3), torch.ones(3).bfloat16(), "weight must be float32 .the dtype of residual.* but is bfloat16"),
    ],
)
def test_bad_residual(residual, weight, words):
    with pytest.raises((TypeError, ValueError), match=words):
        ops.add_layer_norm(torch.ones(2, 3).bfloat16(), residual, weight)
    with pytest.raises((TypeError, ValueError), match="residual must be float32"):
        ops.add_layer_norm(torch.ones(2, 3), torch.ones(2, 3).bfloat16(), torch.ones(3))


def test_bad_input_of_the_kernels():
    """What only the op's own Python code could get wrong."""
    x, weight, rows = torch.ones(2, 3).bfloat16(), torch.ones(3), torch.ones(2)
    with pytest.raises(ValueError, match="residual and sum must both be given, or neither"):
        C.layer_norm_forward(x, x, weight, None, 1e-5, torch.empty_like(x), None, None, None)
    for grad_weight, grad_bias, words in ((x[0], None, "grad_weight"), (None, x[0], "grad_bias")):
        with pytest.raises(TypeError, match=f"{words} must be float32.*bfloat16"):
            C.layer_norm_backward(x, None, x, weight, rows, rows, torch.empty_like(x), None, grad_weight, grad_bias)


def test_nan_stays_in_its_row(implementation, generator):
    x, weight = normal(generator, 4, 20), normal(generator, 20)
    x[1, 7] = torch.nan
    out = ops.layer_norm(x, weight)
    assert out[1].isnan().all()
    assert out[[0, 2, 3]].isfinite().all()


def test_a_bogus_implementation_is_an_error():
    with pytest.raises(ValueError, match=r"no implementation.*cpu_scalar"), pygpt.force("layer_norm", "cpu_mmx"):
        pass
