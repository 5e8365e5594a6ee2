from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import pygpt
from pygpt import ops, reference
from pygpt.extension import C
from tests.support import (
    EMULATED,
    assert_accurate,
    assert_bits_hold,
    assert_same_bits,
    dtypes_of,
    gradients,
    launches_of,
    least_accurate,
    normal,
    on_the_cpu,
    random_generator,
    smaller,
    strided,
    unaligned,
)

ACTIVATIONS = [None, "gelu", "gelu_tanh", "relu"]
TORCH_ACTIVATIONS = {
    None: lambda x: x,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu": torch.relu,
}


def torch_linear(x, weight, bias, activation, residual):
    out = TORCH_ACTIVATIONS[activation](torch.nn.functional.linear(x, weight, bias))
    return out if residual is None else out + residual


def run(function, activation, tensors, grad):
    """The result of a linear function, and its gradients."""
    (out,), grads = gradients(lambda x, w, b, r: function(x, w, b, activation, r), tensors, [grad])
    return [out, *grads]


def shuffled(function, generator):
    """The same function of rows, with rows and inputs in a random order inside."""

    def inner(x, weight, *rest):
        flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        rows, inputs = (torch.randperm(n, generator=generator) for n in flat.shape)
        out = function(flat[rows][:, inputs], weight[:, inputs], *rest)
        return out[rows.argsort()].view(*x.shape[:-1], -1 if out.numel() else out.shape[-1])

    return inner


def peers(generator, activation, tensors, grad):
    """PyTorch's result and gradients, with rows and inputs in several orders."""

    def in_some_order(x, weight, bias, activation, residual):
        out = shuffled(torch_linear, generator)(x, weight, bias, activation, None)
        return out if residual is None else out + residual

    return [run(function, activation, tensors, grad) for function in (torch_linear, *[in_some_order] * 3)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    "rows, inputs, outputs", [(1, 9, 40), (5, 8, 40), (37, 67, 33), (40, 1100, 48), (30, 130, 96), (1300, 6, 9)]
)
def test_forward_and_gradients_match_the_reference(implementation, generator, rows, inputs, outputs, activation):
    for dtype in dtypes_of(implementation):
        x, weight = normal(generator, rows, inputs, dtype=dtype), normal(generator, outputs, inputs, dtype=dtype)
        weight = weight * inputs**-0.5  # as in a model: results of about 1
        bias, residual = normal(generator, outputs, dtype=dtype), normal(generator, rows, outputs, dtype=dtype)
        grad = normal(generator, rows, outputs, dtype=dtype)
        tensors = [x, weight, bias, residual]

        ours = run(ops.linear, activation, tensors, grad)
        exact = run(reference.linear, activation, [t.double() for t in tensors], grad.double())
        peer = least_accurate(peers(generator, activation, tensors, grad), exact)
        names = ("out", "x", "weight", "bias", "residual")
        for name, mine, right, theirs in zip(names, ours, exact, peer, strict=True):
            assert mine.dtype == dtype
            assert_accurate(mine, right, theirs, f"{name}, {dtype}")


@given(
    shape=st.lists(st.integers(0, 5), min_size=0, max_size=2),
    inputs=st.integers(0, 40),
    outputs=st.integers(0, 70),
    activation=st.sampled_from(ACTIVATIONS),
    with_bias=st.booleans(),
    with_residual=st.booleans(),
)
@example(shape=[3], inputs=0, outputs=5, activation="gelu", with_bias=True, with_residual=False)
@example(shape=[0], inputs=3, outputs=5, activation=None, with_bias=True, with_residual=True)
@example(shape=[], inputs=17, outputs=1, activation=None, with_bias=False, with_residual=False)
@example(shape=[2, 15], inputs=33, outputs=65, activation="relu", with_bias=False, with_residual=True)
@example(shape=[1100], inputs=3, outputs=260, activation="relu", with_bias=True, with_residual=False)  # many tiles
def test_any_shape(implementation, shape, inputs, outputs, activation, with_bias, with_residual):
    generator, dtype = random_generator(), dtypes_of(implementation)[0]
    x, weight = normal(generator, *shape, inputs, dtype=dtype), normal(generator, outputs, inputs, dtype=dtype) * 0.2
    bias = normal(generator, outputs, dtype=dtype) if with_bias else None
    residual = normal(generator, *shape, outputs, dtype=dtype) if with_residual else None
    grad = normal(generator, *shape, outputs, dtype=dtype)

    tensors = [x, weight, bias, residual]
    ours = run(ops.linear, activation, tensors, grad)
    exact = run(reference.linear, activation, [None if t is None else t.double() for t in tensors], grad.double())
    peer = least_accurate(peers(generator, activation, tensors, grad), exact)
    assert [t.shape for t in ours] == [t.shape for t in exact]
    # All at once, and beside what came in: the error of an element that cancels to almost nothing says little.
    together = (
        torch.cat([t.flatten() for t in (grad.to(results[0].dtype), *results)]) for results in (ours, exact, peer)
    )
    assert_accurate(*together, f"shape {(*shape, inputs)}")


