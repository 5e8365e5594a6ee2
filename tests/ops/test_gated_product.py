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

ACTIVATIONS = ["silu", "gelu_tanh"]


def torchs(gate, up, activation):
    if activation == "silu":
        return torch.nn.functional.silu(gate) * up
    return torch.nn.functional.gelu(gate, approximate="tanh") * up


@given(shape=st.lists(st.integers(0, 7), max_size=3), last=st.integers(0, 90), activation=st.sampled_from(ACTIVATIONS))
@example(shape=[2], last=20_001, activation="silu")  # more elements than one task
@example(shape=[3], last=0, activation="silu")
def test_forward_and_gradients_match_the_reference(implementation, shape, last, activation):
    generator = random_generator()
    for dtype in dtypes_of(implementation):
        gate, up, grad = (normal(generator, *shape, last, dtype=dtype) for _ in range(3))
        # The reference of GELU cancels far below 0.
        gate = gate * 4 if activation == "silu" else gate.clamp(min=-2.5)

        def of(function, *tensors):
            outs, grads = gradients(lambda g, u: function(g, u, activation), tensors[:2], tensors[2:])
            return outs + grads

        ours = of(ops.gated_product, gate, up, grad)
        exact = of(reference.gated_product, *(t.double() for t in (gate, up, grad)))
        for mine, right, theirs in zip(ours, exact, of(torchs, gate, up, grad), strict=True):
            assert mine.dtype == dtype
            assert_accurate(mine, right, theirs, f"{dtype}")


def test_each_element_is_accurate_where_the_gate_closes(implementation):
    """Relative to itself, far into the tail, where x / (1 + e^-x) must not overflow."""
    gate = torch.cat([torch.linspace(-80, 30, 2201), torch.tensor([-1e4, 1e4, 0.0, -0.0])])
    out = ops.gated_product(gate, torch.ones_like(gate))
    exact = reference.gated_product(gate, torch.ones_like(gate))
    assert out.isfinite().all()
    error = (out.double() - exact).abs()
    assert (error <= 1e-5 * exact.abs() + 1e-37).all()  # 1e-5: e^-|x| has the error of |x|'s rounding, times |x|


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bits_hold(implementation, generator, activation):
    for dtype in dtypes_of(implementation):
        gate, up, grad = (normal(generator, 70, 133, dtype=dtype) * scale for scale in (3, 1e-38, 1))

        def run(moved=lambda t: t, gate=gate, up=up, grad=grad):
            (out,), grads = gradients(
                lambda g, u: ops.gated_product(g, u, activation), [moved(gate), moved(up)], [moved(grad)]
            )
            return [out, *grads]

        assert_bits_hold(run, f"{dtype}")
        assert_same_bits(run()[0][3:4], ops.gated_product(gate[3:4], up[3:4], activation), "one row alone")
        for awkward in (unaligned, strided):
            for a, b in zip(run(), run(awkward), strict=True):
                assert_same_bits(a, b, awkward.__name__)


def test_nan_stays_where_it_is(implementation):
    gate, up = torch.ones(40), torch.ones(40)
    gate[3] = up[7] = torch.nan
    for activation in ACTIVATIONS:
        assert ops.gated_product(gate, up, activation).isnan().nonzero().flatten().tolist() == [3, 7]


@pytest.mark.float64
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_autograd_and_library(generator, activation):
    gate, up = (normal(generator, 2, 3, 5, dtype=torch.float64).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(lambda g, u: ops.gated_product(g, u, activation), (gate, up))
    torch.library.opcheck(torch.ops.pygpt.gated_product, (gate, up, activation))


def test_numpy_in_numpy_out(generator):
    gate, up = normal(generator, 3, 5), normal(generator, 3, 5)
    out = ops.gated_product(gate.numpy(), up.numpy())
    assert isinstance(out, np.ndarray)
    assert_same_bits(torch.from_numpy(out), ops.gated_product(gate, up), "NumPy")


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ((torch.ones(2, 3), torch.ones(3)), ValueError, r"up must have the shape of gate, \(2, 3\).*\(3,\)"),
        ((torch.ones(3), torch.ones(3).double()), TypeError, "up must be float32.*float64"),
        ((torch.ones(3).int(), torch.ones(3).int()), TypeError, "gate must be of dtype.*int32"),
        ((torch.ones(3), torch.ones(3), "relu"), ValueError, 'activation must be "silu" or "gelu_tanh", but is "relu"'),
        ((torch.ones(3), 1.0), TypeError, "up must be a torch.Tensor"),
        pytest.param((torch.ones(3).half(), torch.ones(3).half()), ValueError, "float16", marks=on_the_cpu),
    ],
)
def test_bad_input(arguments, error, words):
    with pytest.raises(error, match=words):
        ops.gated_product(*arguments)
