"""How an op reaches its kernels: directly, through autograd, or as a ``torch.library`` op.

An `Operation` holds the pieces of one op and picks the cheapest path that is right for a call:

* eager and without gradient: the kernel call itself;
* eager with gradient: an `torch.autograd.Function` in its ctx form (``setup_context`` costs four times as much);
* under ``torch.compile``, with fake tensors or subclasses, or inside a dispatch mode: ``torch.ops.pygpt.<name>``;
* while a decoding step is recorded (`pygpt.generate.recording`): the kernel call, and the tensors are kept.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, is_grad_enabled
from torch._C import _are_functorch_transforms_active, _len_torch_dispatch_stack
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from pygpt.extension import C

_library: Any = torch.library.Library("pygpt", "DEF")  # type: ignore[no-untyped-call]
_PLAIN_TYPES = (Tensor, torch.nn.Parameter)

P = ParamSpec("P")
R = TypeVar("R")


class _Recording(threading.local):
    memory: list[Any] | None = None


_recording = _Recording()


@contextlib.contextmanager
def recording(memory: list[Any]) -> Iterator[None]:
    """Inside, ops run without gradient and in place, and ``memory`` keeps alive what they read."""
    _recording.memory = memory
    try:
        yield
    finally:
        _recording.memory = None


class Operation:
    """One op of the library ``pygpt``.

    Args:
        name: its name in ``torch.ops.pygpt`` and in error messages.
        schema: arguments and results in torch's schema language, without the name.
        forward: runs the kernel on real tensors; returns a tensor or a tuple, as the schema says.
        fake: the same results without data (shapes, dtypes and devices).
        setup: saves for the backward what it needs, as in `torch.autograd.Function.setup_context`.
        backward: ``(ctx, *output gradients) -> input gradients``; made of calls of other operations. None: the op has
            no gradient.
        inference: what runs instead of ``forward`` when no gradient is asked for, where that can do with less; it may
            return fewer results.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        forward: Callable[..., Any],
        fake: Callable[..., Any],
        setup: Callable[[Any, tuple[Any, ...], Any], None] | None = None,
        backward: Callable[..., Any] | None = None,
        inference: Callable[..., Any] | None = None,
    ) -> None:
        self.name = name
        self._inference = inference or forward
        self._function = _autograd_function(name, forward, setup, backward) if setup and backward else None
        _library.define(name + schema)
        _library.impl(name, forward, "CompositeExplicitAutograd")
        torch.library.register_fake(f"pygpt::{name}", fake, lib=_library)
        if setup and backward:
            torch.library.register_autograd(f"pygpt::{name}", backward, setup_context=setup, lib=_library)
        self._library_op = getattr(torch.ops.pygpt, name)

    def __call__(self, *arguments: Any) -> Any:
        """Run the op; the arguments are those of the schema, by position."""
        if is_compiling():
            return self._library_op(*arguments)
        needs_gradient = False
        grad_enabled = is_grad_enabled()
        for argument in arguments:
            if type(argument) in _PLAIN_TYPES:
                if grad_enabled and argument.requires_grad:
                    needs_gradient = True
            elif isinstance(argument, Tensor):
                return self._library_op(*arguments)
        if _len_torch_dispatch_stack() > 0:
            if _recording.memory is None:
                return self._library_op(*arguments)
            # The memory itself: a parameter's tensor may be given another one.
            _recording.memory.extend(x.detach() for x in arguments if isinstance(x, Tensor))
            return self._inference(*arguments)
        if _are_functorch_transforms_active():
            raise NotImplementedError(f"pygpt.{self.name} does not support torch.func transforms")
        if forward_ad._current_level >= 0 and any(isinstance(x, Tensor) and _has_tangent(x) for x in arguments):
            raise NotImplementedError(f"pygpt.{self.name} does not support forward-mode differentiation")
        if needs_gradient and self._function is not None:
            return self._function.apply(*arguments)  # type: ignore[no-untyped-call]
        return self._inference(*arguments)


def _has_tangent(tensor: Tensor) -> bool:
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def _autograd_function(
    name: str,
    forward: Callable[..., Any],
    setup: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., Any],
) -> type[torch.autograd.Function]:
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            outputs = forward(*arguments)
            setup(ctx, arguments, outputs)
            return outputs

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            if torch.is_grad_enabled():
                raise NotImplementedError(f"pygpt.{name} has no second derivative (create_graph=True)")
            return backward(ctx, *gradients)

    Function.__name__ = Function.__qualname__ = name
    return Function


T = TypeVar("T", Tensor, Tensor | None)


def contiguous(tensor: T) -> T:
    """The tensor itself if its memory is its values in order, else a copy whose is.

    What is no tensor goes on to the kernel's checks. torch may keep a tensor's negative in its memory, such as that of
    ``x.conj().imag``.
    """
    if not isinstance(tensor, Tensor) or (tensor.is_contiguous() and not tensor.is_neg()):
        return tensor
    if _recording.memory is None:
        return tensor.resolve_neg().contiguous()
    out = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    C.session_copy(tensor, out)
    return out


def unit_stride(tensor: Tensor) -> Tensor:
    """The tensor itself if its memory is its values, with stride 1 in the last dimension, else a contiguous copy."""
    if tensor.dim() and tensor.stride(-1) == 1 and not tensor.is_neg():
        return tensor
    return contiguous(tensor)


def require_tensors(**arguments: object) -> None:
    """Raise TypeError for what is no dense tensor: for ops that look at shapes before their kernel."""
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, but is a {type(value).__name__}")
        if value.layout is not torch.strided:
            raise TypeError(f"{name} must be a dense tensor, but its layout is {value.layout}")


def autocast(*tensors: Any) -> Any:
    """The tensors in autocast's dtype where autocast is on for the first one's device, else as they are.

    float64 stays, as in PyTorch, and what is no tensor.
    """
    kind = tensors[0].device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    eligible = (torch.float32, torch.bfloat16, torch.float16)
    return tuple(x.to(dtype) if isinstance(x, Tensor) and x.dtype in eligible else x for x in tensors)


def accepts_numpy(function: Callable[P, R]) -> Callable[P, R]:
    """Let an op take NumPy arrays, and then give NumPy arrays; arrays and tensors do not mix."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        if any(map(_has_arrays, args)) or (kwargs and any(map(_has_arrays, kwargs.values()))):
            return cast(R, _call_with_arrays(function, args, kwargs))
        return function(*args, **kwargs)

    return wrapper


def _has_arrays(value: object) -> bool:
    # Not list | tuple: torch.compile of torch 2.6 cannot follow a union type.
    return isinstance(value, np.ndarray) or (isinstance(value, (list, tuple)) and any(map(_has_arrays, value)))


def _call_with_arrays(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    def to_tensor(value: Any) -> Any:
        if isinstance(value, Tensor):
            raise TypeError(f"{function.__name__}: NumPy arrays and torch tensors do not mix in one call")
        if isinstance(value, np.ndarray):
            return torch.from_numpy(np.array(value, order="C", copy=True))
        return [to_tensor(part) for part in value] if isinstance(value, list | tuple) else value

    def to_array(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(to_array(part) for part in value)
        return value.numpy() if isinstance(value, Tensor) else value

    with torch.no_grad():
        return to_array(
            function(
                *(to_tensor(value) for value in args), **{name: to_tensor(value) for name, value in kwargs.items()}
            )
        )