def test_bits_do_not_depend_on_rows_threads_packing_alignment_or_mode(implementation, generator):
    for dtype in dtypes_of(implementation):
        x, weight = normal(generator, 131, 301, dtype=dtype), normal(generator, 75, 301, dtype=dtype)
        bias, grad = normal(generator, 75, dtype=dtype), normal(generator, 131, 75, dtype=dtype)
        x[3] *= 1e-38  # products among the denormals

        def run(x=x, weight=weight, bias=bias, grad=grad):
            (out,), grads = gradients(lambda *t: ops.linear(*t, "gelu"), [x, weight, bias], [grad])
            return out, *grads

        assert_bits_hold(run, f"{dtype}")
        out, grad_x, *_ = run()
        packed = ops.pack_linear(weight) if implementation.startswith("cpu") else None
        for rows in [slice(i, i + 1) for i in range(0, 131, 26)] + [slice(7, 7 + n) for n in (2, 3, 15, 16)]:
            alone = ops.linear(x[rows], weight, bias, "gelu")
            assert_same_bits(out[rows], alone, f"rows {rows} without the others")
            assert_same_bits(out[rows], ops.linear(x[rows], weight, bias, "gelu", packed_weight=packed), "packed")
            (_,), (grad_alone, *_) = gradients(lambda *t: ops.linear(*t, "gelu"), [x[rows], weight, bias], [grad[rows]])
            assert_same_bits(grad_x[rows], grad_alone, f"gradient of rows {rows} without the others")
        assert_same_bits(out, ops.linear(x, weight, bias, "gelu", packed_weight=packed), "packed")
        for awkward in (unaligned, strided):
            moved = ops.linear(awkward(x), awkward(weight), awkward(bias), "gelu")
            assert_same_bits(out, moved, awkward.__name__)


def test_many_rows_are_cut_into_blocks_without_a_trace(implementation, generator):
    # More rows than are packed at a time (8 MB of K = 3000), and K past one block of steps.
    dtype = dtypes_of(implementation)[0]
    x, weight = normal(generator, smaller(800, 140), 3000, dtype=dtype), normal(generator, 33, 3000, dtype=dtype)
    if implementation == "cpu_scalar":
        x = x[-20:]
    out = ops.linear(x, weight)
    assert_same_bits(out[-9:], ops.linear(x[-9:], weight), "the last rows alone")
    assert_accurate(out, reference.linear(x, weight), torch.nn.functional.linear(x, weight), "out")


@on_the_cpu
def test_a_packed_weight_is_the_same_for_every_implementation(implementation, generator):
    for dtype in dtypes_of(implementation):
        weight = normal(generator, 35, 7, dtype=dtype)
        panels = torch.zeros(64, 8 if dtype == torch.bfloat16 else 7, dtype=dtype)
        panels[:35, :7] = weight
        if dtype == torch.bfloat16:
            expected = panels.view(2, 32, 4, 2).transpose(1, 2)
        else:
            expected = panels.view(2, 32, 7).transpose(1, 2)
        expected = expected.contiguous().view(-1)
        assert_same_bits(ops.pack_linear(weight).view(dtype), expected, f"{dtype}")


@on_the_cpu
def test_weights_packed_in_one_block_are_those_packed_alone(implementation, generator):
    for dtype in dtypes_of(implementation):
        weights = [normal(generator, *shape, dtype=dtype) for shape in ((35, 7), (1, 1), (0, 4), (3, 0), (64, 33))]
        packed = ops.pack_linears(weights)
        assert len({part.untyped_storage().data_ptr() for part in packed}) == 1
        for weight, part in zip(weights, packed, strict=True):
            assert_same_bits(part, ops.pack_linear(weight), f"{dtype} {tuple(weight.shape)}")
    assert ops.pack_linears([]) == []


