"""A decoding step that is launched in one call: recorded once from the model's own forward pass, and then replayed.

What a step costs besides its kernels is Python, torch and launches between them. On the CPU (GPT-2 124M on two cores: a
third of the time) every op of pygpt that the model calls is kept with its arguments (csrc/session/recording.h), while
the model runs once; on CUDA (several times the time of the kernels) all kernels are captured as a CUDA graph. The
replay is those calls, on the same memory, so it gives the same bits.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._C import _len_torch_dispatch_stack
from torch.utils._python_dispatch import TorchDispatchMode

from pygpt.extension import EMULATED, C
from pygpt.generate.cache import KeyValueCache, StepCache
from pygpt.ops.operation import recording

# A graph is captured for more steps than this: it takes about as long as one without a graph, as does the first.
GRAPH_AFTER_STEPS = 6

_log = logging.getLogger(__name__)
_ALLOCATIONS = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided"}


class StepModel(Protocol):
    """What a step is recorded of."""

    def hidden(self, ids: Tensor, lengths: Tensor | None = None, *, cache: KeyValueCache | None = None) -> Tensor:
        """What the head sees."""

    def logits(self, hidden: Tensor, decode: bool = False) -> Tensor:
        """The head."""

    def session(self, passes: int = 0) -> Any:
        """Inside, the weights do not change."""

    def modules(self) -> Iterator[nn.Module]:
        """Those that the model runs."""


class Unrecordable(RuntimeError):
    """The model's step cannot be replayed; the message says what is in the way."""


class DecodingStep:
    """The last token of every row through a model, and a choice of what comes next, again and again.

    This is the one place that decides how a model's steps are run: on the CPU as a `RecordedStep`, followed by the
    choice; on CUDA as a `CapturedStep` with the choice in it, from the second on; else, and where the model or the
    surroundings do not allow it, by calling the model. Use it inside ``model.session()`` and ``torch.no_grad()``.

    Args:
        model: in eval mode.
        cache: has every token of the rows but the last.
        tokens: (rows, most) int64, the rows' tokens; this and the following are read anew in every run.
        lengths: (rows,) int64, how many of them there are.
        alive: (rows,) bool: the others are passed over.
        choose: is called with the logits (rows, vocabulary), which are anything in rows that are not alive.
        steps: how many runs may come.
        on_device: whether ``choose`` does nothing but work on the logits' device, so that a graph can have it.
    """

    def __init__(
        self,
        model: StepModel,
        cache: KeyValueCache,
        tokens: Tensor,
        lengths: Tensor,
        alive: Tensor,
        choose: Callable[[Tensor], None],
        *,
        steps: int,
        on_device: bool,
    ) -> None:
        self._arguments = model, cache, tokens, lengths, alive
        self._pass = _Pass(*self._arguments)
        self._choose = choose
        self._on_device = on_device
        self._device = tokens.device
        self._may_record = self._device.type == "cpu" and not EMULATED
        self._may_capture = has_graphs(self._device) and steps > GRAPH_AFTER_STEPS
        self._recorded: RecordedStep | None = None
        self._captured: CapturedStep | None = None
        self._runs = 0

    def run(self) -> None:
        """Read the rows' last tokens, whose keys and values go to the cache, and choose the next."""
        if self._may_capture and self._runs == 1:  # the first launch of a kernel may do what a graph may not have
            self._capture()
        if self._captured is None:
            self._choose(self._logits())
        else:
            self._captured.run()
            if not self._on_device:
                self._choose(self._captured.logits)
        self._runs += 1

    def is_captured(self) -> bool:
        """Whether a graph is replayed, and would still be captured of the model."""
        if self._captured is None:
            return False
        try:
            _check(self._arguments[0])
        except Unrecordable:
            return False
        return True

    def _logits(self) -> Tensor:
        """Those of a step that is no graph."""
        if self._recorded is not None:
            return self._recorded.run()
        if self._may_record:
            self._may_record = False
            try:
                self._recorded = RecordedStep(*self._arguments)
            except Unrecordable as error:
                _log.debug("decoding is not recorded: %s", error)
            else:
                return self._recorded.logits
        return self._pass.run()

    def _capture(self) -> None:
        model = self._arguments[0]

        def work() -> Tensor:
            logits = self._pass.run()
            if self._on_device:
                self._choose(logits)
            return logits

        try:
            self._captured = CapturedStep(model, work, self._device)
        except Unrecordable as error:
            _log.warning("decoding goes on without a CUDA graph: %s", error)


