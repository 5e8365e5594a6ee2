from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from pygpt import ops, reference
from pygpt.extension import EMULATED, C
from pygpt.ops.quantized_linear import SCHEMES, pack_weight
from tests.support import (
    assert_accurate,
    assert_bits_hold,
    assert_same_bits,
    normal,
    random_generator,
    strided,
    unaligned,
)

pytestmark = pytest.mark.skipif(EMULATED is not None, reason="the op has CPU kernels only")

DTYPES = (torch.float32, torch.bfloat16)
ACTIVATIONS = [None, "gelu", "gelu_tanh", "relu"]


def peer(x, packed, outputs, scheme, bias, activation, residual):
    """PyTorch's product of what the op multiplies, in the dtype that sums are in, rounded to x's."""
    matrix = reference.quantized_weight(packed, outputs, x.shape[-1], scheme).float()
    out = torch.nn.functional.linear(
        reference.rounded_in_groups(x).float(), matrix, bias if bias is None else bias.float()
    )
    out = reference.ACTIVATIONS[activation](out)
    return (out if residual is None else out + residual).to(x.dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    "rows, inputs, outputs", [(1, 9, 40), (5, 32, 40), (37, 67, 33), (40, 1100, 48), (30, 128, 96), (130, 6, 9)]
)
def test_the_result_matches_the_reference(implementation, generator, rows, inputs, outputs, scheme, activation):
    packed = ops.quantize_weight(normal(generator, outputs, inputs) * inputs**-0.5, scheme)
    for dtype in DTYPES:
        x = normal(generator, rows, inputs, dtype=dtype)
        bias, residual = normal(generator, outputs, dtype=dtype), normal(generator, rows, outputs, dtype=dtype)
        arguments = x, packed, outputs, scheme, bias, activation, residual
        ours = ops.quantized_linear(*arguments)
        assert ours.dtype == dtype
        assert_accurate(ours, reference.quantized_linear(*arguments), peer(*arguments), f"{scheme}, {dtype}")
        wide = ops.quantized_linear(*arguments[:6], residual=residual.float())
        assert wide.dtype == torch.float32
        assert_accurate(wide, reference.quantized_linear(*arguments), peer(*arguments), f"{scheme}, float32")