def counts_of_product(run):
    """What the emulated device counted in the one matrix product of a call."""
    (product,) = (launch for launch in launches_of(run) if "product_sm" in launch["kernel"])
    return product


@pytest.mark.skipif(not EMULATED, reason="counts are the emulated device's")
def test_the_product_has_no_bank_conflict_in_its_loop_and_uses_whole_sectors(implementation, generator):
    def forward(reduced, dtype):
        ops.linear(normal(generator, 128, reduced, dtype=dtype), normal(generator, 128, reduced, dtype=dtype))

    def grad_x(reduced, dtype):
        x, weight = normal(generator, 128, 128, dtype=dtype), normal(generator, reduced, 128, dtype=dtype)
        C.linear_backward(
            normal(generator, 128, reduced, dtype=dtype), x, weight, None, None, torch.empty_like(x), None, None
        )

    def grad_weight(reduced, dtype):
        x, weight = normal(generator, reduced, 128, dtype=dtype), normal(generator, 128, 128, dtype=dtype)
        grad = normal(generator, reduced, 128, dtype=dtype)
        C.linear_backward(grad, x, weight, None, None, None, torch.empty_like(weight), None)

    for dtype in dtypes_of(implementation):
        for run in (forward, grad_x, grad_weight):
            short, long = (counts_of_product(lambda n=n, run=run, dtype=dtype: run(n, dtype)) for n in (256, 320))
            conflicts = [c["shared_wavefronts"] - c["shared_ideal"] for c in (short, long)]
            assert conflicts[0] == conflicts[1], f"{run.__name__}, {dtype}: conflicts in the loop"
            # Hopper's loop reads shared memory by wgmma alone, which is not counted: no thread of it does.
            in_loop = long["shared_wavefronts"] - short["shared_wavefronts"]
            assert in_loop > 0 if implementation == "cuda_sm80" else in_loop == 0
            assert long["global_sectors"] == long["global_ideal"], f"{run.__name__}, {dtype}"


@pytest.mark.skipif(not EMULATED, reason="counts are the emulated device's")
def test_what_follows_a_product_uses_whole_sectors(implementation, generator):
    # Hopper's threads read nothing but the bias, every other element and then the ones between: all else comes and goes
    # by tensor copies, which are not counted.
    most = 2 if implementation == "cuda_sm90" else 1
    for dtype in dtypes_of(implementation):
        x, weight, bias = (normal(generator, *shape, dtype=dtype) for shape in ((128, 64), (256, 64), (256,)))
        tensors = x, weight, bias, normal(generator, 128, 256, dtype=dtype)
        kept, out = torch.empty_like(tensors[3]), torch.empty_like(tensors[3])
        counts = counts_of_product(
            lambda t=tensors, o=(out, kept): C.linear_forward(*t[:2], None, t[2], "gelu", t[3], *o, False)
        )
        assert counts["global_sectors"] <= most * counts["global_ideal"], f"forward, {dtype}"
        w_out = weight.T.contiguous()
        arguments = (x, x, weight, w_out, kept, "gelu", None, None, None, torch.empty_like(w_out), None)
        with pygpt.force("feed_forward", implementation):
            launches = launches_of(lambda a=arguments: C.feed_forward_backward(*a))
        products = [launch for launch in launches if "product" in launch["kernel"]]
        assert len(products) == 2
        for counts in products:  # the first reads what was kept, and writes two results
            assert counts["global_sectors"] <= most * counts["global_ideal"], f"backward, {dtype}"


