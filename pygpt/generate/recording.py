"""A decoding step, recorded once from the model's own forward pass, and then replayed in one call.

What a step costs besides its kernels is Python and torch between them (GPT-2 124M on two cores: a third of the time).
While the model runs once, every op of pygpt that it calls is kept with its arguments (csrc/session/recording.h); the
replay is those calls, on the same memory, so it gives the same bits.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._C import _len_torch_dispatch_stack
from torch.utils._python_dispatch import TorchDispatchMode

from pygpt.extension import EMULATED, C
from pygpt.generate.cache import KeyValueCache, StepCache
from pygpt.ops.operation import recording

_ALLOCATIONS = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided"}


class StepModel(Protocol):
    """What a step is recorded of."""

    def hidden(self, ids: Tensor, lengths: Tensor | None = None, *, cache: KeyValueCache | None = None) -> Tensor:
        """What the head sees."""

    def logits(self, hidden: Tensor) -> Tensor:
        """The head."""

    def session(self, passes: int = 0) -> Any:
        """Inside, the weights do not change."""

    def modules(self) -> Iterator[nn.Module]:
        """Those that the model runs."""


class Unrecordable(RuntimeError):
    """The model's step cannot be replayed; the message says what is in the way."""


class RecordedStep:
    """The last token of every row through a model, by replay.

    The recording is the first run. It holds the memory of everything that the ops read and write, so that a parameter
    that is replaced later is not seen, and does no harm. Use it inside ``model.session()``.

    Args:
        model: in eval mode, on the CPU.
        cache: has every token of the rows but the last.
        tokens: (rows, most) int64, the rows' tokens; this and the following are read anew in every run.
        lengths: (rows,) int64, how many of them there are.
        alive: (rows,) bool: the others are passed over.

    Raises:
        Unrecordable: if the model has hooks or is in training mode, or if a kernel runs that is neither an op of pygpt
            nor a view or an allocation; the message names it, and its module.

    Attributes:
        logits: (rows, vocabulary) of the last run; anything in rows that are not alive.
    """

    def __init__(self, model: StepModel, cache: KeyValueCache, tokens: Tensor, lengths: Tensor, alive: Tensor) -> None:
        if EMULATED or tokens.device.type != "cpu":
            raise Unrecordable("steps are recorded on the CPU only")
        if _len_torch_dispatch_stack() > 0:
            raise Unrecordable("a torch dispatch mode is active, which a replay would pass by")
        names = _names(model)
        for module, name in names.items():
            if module._forward_hooks or module._forward_pre_hooks:
                raise Unrecordable(f"{name} has hooks, which a replay would not call")
            if module.training:
                raise Unrecordable(f"{name} is in training mode")
        step_cache = StepCache(cache)
        mode = _Recorder(names)
        with torch.no_grad(), model.session(1), mode, recording(mode.memory):
            self._recording = C.session_begin()
            try:
                step_cache.find_places(tokens, lengths, alive)
                hidden = model.hidden(step_cache.ids, cache=step_cache)  # (R, 1, C)
                self.logits = model.logits(hidden.flatten(0, 1))  # (R, V)
            finally:
                C.session_end(self._recording)
        self._memory = [*mode.memory, step_cache, tokens, lengths, alive]

    def run(self) -> Tensor:
        """Compute and give ``logits`` for the rows' last tokens, whose keys and values go to the cache."""
        C.session_run(self._recording)
        return self.logits


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets views and allocations through, and keeps what they give."""

    def __init__(self, names: dict[nn.Module, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.memory: list[Any] = []
        self._names = names

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returns = func._schema.returns
        views = bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        if not views and func._schema.name not in _ALLOCATIONS:
            raise Unrecordable(f"{self._place()} runs {func}, which is no op of pygpt")
        out = func(*args, **(kwargs or {}))
        self.memory.append(out)
        return out

    def _place(self) -> str:
        """The module whose ``forward`` is running, innermost first."""
        frame = sys._getframe()
        while frame.f_back is not None:
            frame = frame.f_back
            owner = frame.f_locals.get("self")
            if isinstance(owner, nn.Module) and owner in self._names:
                return self._names[owner]
        return "the model"


def _names(model: StepModel) -> dict[nn.Module, str]:
    """Each module with its class and its name in the model."""
    paths: dict[nn.Module, str] = {}
    for module in model.modules():  # parents come first
        path = paths.setdefault(module, "")
        for name, child in module.named_children():
            paths.setdefault(child, f"{path}.{name}" if path else name)
    return {module: f"{type(module).__name__} {path}".rstrip() for module, path in paths.items()}