@given(
    shape=st.lists(st.integers(0, 5), min_size=0, max_size=2),
    inputs=st.integers(0, 80),
    outputs=st.integers(0, 70),
    scheme=st.sampled_from(SCHEMES),
    with_bias=st.booleans(),
    with_residual=st.booleans(),
)
@example(shape=[3], inputs=0, outputs=5, scheme="int4", with_bias=True, with_residual=False)
@example(shape=[3], inputs=0, outputs=5, scheme="int8", with_bias=False, with_residual=False)
@example(shape=[0], inputs=3, outputs=5, scheme="int8", with_bias=True, with_residual=True)
@example(shape=[], inputs=33, outputs=1, scheme="int4", with_bias=False, with_residual=False)
@example(shape=[2, 70], inputs=33, outputs=65, scheme="int8", with_bias=False, with_residual=True)
@example(shape=[1100], inputs=3, outputs=260, scheme="int4", with_bias=True, with_residual=False)  # many tiles
def test_any_shape(implementation, shape, inputs, outputs, scheme, with_bias, with_residual):
    generator = random_generator()
    packed = ops.quantize_weight(normal(generator, outputs, inputs) * 0.2, scheme)
    bias = normal(generator, outputs) if with_bias else None
    residual = normal(generator, *shape, outputs) if with_residual else None
    arguments = normal(generator, *shape, inputs), packed, outputs, scheme, bias, None, residual
    results = ops.quantized_linear(*arguments), reference.quantized_linear(*arguments), peer(*arguments)
    assert {result.shape for result in results} == {(*shape, outputs)}
    # Beside what came in: the error of an element that cancels to almost nothing says little.
    together = (torch.cat([arguments[0].to(result.dtype).flatten(), result.flatten()]) for result in results)
    assert_accurate(*together, f"shape {(*shape, inputs)}")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_bits_do_not_depend_on_rows_threads_alignment_or_mode(implementation, generator, scheme):
    packed = ops.quantize_weight(normal(generator, 75, 301), scheme)
    for dtype in DTYPES:
        x, bias = normal(generator, 131, 301, dtype=dtype), normal(generator, 75, dtype=dtype)
        x[3] *= 1e-30

        def run(x=x, bias=bias):
            return (ops.quantized_linear(x, packed, 75, scheme, bias, "gelu"),)

        assert_bits_hold(run, f"{dtype}")
        (out,) = run()
        for rows in [slice(i, i + 1) for i in range(0, 131, 13)] + [slice(7, 7 + n) for n in (2, 3, 4, 5, 31, 33)]:
            assert_same_bits(out[rows], *run(x[rows]), f"rows {rows} without the others")
        for awkward in (unaligned, strided):
            moved = ops.quantized_linear(awkward(x), awkward(packed), 75, scheme, awkward(bias), "gelu")
            assert_same_bits(out, moved, awkward.__name__)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rounding_x_costs_less_than_bfloat16_would(implementation, generator, scheme):
    packed = ops.quantize_weight(normal(generator, 64, 768), scheme)
    for spread in (0.0, 1.0):  # values of one size, and of sizes far apart
        x = normal(generator, 9, 768) * torch.exp(spread * normal(generator, 9, 768))
        matrix = reference.quantized_weight(packed, 64, 768, scheme)
        ideal, rounded = x.double() @ matrix.T, x.bfloat16().double() @ matrix.T
        error = (ops.quantized_linear(x, packed, 64, scheme).double() - ideal).abs().max()
        assert error < 0.1 * (rounded - ideal).abs().max()


def test_numbers_that_are_not_finite_stay_in_their_row(implementation, generator):
    for scheme in SCHEMES:
        packed = ops.quantize_weight(normal(generator, 33, 70), scheme)
        x = normal(generator, 20, 70)
        x[1, 7], x[2, 69] = torch.nan, -torch.inf
        for activation in ACTIVATIONS:
            out = ops.quantized_linear(x, packed, 33, scheme, activation=activation)
            assert out[1:3].isnan().all(), activation
            assert out[3:].isfinite().all() and out[0].isfinite().all(), activation


def test_very_small_and_very_large_numbers(implementation, generator):
    for scheme in SCHEMES:
        packed = ops.quantize_weight(normal(generator, 33, 70) * 0.1, scheme)
        x = normal(generator, 5, 70)
        x[0] = 0.0
        for scale in (2.0**-100, 2.0**100):
            arguments = x * scale, packed, 33, scheme
            out = ops.quantized_linear(*arguments)
            assert_accurate(out, reference.quantized_linear(*arguments), None, f"{scheme}, {scale}")
        assert not ops.quantized_linear(x * 2.0**-120, packed, 33, scheme).any()


def test_int8_is_the_nearest_of_255_numbers(generator):
    weight = normal(generator, 40, 67)
    weight[5] = 0.0
    matrix = reference.quantized_weight(ops.quantize_weight(weight, "int8"), 40, 67, "int8")
    scale = weight.abs().amax(dim=1, keepdim=True).double() / 127
    assert ((matrix - weight).abs() <= scale * (0.5 + 1e-5)).all()
    assert not matrix[5].any()
    again = ops.quantize_weight(matrix, "int8")
    assert_same_bits(reference.quantized_weight(again, 40, 67, "int8").float(), matrix.float(), "rounded twice")