@pytest.mark.decode
@pytest.mark.parametrize(
    "inputs, outputs, activation", [(67, 33, "gelu"), (0, 5, None), (1100, 48, "relu"), (8, 1, None)]
)
def test_few_rows_match_the_reference(implementation, generator, inputs, outputs, activation):
    for dtype in dtypes_of(implementation):
        for rows in (1, 5, 9, 16, 31, 64, 70):
            x, weight = normal(generator, rows, inputs, dtype=dtype), normal(generator, outputs, inputs, dtype=dtype)
            weight = weight * max(inputs, 1) ** -0.5
            bias, residual = normal(generator, outputs), normal(generator, rows, outputs, dtype=dtype)
            tensors = [x, weight, bias, residual]
            exact = reference.linear(*(t.double() for t in tensors[:3]), activation, residual.double())
            theirs = [
                function(x, weight, bias.to(dtype), activation, residual)
                for function in (torch_linear, *[shuffled(torch_linear, generator)] * 3)
            ]
            (peer,) = least_accurate([[each] for each in theirs], [exact])
            out = ops.linear(x, weight, bias, activation, residual)
            assert_accurate(out, exact, peer, f"{rows} rows of {dtype}")
            if rows != 5 or activation is None:
                continue
            grad, tensors = normal(generator, rows, outputs, dtype=dtype), [x, weight, bias.to(dtype), residual]
            ours = run(ops.linear, activation, tensors, grad)  # from the values kept before the activation
            right = run(reference.linear, activation, [t.double() for t in tensors], grad.double())
            worst = least_accurate(peers(generator, activation, tensors, grad), right)
            for mine, expected, theirs in zip(ours, right, worst, strict=True):
                assert_accurate(mine, expected, theirs, f"with gradients, {dtype}")


@pytest.mark.decode
def test_bits_of_few_rows_do_not_depend_on_the_others(implementation, generator):
    for dtype in dtypes_of(implementation):
        x, weight = normal(generator, 77, 301, dtype=dtype), normal(generator, 75, 301, dtype=dtype)
        bias = normal(generator, 75, dtype=dtype)
        x[3] *= 1e-38  # products among the denormals
        assert_bits_hold(lambda t=(x[:9], weight, bias): [ops.linear(*t, "gelu", out_dtype=torch.float32)], f"{dtype}")
        out = ops.linear(x, weight, bias, "gelu")
        for first, count in ((0, 1), (76, 1), (3, 8), (40, 9), (30, 17), (2, 33), (13, 64)):
            rows = slice(first, first + count)
            assert_same_bits(out[rows], ops.linear(x[rows], weight, bias, "gelu"), f"{dtype}, {count} rows")
        for awkward in (unaligned, strided):
            moved = ops.linear(awkward(x[:9]), awkward(weight), awkward(bias), "gelu")
            assert_same_bits(out[:9], moved, awkward.__name__)
        x[4, 7] = torch.nan
        out = ops.linear(x[:9], weight)
        assert out[4].isnan().all() and out[5:].isfinite().all() and out[:4].isfinite().all()


@pytest.mark.decode
@pytest.mark.skipif(not EMULATED, reason="counts are the emulated device's")
def test_few_rows_read_each_weight_once_in_whole_sectors(implementation, generator):
    for dtype in dtypes_of(implementation):
        for rows in (1, 16):
            x, weight = normal(generator, rows, 512, dtype=dtype), normal(generator, 48, 512, dtype=dtype)
            counts = counts_of_product(lambda x=x, weight=weight: ops.linear(x, weight))
            assert counts["shared_wavefronts"] == counts["shared_ideal"] > 0, f"{rows} rows of {dtype}"
            assert counts["global_sectors"] <= counts["global_ideal"], f"{rows} rows of {dtype}"
            loads = sum(line["global_sectors"] for line in counts["lines"] if "load.cuh" in line["line"])
            assert loads == weight.numel() * weight.element_size() / 32


def test_who_asks_for_speed_with_few_rows_gets_the_implementation_for_it(generator):
    """Whatever the number of rows; on the CPU there is one for all, with the same bits."""
    for rows in (1, 100):
        x, weight = normal(generator, rows, 40), normal(generator, 9, 40)
        plain = ops.linear(x, weight)
        assert not C.last_used("linear").endswith("_decode")
        fast = ops.linear(x, weight, decode=True)
        assert C.last_used("linear").endswith("_decode") == (EMULATED is not None)
        if not EMULATED:
            assert_same_bits(plain, fast, f"{rows} rows")


def test_float32_results_of_bfloat16(implementation, generator):
    x, weight = (normal(generator, 9, 40, dtype=torch.bfloat16) for _ in range(2))
    bias, residual, grad = normal(generator, 9), normal(generator, 9, 9), normal(generator, 9, 9)

    tensors = [x, weight, bias, residual]
    (out,), grads = gradients(lambda *t: ops.linear(*t[:3], None, t[3], torch.float32), tensors, [grad])
    exact = run(reference.linear, None, [t.double() for t in tensors], grad.double())
    assert out.dtype == grads[2].dtype == torch.float32
    assert grads[0].dtype == torch.bfloat16
    for mine, right in zip([out, *grads], exact, strict=True):
        assert_accurate(mine, right, None, "float32 results")
    assert_same_bits(ops.linear(x, weight, bias, None, residual), out, "the residual's dtype by default")
    for activation in ACTIVATIONS:
        exact = reference.linear(x, weight, bias, activation)
        assert_accurate(ops.linear(x, weight, bias, activation, None, torch.float32), exact, None, str(activation))


