from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from pygpt import ops, reference
from tests.ops.test_linear import ACTIVATIONS, TORCH_ACTIVATIONS, shuffled
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
    smaller,
    strided,
    unaligned,
)

NAMES = ("out", "x", "w_in", "b_in", "w_out", "b_out")


def torch_feed_forward(x, w_in, b_in, w_out, b_out, activation):
    linear = torch.nn.functional.linear
    return linear(TORCH_ACTIVATIONS[activation](linear(x, w_in, b_in)), w_out, b_out)


def inputs(generator, rows, width, hidden, outputs, dtype=torch.float32):
    """x, w_in, b_in, w_out, b_out with the scales of a model, and a gradient of the result."""
    w_in = normal(generator, hidden, width, dtype=dtype) * max(1, width) ** -0.5
    w_out = normal(generator, outputs, hidden, dtype=dtype) * max(1, hidden) ** -0.5
    biases = (normal(generator, n, dtype=dtype) for n in (hidden, outputs))
    tensors = [normal(generator, *rows, width, dtype=dtype), w_in, next(biases), w_out, next(biases)]
    return tensors, normal(generator, *rows, outputs, dtype=dtype)


def run(function, activation, tensors, grad):
    """The result, and its gradients."""
    (out,), grads = gradients(lambda *t: function(*t, activation), tensors, [grad])
    return [out, *grads]