@pytest.mark.parametrize("inputs", [3, 64, 77])
def test_int4_is_nearer_than_from_the_smallest_to_the_largest(generator, inputs):
    weight = normal(generator, 400, inputs)
    weight[5] = 0.25
    matrix = reference.quantized_weight(ops.quantize_weight(weight, "int4"), 400, inputs, "int4")
    groups = [torch.arange(i, min(i + 32, inputs)) for i in range(0, inputs, 32)]
    for places in groups:
        group = weight[:, places]
        low, high = group.amin(dim=1, keepdim=True), group.amax(dim=1, keepdim=True)
        scale, low, group = ((high - low) / 15).half().double(), low.half().double(), group.double()
        plain = ((group - low) / scale.clamp(min=1e-9)).round().clamp(0, 15) * scale + low
        ours, theirs = ((each - group).square().mean(dim=1) for each in (matrix[:, places], plain))
        assert (ours <= theirs * 1.001 + 1e-12).all()
        if len(places) == 32:
            assert ours.mean() < 0.92 * theirs.mean()
    assert (matrix[5] == 0.25).all()


def test_int4_keeps_what_is_in_4_bits_already(generator):
    """Weights out of a Q4_1 file: in each group the smallest number is 0 and the largest 15."""
    numbers = torch.randint(16, (40, 64), generator=generator, dtype=torch.uint8)
    numbers[:, ::32], numbers[:, 1::32] = 0, 15
    scale = (normal(generator, 40, 2).abs() * 0.01 + 0.001).half()
    offset = (normal(generator, 40, 2) * 0.1).half()
    packed = pack_weight(numbers, scale, offset)
    weight = reference.quantized_weight(packed, 40, 64, "int4").float()
    assert_same_bits(ops.quantize_weight(weight, "int4"), packed, "quantised again")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_layout_is_the_documented_one(scheme):
    numbers = torch.arange(33 * 70).remainder(13).to(torch.uint8).view(33, 70) + 1
    if scheme == "int8":
        scale = torch.arange(1.0, 34.0)
        packed = pack_weight(numbers, scale)
        panel = packed[128 + 3 * 1024 :]  # the second: column 32
        assert panel[:4].view(torch.float32) == 33.0
        assert panel[4:128].view(torch.float32).count_nonzero() == 0
        assert (panel[128 + 1024 + 2 * 128 : 128 + 1024 + 2 * 128 + 4] == numbers[32, 40:44]).all()
        assert (panel[128 + 2 * 1024 + 2 * 128 :] == 128).all()  # past K
    else:
        scale, offset = (torch.arange(99.0).view(33, 3) + first for first in (1, 200))
        packed = pack_weight(numbers, scale.half(), offset.half())
        group = packed[3 * 640 + 640 : 3 * 640 + 2 * 640]  # the second of the second panel
        assert group[:2].view(torch.float16) == scale[32, 1]
        assert group[64:66].view(torch.float16) == offset[32, 1]
        assert (group[128 + 2 * 128 : 128 + 2 * 128 + 4] == numbers[32, 40:44] | numbers[32, 56:60] << 4).all()
    assert len(packed) == C.quantized_linear_packed_bytes(33, 70, scheme)


def test_there_is_no_gradient(generator):
    x, packed = normal(generator, 2, 9).requires_grad_(), ops.quantize_weight(normal(generator, 4, 9), "int8")
    with pytest.raises(NotImplementedError, match="quantized_linear has no gradient: a quantised model is for"):
        ops.quantized_linear(x, packed, 4, "int8")
    with pytest.raises(NotImplementedError, match="quantized_linear has no gradient"):
        ops.quantized_linear(x.detach(), packed, 4, "int8", torch.ones(4, requires_grad=True))
    with torch.no_grad():
        ops.quantized_linear(x, packed, 4, "int8")


def test_under_autocast_the_result_is_in_its_dtype(generator):
    x, packed = normal(generator, 2, 9), ops.quantize_weight(normal(generator, 4, 9), "int8")
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.quantized_linear(x, packed, 4, "int8").dtype == torch.bfloat16


