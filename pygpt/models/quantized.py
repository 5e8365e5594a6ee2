"""Models whose linear layers are held in 8 or 4 bits: modules of one kind in the place of those of the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from pygpt.models.memory import check_bytes_fit
from pygpt.nn import Linear, QuantizedLinear
from pygpt.ops.quantized_linear import check_scheme

if TYPE_CHECKING:
    from pygpt.models.gpt import GPT


def quantize(model: GPT, scheme: str, head_scheme: str) -> None:
    """Round the weights of a model; `GPT.quantize` says everything."""
    check_scheme(scheme)
    check_scheme(head_scheme)
    if model.quantization is not None:
        raise ValueError(f"the model is quantised already, as {model.quantization}; quantise the one it was made from")
    table = model.token_embedding.weight
    _check(table.device, table.dtype)
    tied = None if model.head is not None else QuantizedLinear.of(table, None, head_scheme)

    def rounded(linear: Linear) -> QuantizedLinear:
        return QuantizedLinear.of(linear.weight, linear.bias, head_scheme if linear is model.head else scheme)

    _replace(model, rounded)
    _finish(model, tied, scheme, head_scheme)


def leave_room(model: GPT, scheme: str, head_scheme: str, device: torch.device, dtype: torch.dtype) -> None:
    """Put quantised layers without weights into a model on ``meta`` that will be on ``device``.

    Raises:
        MemoryError: if it will not fit there.
        ValueError: if there is no such scheme, or the device or dtype is none for quantised weights.
    """
    check_scheme(scheme)
    check_scheme(head_scheme)
    _check(device, dtype)

    def empty(linear: Linear) -> QuantizedLinear:
        shape, bias = (linear.in_features, linear.out_features), linear.bias is not None
        own = head_scheme if linear is model.head else scheme
        return QuantizedLinear(*shape, own, bias, device="meta", dtype=dtype)

    tied = None
    if model.head is None:
        vocabulary, width = model.token_embedding.weight.shape
        tied = QuantizedLinear(width, vocabulary, head_scheme, False, device="meta")
    _replace(model, empty)
    _finish(model, tied, scheme, head_scheme)
    needed = sum(tensor.nbytes for tensor in model.state_dict().values())
    check_bytes_fit(needed, device, f"the model's weights in {scheme}")


def _check(device: torch.device, dtype: torch.dtype) -> None:
    if device.type != "cpu":
        raise ValueError(f"quantised models are computed on the CPU, not on {device}")
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"a quantised model computes in float32 or bfloat16, not in {dtype}")


def _replace(model: nn.Module, make: Callable[[Linear], QuantizedLinear]) -> None:
    """Put what ``make`` gives in the place of each linear layer: of all, or, where it raises, of none."""
    made = [
        (parent, name, make(child))
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, Linear)
    ]
    for parent, name, module in made:
        setattr(parent, name, module)


def _finish(model: GPT, tied_head: QuantizedLinear | None, scheme: str, head_scheme: str) -> None:
    if tied_head is not None:
        model.head = tied_head
    model.quantization, model.head_quantization = scheme, head_scheme
    model.requires_grad_(False).eval()
