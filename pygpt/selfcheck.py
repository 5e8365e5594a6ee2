"""Every implementation of every op against `pygpt.reference` in float64, on small inputs: ``pygpt doctor --check``.

The tests do this in earnest; this is for the machine that the tests never saw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import pygpt
from pygpt import ops, reference
from pygpt.extension import C
from pygpt.nn.rotary import rotations

DTYPES = (torch.float32, torch.bfloat16, torch.float64)
ALLOWED = 16.0  # in eps of the dtype, times the largest value of the output; long sums on random input reach 12


class Draw:
    """Random arguments of one dtype."""

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        self.dtype = dtype
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal values that ask for a gradient."""
        values = torch.randn(shape, generator=self._generator, dtype=torch.float64)
        return values.to(self.dtype).requires_grad_()

    def like(self, tensor: Tensor) -> Tensor:
        """Standard normal values with the shape and dtype of a tensor."""
        return torch.randn(tensor.shape, generator=self._generator, dtype=torch.float64).to(tensor.dtype)

    def ids(self, vocabulary: int, *shape: int) -> Tensor:
        """Integers from 0 to vocabulary - 1."""
        return torch.randint(vocabulary, shape, generator=self._generator)


@dataclass(frozen=True)
class Check:
    """A function of `pygpt.ops`, the one of `pygpt.reference` that says what is right, and arguments for both."""

    op: str  # whose table of implementations it checks
    ours: Callable[..., Any]
    exact: Callable[..., Any]
    arguments: Callable[[Draw], dict[str, Any]]  # by name
    dtypes: tuple[torch.dtype, ...] = DTYPES
    differentiable: bool = True


def _dropout(x: Tensor, p: float, seed: int) -> Tensor:
    return reference.dropout(x, p, keep=ops.dropout(torch.ones_like(x, dtype=torch.float32), p, seed) != 0)


def _greedy(logits: Tensor) -> Tensor:
    rows = torch.zeros(len(logits), dtype=torch.int64)
    return ops.sample(logits, temperature=0.0, seeds=rows, positions=rows)[1]


ADAMW: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def _adamw(param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor) -> list[Tensor]:
    moved = [tensor.detach().clone() for tensor in (param, exp_avg, exp_avg_sq)]
    param, exp_avg, exp_avg_sq = moved
    ops.adamw([param], [grad.detach()], [exp_avg], [exp_avg_sq], [None], [3.0], **ADAMW)
    return moved


def _moments(d: Draw, count: int) -> dict[str, Tensor]:
    dtype = torch.promote_types(d.dtype, torch.float32)
    return {"exp_avg": d.normal(count).to(dtype), "exp_avg_sq": d.normal(count).square().to(dtype)}


# Odd sizes, so that every kernel's vectors and tiles have a tail.
CHECKS = (
    Check("add", ops.add, reference.add, lambda d: {"x": d.normal(3, 5, 33), "y": d.normal(5, 33)}),
    Check(
        "adamw",
        _adamw,
        lambda **tensors: reference.adamw(**tensors, step=3, **ADAMW),
        lambda d: {"param": d.normal(77), "grad": d.normal(77), **_moments(d, 77)},
        differentiable=False,
    ),
    Check(
        "attention",
        ops.attention,
        reference.attention,
        lambda d: {
            "q": d.normal(2, 37, 4, 24),
            "k": d.normal(2, 41, 2, 24),
            "v": d.normal(2, 41, 2, 24),
            "causal": True,
        },
    ),
    Check(
        "cross_entropy",
        ops.cross_entropy,
        reference.cross_entropy,
        lambda d: {"logits": d.normal(7, 101), "targets": d.ids(101, 7)},
    ),
    Check("dropout", ops.dropout, _dropout, lambda d: {"x": d.normal(3, 77), "p": 0.25, "seed": 1}),
    Check(
        "embedding",
        ops.embedding,
        reference.embedding,
        lambda d: {"ids": d.ids(11, 3, 7), "table": d.normal(11, 33)},
    ),
    Check(
        "feed_forward",
        ops.feed_forward,
        reference.feed_forward,
        lambda d: {
            "x": d.normal(5, 33),
            "w_in": d.normal(71, 33),
            "b_in": d.normal(71),
            "w_out": d.normal(33, 71),
            "b_out": d.normal(33),
        },
    ),
    Check(
        "grad_norm",
        ops.grad_norm,
        reference.grad_norm,
        lambda d: {"tensors": [d.normal(5, 77), d.normal(11)]},
        differentiable=False,
    ),
    Check(
        "layer_norm",
        ops.add_layer_norm,
        reference.add_layer_norm,
        lambda d: {"x": d.normal(5, 77), "residual": d.normal(5, 77), "weight": d.normal(77), "bias": d.normal(77)},
    ),
    Check(
        "rms_norm",
        ops.add_rms_norm,
        reference.add_rms_norm,
        lambda d: {"x": d.normal(5, 77), "residual": d.normal(5, 77), "weight": d.normal(77)},
    ),
    Check(
        "rotary",
        ops.rotary,
        reference.rotary,
        lambda d: {
            "x": d.normal(2, 5, 3, 38),
            "positions": d.ids(9, 2, 5),
            "table": rotations(9, 38, 1e4).float(),
        },
    ),
    Check(
        "gated_product",
        ops.gated_product,
        reference.gated_product,
        lambda d: {"gate": d.normal(5, 77), "up": d.normal(5, 77)},
    ),
    Check(
        "linear",
        ops.linear,
        reference.linear,
        lambda d: {
            "x": d.normal(5, 67),
            "weight": d.normal(35, 67),
            "bias": d.normal(35),
            "activation": "gelu_tanh",
            "residual": d.normal(5, 35),
        },
    ),
    Check(
        "linear_cross_entropy",
        ops.linear_cross_entropy,
        reference.linear_cross_entropy,
        lambda d: {"hidden": d.normal(7, 33), "weight": d.normal(101, 33), "targets": d.ids(101, 7)},
    ),
    Check(
        "quantized_linear",
        ops.quantized_linear,
        reference.quantized_linear,
        lambda d: {
            "x": d.normal(5, 67).detach(),
            "weight": ops.quantize_weight(d.normal(35, 67), "int4"),
            "out_features": 35,
            "scheme": "int4",
            "bias": d.normal(35).detach(),
            "activation": "gelu_tanh",
        },
        dtypes=(torch.float32, torch.bfloat16),
        differentiable=False,
    ),
    Check(
        "sample",
        _greedy,
        lambda logits: torch.log_softmax(logits, dim=-1).amax(dim=-1),
        lambda d: {"logits": d.normal(3, 101)},
        dtypes=(torch.float32, torch.float64),
        differentiable=False,
    ),
)