def peers(generator, activation, tensors, grad):
    """PyTorch's result and gradients, with rows, inputs and hidden values in several orders."""

    def in_some_order(x, w_in, b_in, w_out, b_out, activation):
        hidden = torch.randperm(len(w_in), generator=generator)
        b_in = None if b_in is None else b_in[hidden]

        def rows(x, w_in):
            return torch_feed_forward(x, w_in[hidden], b_in, w_out[:, hidden], b_out, activation)

        return shuffled(rows, generator)(x, w_in)

    return [run(function, activation, tensors, grad) for function in (torch_feed_forward, *[in_some_order] * 3)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("rows, width, hidden, outputs", [(29, 17, 66, 33), (70, 64, 256, 64)])
def test_forward_and_gradients_match_the_reference(implementation, generator, rows, width, hidden, outputs, activation):
    for dtype in dtypes_of(implementation):
        tensors, grad = inputs(generator, (rows,), width, hidden, outputs, dtype)
        ours = run(ops.feed_forward, activation, tensors, grad)
        exact = run(reference.feed_forward, activation, [t.double() for t in tensors], grad.double())
        peer = least_accurate(peers(generator, activation, tensors, grad), exact)
        for name, mine, right, theirs in zip(NAMES, ours, exact, peer, strict=True):
            assert mine.dtype == dtype
            assert_accurate(mine, right, theirs, f"{name}, {dtype}")


@given(
    rows=st.lists(st.integers(0, 4), max_size=2),
    sizes=st.tuples(st.integers(0, 20), st.integers(0, 40), st.integers(0, 40)),
    biases=st.tuples(st.booleans(), st.booleans()),
)
@example(rows=[0], sizes=(3, 4, 5), biases=(True, True))
@example(rows=[2], sizes=(0, 0, 5), biases=(True, True))
@example(rows=[], sizes=(1, 1, 1), biases=(False, False))
def test_any_shape(implementation, rows, sizes, biases):
    generator = random_generator()
    tensors, grad = inputs(generator, rows, *sizes, dtypes_of(implementation)[0])
    tensors[2], tensors[4] = (t if given else None for t, given in zip((tensors[2], tensors[4]), biases, strict=True))
    ours = run(ops.feed_forward, "gelu_tanh", tensors, grad)
    upcast = [None if t is None else t.double() for t in tensors]
    exact = run(reference.feed_forward, "gelu_tanh", upcast, grad.double())
    peer = least_accurate(peers(generator, "gelu_tanh", tensors, grad), exact)
    assert [t.shape for t in ours] == [t.shape for t in exact]
    together = (torch.cat([t.flatten() for t in results]) for results in (ours, exact, peer))
    assert_accurate(*together, f"rows {rows}, sizes {sizes}")


def test_it_is_two_linear_layers(implementation, generator):
    for dtype in dtypes_of(implementation):
        (x, w_in, b_in, w_out, b_out), _ = inputs(generator, (3, 20), 40, 70, 36, dtype)
        out = ops.feed_forward(x, w_in, b_in, w_out, b_out, "gelu")
        if implementation.startswith("cpu"):
            packed = {"packed_w_in": ops.pack_linear(w_in), "packed_w_out": ops.pack_linear(w_out)}
            assert_same_bits(out, ops.feed_forward(x, w_in, b_in, w_out, b_out, "gelu", **packed), "packed")
        assert_same_bits(out, ops.feed_forward(*(unaligned(t) for t in (x, w_in, b_in, w_out, b_out)), "gelu"), "moved")
        assert_same_bits(out, ops.feed_forward(*(strided(t) for t in (x, w_in, b_in, w_out, b_out)), "gelu"), "strided")


@pytest.mark.parametrize("with_grad", [False, True])
def test_linear_gives_the_same_bits(generator, with_grad):
    (x, w_in, b_in, w_out, b_out), _ = inputs(generator, (3, 20), 40, 70, 36)
    x.requires_grad_(with_grad)
    out = ops.feed_forward(x, w_in, b_in, w_out, b_out, "gelu")
    assert_same_bits(out, ops.linear(ops.linear(x, w_in, b_in, "gelu"), w_out, b_out), "two linear layers")


def test_bits_do_not_depend_on_rows_threads_or_mode(implementation, generator):
    for dtype in dtypes_of(implementation):
        tensors, grad = inputs(generator, (90,), 35, 130, 35, dtype)

        def result(tensors=tensors, grad=grad):
            return run(ops.feed_forward, "gelu_tanh", tensors, grad)

        assert_bits_hold(result, f"{dtype}")
        out, grad_x, *_ = result()
        for rows in (slice(0, 1), slice(20, 37), slice(89, 90)):
            alone, grad_alone, *_ = run(ops.feed_forward, "gelu_tanh", [tensors[0][rows], *tensors[1:]], grad[rows])
            assert_same_bits(out[rows], alone, f"rows {rows} without the others")
            assert_same_bits(grad_x[rows], grad_alone, f"gradient of rows {rows} without the others")


def test_rows_past_one_block(generator):
    # More rows than the products take at a time; weight gradients are summed over the blocks.
    for dtype in (torch.float32, torch.bfloat16):
        tensors, grad = inputs(generator, (smaller(2100, 1100),), 8, 40, 9, dtype)
        ours = run(ops.feed_forward, "relu", tensors, grad)
        exact = run(reference.feed_forward, "relu", [t.double() for t in tensors], grad.double())
        peer = least_accurate(peers(generator, "relu", tensors, grad), exact)
        for name, mine, right, theirs in zip(NAMES, ours, exact, peer, strict=True):
            assert_accurate(mine, right, theirs, f"{name}, {dtype}")


def test_autocast_keeps_float32_gradients(generator):
    tensors, grad = inputs(generator, (smaller(2100, 1100),), 8, 40, 9)

    def autocast(*arguments):
        with torch.autocast("cpu", torch.bfloat16):
            return ops.feed_forward(*arguments)

    (out,), grads = gradients(autocast, tensors, [grad.bfloat16()])
    x, w_in, b_in, w_out, b_out = tensors
    explicit = ops.feed_forward(x.bfloat16(), w_in.bfloat16(), b_in, w_out.bfloat16(), b_out)
    assert_same_bits(out, explicit, "autocast")
    _, rounded = gradients(ops.feed_forward, [t.bfloat16() for t in tensors], [grad.bfloat16()])
    for name, ours, coarse in zip(NAMES[1:], grads, rounded, strict=True):
        assert ours.dtype == torch.float32
        assert_accurate(ours.bfloat16(), coarse.double(), None, name)


@pytest.mark.float64
def test_gradcheck(generator):
    tensors, _ = inputs(generator, (2, 3), 4, 6, 5, torch.float64)
    for t in tensors:
        t.requires_grad_()
    x, w_in, b_in, w_out, b_out = tensors
    for activation in ACTIVATIONS:
        assert torch.autograd.gradcheck(ops.feed_forward, (*tensors, activation))
    assert torch.autograd.gradcheck(ops.feed_forward, (x, w_in, None, w_out, None))
    assert torch.autograd.gradcheck(ops.feed_forward, (x.detach(), w_in.detach(), b_in, w_out.detach(), b_out))
    assert torch.autograd.gradcheck(ops.feed_forward, (x.detach(), w_in.detach(), None, w_out, None))


@pytest.mark.decode
def test_few_rows_match_two_linear_layers(implementation, generator):
    for dtype in dtypes_of(implementation):
        tensors, _ = inputs(generator, (3,), 40, 70, 33, dtype)
        x, w_in, b_in, w_out, b_out = tensors
        out = ops.feed_forward(*tensors)
        hidden = ops.linear(x, w_in, b_in, "gelu_tanh", decode=True)
        assert_same_bits(out, ops.linear(hidden, w_out, b_out, decode=True), f"{dtype}")
        exact = reference.feed_forward(*(t.double() for t in tensors))
        assert_accurate(out, exact, torch_feed_forward(*tensors, "gelu_tanh"), f"{dtype}")


def test_opcheck(generator):
    tensors, _ = inputs(generator, (2, 3), 4, 6, 5)
    for t in tensors:
        t.requires_grad_()
    torch.library.opcheck(torch.ops.pygpt.feed_forward, (*tensors, "gelu_tanh", None, None, False))
    x, w_in, _, w_out, _ = tensors
    torch.library.opcheck(torch.ops.pygpt.feed_forward, (x, w_in, None, w_out, None, None, None, None, True))


def test_compiled_gives_the_same_bits(generator):
    tensors, grad = inputs(generator, (6,), 16, 32, 16)
    compiled = torch.compile(ops.feed_forward, backend="aot_eager", fullgraph=True)
    eager_out, eager_grads = gradients(ops.feed_forward, tensors, [grad])
    out, grads = gradients(compiled, tensors, [grad])
    for a, b in zip(eager_out + eager_grads, out + grads, strict=True):
        assert_same_bits(a, b, "compiled")


X, IN, OUT = torch.ones(2, 3), torch.ones(8, 3), torch.ones(3, 8)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ((X, torch.ones(8, 4), None, OUT, None), ValueError, r"w_in must have shape \(8, 3\).*\(8, 4\)"),
        ((X, IN, None, torch.ones(3, 7), None), ValueError, r"w_out must have shape \(3, 8\).*\(3, 7\)"),
        ((X, IN, torch.ones(3), OUT, None), ValueError, r"b_in must have shape \(8,\)"),
        ((X, IN, None, OUT, torch.ones(8)), ValueError, r"b_out must have shape \(3,\)"),
        ((X, IN.double(), None, OUT, None), TypeError, "w_in must be float32.*float64"),
        ((X, IN, None, OUT.double(), None), TypeError, "w_out must be float32.*float64"),
        ((X, IN, None, OUT, None, "silu"), ValueError, "activation must be.*silu"),
        ((X, IN, None, None, None), TypeError, "w_out must be a"),
        pytest.param(
            *((X, IN, None, OUT, None, "gelu", torch.zeros(1, dtype=torch.uint8)), ValueError, "packed_w_in must have"),
            marks=on_the_cpu,
        ),
    ],
)
def test_bad_input(arguments, error, words):
    with pytest.raises(error, match=words):
        ops.feed_forward(*arguments)
