"""What holds for every op with a gradient, whatever it computes: compiled, its bits; what it refuses, and how."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

from pygpt import ops
from pygpt.extension import C
from tests.support import assert_same_bits, gradients

W, V = torch.ones(4, 4), torch.ones(4)
TARGETS, AT = torch.tensor([0, 3]), torch.tensor([0, 1])

# Each takes x of shape (2, 4).
CALLS = {
    "add": lambda x: ops.add(x, W[:2]),
    "attention": lambda x: ops.attention(*[x.view(1, 2, 1, 4)] * 3),
    "cross_entropy": lambda x: ops.cross_entropy(x, TARGETS),
    "dropout": lambda x: ops.dropout(x, 0.5, seed=1),
    "embedding": lambda x: ops.embedding(AT, x),
    "feed_forward": lambda x: ops.feed_forward(x, W, None, W, None),
    "gated_product": lambda x: ops.gated_product(x, W[:2]),
    "layer_norm": lambda x: ops.layer_norm(x, V),
    "linear": lambda x: ops.linear(x, W),
    "linear_cross_entropy": lambda x: ops.linear_cross_entropy(x, W, TARGETS),
    "rms_norm": lambda x: ops.rms_norm(x, V),
    "rotary": lambda x: ops.rotary(x.view(1, 2, 1, 4), AT, W),
}
FUSED = {
    "add_layer_norm": lambda x: ops.add_layer_norm(x, W[:2], V)[0],
    "add_rms_norm": lambda x: ops.add_rms_norm(x, W[:2], V)[0],
    "attention_packed": lambda x: ops.attention_packed(x.view(1, 2, 4, 1), 2, 1),
}
WITHOUT_GRADIENT = {"adamw", "grad_norm", "quantized_linear", "sample"}


@pytest.mark.parametrize("name", [*CALLS, *FUSED])
def test_a_tensor_whose_memory_is_its_negative(name: str) -> None:
    x = torch.arange(8.0).view(2, 4) - 3
    negative = torch._neg_view(x)
    assert negative.is_neg() and negative.is_contiguous()
    assert_same_bits((CALLS | FUSED)[name](negative), (CALLS | FUSED)[name](-x), name)


def test_every_op_is_here() -> None:
    assert CALLS.keys() | WITHOUT_GRADIENT == {op for op, _ in C.implementations()}


@pytest.mark.parametrize("op", CALLS | FUSED)
def test_what_is_no_first_derivative_by_backward_is_refused_by_the_ops_name(op: str) -> None:
    call = (CALLS | FUSED)[op]
    x = torch.arange(8.0).view(2, 4)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(call(leaf).sum(), leaf)
    assert gradient.shape == x.shape
    with pytest.raises(NotImplementedError, match=rf"pygpt\.{op} has no second derivative"):
        torch.autograd.grad(call(leaf).sum(), leaf, create_graph=True)
    for transformed, argument in (
        (torch.func.vmap(call), x.unsqueeze(0)),
        (torch.func.grad(lambda x: call(x).sum()), x),
    ):
        with pytest.raises(NotImplementedError, match=rf"pygpt\.{op} does not support torch\.func transforms"):
            transformed(argument)
    with (
        forward_ad.dual_level(),
        pytest.raises(NotImplementedError, match=rf"pygpt\.{op} does not support forward-mode"),
    ):
        call(forward_ad.make_dual(x, torch.ones_like(x)))


@pytest.mark.parametrize("op", CALLS | FUSED)
def test_compiled_it_gives_the_same_bits(op: str) -> None:
    call = (CALLS | FUSED)[op]
    inputs = [torch.arange(8.0).view(2, 4) - 3]
    (shape,) = {call(x).shape for x in inputs}
    grads = [torch.linspace(-1, 1, shape.numel()).view(shape)]
    eager = gradients(call, inputs, grads)
    compiled = gradients(torch.compile(call, backend="aot_eager", fullgraph=True), inputs, grads)
    for a, b in zip(eager, compiled, strict=True):
        assert_same_bits(a[0], b[0], op)


def test_an_op_without_a_gradient_gives_none() -> None:
    leaf = torch.zeros(2, 4, requires_grad=True)
    rows = {"seeds": AT, "positions": AT}
    assert not any(out.requires_grad for out in ops.sample(leaf, **rows))
    assert not ops.grad_norm([leaf]).requires_grad