@dataclass
class Result:
    """One implementation with one dtype: its largest error, relative to the largest value of that output."""

    op: str
    implementation: str
    dtype: str
    error: float = 0.0
    wrong: str = ""  # what is wrong, in words

    def compare(self, what: str, ours: Tensor, expected: Tensor, allowed: float) -> None:
        """Take in one output or gradient."""
        error = float((ours.double() - expected).abs().max()) / (float(expected.abs().max()) or 1.0)
        self.error = max(self.error, error)
        if not error <= allowed and not self.wrong:  # NaN is not
            self.wrong = f"{what} is off by {error:.2g} of its largest value; allowed is {allowed:.2g}"


def check_all(seed: int = 0) -> list[Result]:
    """Run every check on every implementation that runs here, with each dtype that it takes."""
    results = []
    for op, entries in C.implementations():
        checks = [check for check in CHECKS if check.op == op]
        for implementation, reason in entries:
            if reason:
                continue
            if not checks:
                results.append(Result(op, implementation, "float32", wrong="there is no check for this op"))
            for check in checks:
                for dtype in check.dtypes:
                    results += run_check(check, implementation, dtype, seed)
    return results


def run_check(check: Check, implementation: str, dtype: torch.dtype, seed: int = 0) -> list[Result]:
    """Compare one implementation's outputs and gradients with the reference; nothing if it does not take the dtype."""
    draw = Draw(dtype, seed)
    arguments = check.arguments(draw)
    leaves = [name for name, value in arguments.items() if isinstance(value, Tensor) and value.requires_grad]
    doubled = arguments | {name: arguments[name].detach().double().requires_grad_() for name in leaves}
    result = Result(check.op, implementation, str(dtype).removeprefix("torch."))
    allowed = ALLOWED * torch.finfo(dtype).eps
    if dtype == torch.float64:  # in which the reference rounds as much
        allowed *= 2
    with pygpt.force(check.op, implementation):
        try:
            outputs = _tensors(check.ours(**arguments))
        except ValueError as error:
            always = torch.bfloat16 if implementation == "cuda_sm90" else torch.float32
            if "no implementation takes these arguments" in str(error) and dtype != always:
                return []
            raise
        exact = _tensors(check.exact(**doubled))
        for place, (output, right) in enumerate(zip(outputs, exact, strict=True)):
            result.compare(f"output {place}", output.detach(), right.detach(), allowed)
        if check.differentiable:
            upstream = [draw.like(output) for output in outputs]
            gradients = torch.autograd.grad(outputs, [arguments[name] for name in leaves], upstream)
            right_gradients = torch.autograd.grad(
                exact, [doubled[name] for name in leaves], [g.double() for g in upstream]
            )
            for name, gradient, right in zip(leaves, gradients, right_gradients, strict=True):
                result.compare(f"the gradient of {name}", gradient, right, allowed)
    return [result]


def _tensors(value: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)