def test_opcheck(generator):
    x, bias, residual = (normal(generator, *shape) for shape in ((2, 3, 5), (4,), (2, 3, 4)))
    op = torch.ops.pygpt.quantized_linear
    for scheme in SCHEMES:
        packed = ops.quantize_weight(normal(generator, 4, 5), scheme)
        torch.library.opcheck(op, (x, packed, 4, scheme, bias, "gelu_tanh", residual, None))
        torch.library.opcheck(op, (x.bfloat16(), packed, 4, scheme, None, None, None, torch.float32))


def test_compiled_gives_the_same_bits(generator):
    x, packed = normal(generator, 6, 16), ops.quantize_weight(normal(generator, 9, 16), "int4")

    def run(x):
        return ops.quantized_linear(x, packed, 9, "int4", activation="gelu")

    assert_same_bits(torch.compile(run, backend="aot_eager", fullgraph=True)(x), run(x), "compiled")


def test_numpy_in_numpy_out(generator):
    x, packed = normal(generator, 3, 5), ops.quantize_weight(normal(generator, 4, 5), "int8")
    out = ops.quantized_linear(x.numpy(), packed.numpy(), 4, "int8")
    assert isinstance(out, np.ndarray)
    assert_same_bits(torch.from_numpy(out), ops.quantized_linear(x, packed, 4, "int8"), "NumPy")


X, W = torch.ones(2, 3), torch.zeros(1152, dtype=torch.uint8)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ((X, W[1:], 4, "int8"), ValueError, r"weight must have shape \(1152,\).*\(1151,\)"),
        ((X, W, 33, "int8"), ValueError, r"weight must have shape \(2304,\)"),
        ((X, W, 4, "int4"), ValueError, r"weight must have shape \(640,\)"),
        ((X, W, 4, "int3"), ValueError, "scheme must be 'int8' or 'int4', not 'int3'"),
        ((X, torch.zeros(1152), 4, "int8"), TypeError, "weight must be uint8"),
        ((X, W, 4, "int8", torch.ones(3)), ValueError, "bias must have shape"),
        ((X, W, 4, "int8", [1.0, 2.0, 3.0, 4.0]), TypeError, "bias must be a torch.Tensor, but is a list"),
        ((X.double(), W, 4, "int8"), TypeError, "x must be of dtype float32, bfloat16, but is float64"),
        ((torch.tensor(1.0), W, 4, "int8"), ValueError, "x must have a last dimension"),
        ((X, W, 4, "int8", None, "swish"), ValueError, "activation must be.*swish"),
        ((X, W, 4, "int8", None, None, torch.ones(2, 3)), ValueError, r"residual must have shape \(2, 4\)"),
        ((X, W, 4, "int8", None, None, torch.ones(2, 4).double()), TypeError, "out must be float32"),
        ((X, "weight", 4, "int8"), TypeError, r"weight must be a torch\.Tensor"),
    ],
)
def test_bad_input(arguments, error, words):
    with pytest.raises(error, match=words):
        ops.quantized_linear(*arguments)


@pytest.mark.parametrize(
    "weight, scheme, error, words",
    [
        (torch.ones(3), "int8", ValueError, r"weight must be \(out, in\), on the CPU, not \(3,\)"),
        (torch.ones(3, 3), "int5", ValueError, "scheme must be one of int8, int4, not 'int5'"),
        (torch.ones(3, 3), None, ValueError, "scheme must be one of int8, int4, not None"),
        (torch.ones(3, 3, dtype=torch.int8), "int8", TypeError, r"weight must be floating point, not torch\.int8"),
        (torch.full((3, 3), torch.nan), "int4", ValueError, "weight must be finite"),
        (torch.full((3, 3), 1e6), "int4", ValueError, "within the range of float16 for int4, but holds ±1e.06"),
        (None, "int8", TypeError, r"weight must be a torch\.Tensor"),
    ],
)
def test_bad_weights(weight, scheme, error, words):
    with pytest.raises(error, match=words):
        ops.quantize_weight(weight, scheme)