def has_graphs(device: torch.device) -> bool:
    """Whether a device's work can be captured as a graph."""
    return device.type == "cuda"


class _Pass:
    """The last token of every row through a model, by calling it; the arguments are `DecodingStep`'s."""

    def __init__(self, model: StepModel, cache: KeyValueCache, tokens: Tensor, lengths: Tensor, alive: Tensor) -> None:
        self._model = model
        self._rows = tokens, lengths, alive
        self._cache = StepCache(cache)

    def run(self) -> Tensor:
        """The logits, (rows, vocabulary)."""
        self._cache.find_places(*self._rows)
        hidden = self._model.hidden(self._cache.ids, cache=self._cache)  # (R, 1, C)
        return self._model.logits(hidden.flatten(0, 1), self._cache.decode)


class RecordedStep:
    """The last token of every row through a model on the CPU, by replay; the arguments are `DecodingStep`'s.

    The recording is the first run. It holds the memory of everything that the ops read and write, so that a parameter
    that is replaced later is not seen, and does no harm. Use it inside ``model.session()``.

    Raises:
        Unrecordable: if the model has hooks or is in training mode, or if a kernel runs that is neither an op of pygpt
            nor a view or an allocation; the message names it, and its module.

    Attributes:
        logits: (rows, vocabulary) of the last run; anything in rows that are not alive.
    """

    def __init__(self, model: StepModel, cache: KeyValueCache, tokens: Tensor, lengths: Tensor, alive: Tensor) -> None:
        if EMULATED or tokens.device.type != "cpu":
            raise Unrecordable("steps are recorded on the CPU only")
        mode = _Recorder(_check(model))
        first = _Pass(model, cache, tokens, lengths, alive)
        with torch.no_grad(), model.session(1), mode, recording(mode.memory):
            self._recording = C.session_begin()
            try:
                self.logits = first.run()  # (R, V)
            finally:
                C.session_end(self._recording)
        self._memory = [*mode.memory, first]

    def run(self) -> Tensor:
        """Compute and give ``logits`` for the rows' last tokens, whose keys and values go to the cache."""
        C.session_run(self._recording)
        return self.logits


class CapturedStep:
    """Work on a CUDA device, by replay of a CUDA graph.

    Its memory is the graph's own, and goes with this object; that of what it reads and is not made in it, such as
    parameters and the cache, has to stay until then.

    Args:
        model: whose step it is.
        work: queues the work; it has run before, so that there is nothing left that kernels need at their first launch.
        device: where it runs.

    Raises:
        Unrecordable: if the model has hooks or is in training mode, or if anything stands in the way of a capture.

    Attributes:
        logits: what ``work`` gave: of the last run.
    """

    def __init__(self, model: StepModel, work: Callable[[], Tensor], device: torch.device) -> None:
        _check(model)
        if os.environ.get("PYGPT_CHECK") == "1":
            raise Unrecordable("PYGPT_CHECK=1 looks at values in every call")
        try:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.device(device):
                self.logits = self._capture(work)
        except RuntimeError as error:
            raise Unrecordable(f"capturing a CUDA graph failed: {error}") from error

    def _capture(self, work: Callable[[], Tensor]) -> Tensor:
        # Not by torch.cuda.graph, which first collects garbage and gives memory back: slower than the capture itself.
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._graph.capture_begin(capture_error_mode="thread_local")
            try:
                logits = work()
            finally:
                self._graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
        return logits

    def run(self) -> None:
        """Do the work again."""
        self._graph.replay()


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


def _check(model: StepModel) -> dict[nn.Module, str]:
    """Refuse a model that a replay would not do justice to; give the names of its modules."""
    if _len_torch_dispatch_stack() > 0:
        raise Unrecordable("a torch dispatch mode is active, which a replay would pass by")
    names = _names(model)
    for module, name in names.items():
        if module._forward_hooks or module._forward_pre_hooks:
            raise Unrecordable(f"{name} has hooks, which a replay would not call")
        if module.training:
            raise Unrecordable(f"{name} is in training mode")
    return names


def _names(model: StepModel) -> dict[nn.Module, str]:
    """Each module with its class and its name in the model."""
    paths: dict[nn.Module, str] = {}
    for module in model.modules():  # parents come first
        path = paths.setdefault(module, "")
        for name, child in module.named_children():
            paths.setdefault(child, f"{path}.{name}" if path else name)
    return {module: f"{type(module).__name__} {path}".rstrip() for module, path in paths.items()}