def test_float32_weights_of_bfloat16_input_are_rounded_on_the_way(implementation, generator):
    x, grad = (normal(generator, 21, n, dtype=torch.bfloat16) for n in (75, 40))
    weight = normal(generator, 40, 75)
    (out,), (grad_x, grad_weight) = gradients(ops.linear, [x, weight], [grad])
    rounded = weight.bfloat16()
    (expected,), (expected_x, _) = gradients(ops.linear, [x, rounded], [grad])
    assert_same_bits(out, expected, "out")
    assert_same_bits(grad_x, expected_x, "gradient of x")
    _, (_, exact) = gradients(reference.linear, [x.double(), rounded.double()], [grad.double()])
    assert grad_weight.dtype == torch.float32
    assert_accurate(grad_weight, exact, None, "gradient of weight")


def test_autocast(generator):
    x, weight, bias = normal(generator, 4, 30), normal(generator, 20, 30), normal(generator, 20)
    grad = normal(generator, 4, 20, dtype=torch.bfloat16)

    def run(x, weight, bias):
        with torch.autocast("cpu", torch.bfloat16):
            return ops.linear(x, weight, bias)

    (out,), grads = gradients(run, [x, weight, bias], [grad])
    assert_same_bits(out, ops.linear(x.bfloat16(), weight.bfloat16(), bias), "autocast")
    assert all(g.dtype == torch.float32 for g in grads)
    if not EMULATED:
        assert run(x.double(), weight.double(), bias.double()).dtype == torch.float64


@on_the_cpu
@pytest.mark.parametrize("inputs", [113, 250, 700])
def test_small_products_after_a_large_one_are_not_lost(implementation, inputs):
    x, weight = torch.full((1, inputs), 2.0**-25), torch.ones(1, inputs)  # each less than half a unit in 1's last place
    x[0, 0] = 1
    lost = 1 + (inputs - 1) * 2.0**-25 - ops.linear(x, weight).double().item()
    assert 0 <= lost <= (32 if inputs <= 256 else 128) * 2.0**-25 + torch.finfo(torch.float32).eps


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu"])
def test_activations_far_from_zero_are_straight(implementation, activation):
    far = torch.tensor([[1e2, 1e3, 1e4, 1e7, 1e13, 1e19, 1e25, 1e30]]).to(dtypes_of(implementation)[0])
    same, ones = torch.eye(8).to(far.dtype), torch.ones_like(far)
    for sign, slope in ((1, 1.0), (-1, 0.0)):
        (out,), (grad_x,) = gradients(lambda x: ops.linear(x, same, activation=activation), [sign * far], [ones])
        assert_same_bits(out.abs(), slope * far, "values")
        assert (grad_x == slope).all(), grad_x


def test_nan_stays_in_its_row(implementation, generator):
    for dtype in dtypes_of(implementation):
        x, weight = normal(generator, 20, 9, dtype=dtype), normal(generator, 33, 9, dtype=dtype)
        x[1, 7] = torch.nan
        for activation in ACTIVATIONS:
            out = ops.linear(x, weight, None, activation)
            assert out[1].isnan().all(), activation
            assert out[2:].isfinite().all() and out[0].isfinite().all(), activation


@pytest.mark.float64
def test_gradcheck(generator):
    shapes = ((2, 3, 5), (4, 5), (4,), (2, 3, 4))
    x, weight, bias, residual = (normal(generator, *s, dtype=torch.float64).requires_grad_() for s in shapes)
    for activation in ACTIVATIONS:
        assert torch.autograd.gradcheck(ops.linear, (x, weight, bias, activation, residual))
    assert torch.autograd.gradcheck(ops.linear, (x, weight))
    assert torch.autograd.gradcheck(ops.linear, (x.detach(), weight, bias, "gelu"))
    assert torch.autograd.gradcheck(ops.linear, (x, weight.detach(), bias.detach(), "gelu"))


