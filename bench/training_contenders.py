"""Who trains in `training.py`: one of `models.LEARNERS`, in a process of its own (this file as a program)."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parent.parent))  # behind the installed pygpt
from bench import models
from bench.worker import Answer, memory, serve
from pygpt import GPTConfig, machine

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WAKING = 2**16  # numbers to add to: enough for torch to share them out among its threads


def begin(
    who: str, config: dict[str, Any], dtype: str, batch: int, time_: int, keep_freed: bool
) -> tuple[None, Answer]:
    """Make a learner, which takes a step when it is asked, and answers with its seconds and the peak memory so far.

    That is all that became resident since before there was a model: weights, gradients, the optimiser's state,
    activations, and what the libraries take to compute with. A request says how many threads there are, and whether
    torch's are awake (`torch_awake`).

    Args:
        who: one of `models.LEARNERS`.
        config: as `GPTConfig.to_dict` gives it.
        dtype: fp32 or bf16.
        batch: rows.
        time_: tokens of a row.
        keep_freed: whether freed memory stays with the process.
    """
    if keep_freed:
        machine.keep_freed_memory()
    before = memory("VmRSS")
    model, step = models.training_step(who, GPTConfig.from_dict(config), DTYPES[dtype], batch, time_)

    def answer(request: tuple[int, bool]) -> tuple[float, int]:
        threads, awake = request
        torch.set_num_threads(threads)
        with torch_awake(model) if awake else contextlib.nullcontext():
            start = time.perf_counter()
            step()
            return time.perf_counter() - start, memory("VmHWM") - before

    return None, answer


@contextlib.contextmanager
def torch_awake(model: nn.Module) -> Iterator[None]:
    """Give all of torch's threads something to do before each module's forward pass, and before its backward pass.

    It takes them some 20 µs; then they wait for more, busily, as OpenMP's threads do, while ours begin.
    """
    numbers = torch.zeros(WAKING)

    def wake(*_: Any) -> None:
        numbers.add_(1)

    def wake_backward(module: nn.Module, inputs: Any, out: Any) -> None:
        for each in out if isinstance(out, tuple) else (out,):
            if isinstance(each, Tensor) and each.requires_grad:
                each.register_hook(wake)

    hooks = [
        hook
        for module in model.modules()
        for hook in (module.register_forward_pre_hook(wake), module.register_forward_hook(wake_backward))
    ]
    yield
    for hook in hooks:
        hook.remove()


if __name__ == "__main__":
    serve(begin)
