"""A module of ours in the place of PyTorch's, inside a plain PyTorch model."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from tests.support import assert_near


def assert_takes_the_place(plain: nn.Sequential, index: int, ours: nn.Module, inputs: Tensor) -> None:
    """Swap ``ours`` in, load the plain model's state dict, and compare outputs and gradients with float64."""
    swapped = copy.deepcopy(plain)
    swapped[index] = ours
    swapped.load_state_dict(plain.state_dict(), strict=True)
    exact = copy.deepcopy(plain).double()
    results = []
    for model in (swapped, exact):
        x = inputs.double() if inputs.is_floating_point() and model is exact else inputs
        out = model(x)
        out.square().sum().backward()
        results.append({"output": out.detach(), **{name: p.grad for name, p in model.named_parameters()}})
    for name, right in results[1].items():
        assert_near(results[0][name], right, name)
    assert_state_is_torchs(ours, plain[index])


def assert_state_is_torchs(ours: nn.Module, theirs: nn.Module) -> None:
    """The same keys, shapes and dtypes."""

    def described(module: nn.Module) -> dict[str, tuple[torch.Size, torch.dtype]]:
        return {name: (tensor.shape, tensor.dtype) for name, tensor in module.state_dict().items()}

    assert described(ours) == described(theirs)