def test_opcheck(generator):
    x, weight, bias, residual = (normal(generator, *s).requires_grad_() for s in ((2, 3, 5), (4, 5), (4,), (2, 3, 4)))
    op = torch.ops.pygpt.linear
    torch.library.opcheck(op, (x, weight, bias, "gelu_tanh", residual, None, None, False))
    if not EMULATED:
        torch.library.opcheck(op, (x, weight, None, None, None, None, ops.pack_linear(weight), False))
    torch.library.opcheck(op, (x.bfloat16(), weight.bfloat16(), None, None, None, torch.float32, None, True))


def test_compiled_gives_the_same_bits(generator):
    x, weight, bias = (normal(generator, *shape) for shape in ((6, 16), (9, 16), (9,)))
    grad = normal(generator, 6, 9)

    def run(x, weight, bias):
        return ops.linear(x, weight, bias, "gelu_tanh")

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    eager_out, eager_grads = gradients(run, [x, weight, bias], [grad])
    out, grads = gradients(compiled, [x, weight, bias], [grad])
    for a, b in zip(eager_out + eager_grads, out + grads, strict=True):
        assert_same_bits(a, b, "compiled")


def test_numpy_in_numpy_out(generator):
    x, weight = normal(generator, 3, 5), normal(generator, 4, 5)
    out = ops.linear(x.numpy(), weight.numpy(), activation="relu")
    assert isinstance(out, np.ndarray)
    assert_same_bits(torch.from_numpy(out), ops.linear(x, weight, activation="relu"), "NumPy")


@pytest.mark.skipif(not EMULATED, reason="a rule of CUDA")
def test_packed_weights_are_for_the_cpu(generator):
    weight = normal(generator, 4, 3)
    with pytest.raises(ValueError, match=r"packed_weight must be None.*cuda"):
        ops.linear(normal(generator, 2, 3), weight, packed_weight=torch.zeros(384, dtype=torch.uint8))
    with pytest.raises(ValueError, match="the tensors are on cuda"):
        ops.pack_linear(weight)


X, W = torch.ones(2, 3), torch.ones(4, 3)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ((X, torch.ones(4, 5)), ValueError, r"weight must have shape \(4, 3\).*\(4, 5\)"),
        ((X, torch.ones(3)), ValueError, r"weight must be \(out, in\)"),
        ((X, W, torch.ones(3)), ValueError, "bias must have shape"),
        ((X, W.bfloat16()), TypeError, "weight must be float32.*bfloat16"),
        ((X.long(), W), TypeError, "x must be of dtype.*int64"),
        ((torch.tensor(1.0), W), ValueError, "x must have a last dimension"),
        ((X, W, None, "swish"), ValueError, "activation must be.*swish"),
        ((X, W, None, None, torch.ones(2, 3)), ValueError, r"residual must have shape \(2, 4\)"),
        ((X, W, None, None, torch.ones(2, 4).double()), TypeError, "out must be float32"),
        ((X, W, None, None, torch.ones(2, 4), torch.bfloat16), TypeError, "out must be float32"),
        pytest.param(
            *((X, W, None, None, None, None, torch.zeros(3, dtype=torch.uint8)), ValueError, "packed_weight must have"),
            marks=on_the_cpu,
        ),
        pytest.param(
            *((X, W, None, None, None, None, torch.zeros(384)), TypeError, "packed_weight must be uint8"),
            marks=on_the_cpu,
        ),
        pytest.param(*((X.half(), W.half()), ValueError, "no CPU kernels for float16"), marks=on_the_cpu),
        ((X, "weight"), TypeError, "weight"),
    ],
)
def test_bad_input(arguments, error, words):
    with pytest.raises(error, match=words):
        ops.linear(*arguments)


@on_the_cpu
def test_bad_input_of_pack():
    with pytest.raises(ValueError, match=r"weight must be \(out, in\)"):
        ops.pack_linear(torch.ones(3))
    with pytest.raises(TypeError, match=r"weight must be a torch\.Tensor"):
        ops.pack_linear(None)
    with pytest.raises(TypeError, match="weight must be of dtype"):
        ops.pack_linear(torch.ones(3, 3).half())
    with pytest.raises(TypeError, match=r"weight must be a torch\.Tensor"):
        ops.pack_linears([torch.ones(3, 3), 1])
