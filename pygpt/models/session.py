"""A time in which a model's weights do not change, so that copies of them in the kernels' own order may be kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pygpt import ops
from pygpt.extension import EMULATED
from pygpt.models.low_rank import LowRank
from pygpt.models.memory import free_memory
from pygpt.nn import Linear

if TYPE_CHECKING:
    from pygpt.models.transformer import Transformer

# Packing all weights takes about as long as 12 passes over one token save by it (GPT-2 124M, 2 cores, fp32 and bf16).
PACK_AFTER_PASSES = 12


class Session:
    """What a model's ``session()`` keeps: the weights as they were, what adapters make of them, packed copies once
    they pay.

    Args:
        model: whose weights stay as they are.

    Attributes:
        decoding: what `pygpt.generate.generate` keeps for a call like the last one, with the CUDA graph of its steps.
        users: how many ``with`` blocks are inside, of one thread or several.
    """

    decoding: Any = None

    def __init__(self, model: Transformer) -> None:
        self._model = model
        self._before = {name: (parameter, *_state(parameter)) for name, parameter in model.named_parameters()}
        self._passes = 0
        self._decided = False
        self.users = 0
        self._keep_adapted(True)

    def expect_passes(self, passes: int) -> None:
        """Take note that so many passes through the model come next: if they are enough, pack its weights now."""
        if self._passes + passes >= PACK_AFTER_PASSES:
            self._pack()

    def count_pass(self) -> None:
        """Take note of a pass through the model; after some of them, pack its weights."""
        self._passes += 1
        if self._passes >= PACK_AFTER_PASSES:
            self._pack()

    def _pack(self) -> None:
        """Pack the weights, if that was not done yet and there is memory for it."""
        if self._decided:
            return
        self._decided = True
        if self._model.quantization is not None:
            return  # quantised weights are packed already
        weights = [self._model.head_weight, *(module.weight for module in self._linears())]
        free = free_memory(torch.device("cpu"))
        needed = sum(weight.numel() * weight.element_size() for weight in weights)
        on_the_cpu = all(weight.device.type == "cpu" for weight in weights) and not EMULATED
        if not on_the_cpu or (free is not None and 2 * needed > free):
            return
        self._model.packed_head, *packed = ops.pack_linears(weights)
        for module, weight in zip(self._linears(), packed, strict=True):
            module.packed_weight = weight

    def close(self) -> None:
        """Drop all that was kept.

        Raises:
            RuntimeError: naming a parameter that was written to or replaced since the session began.
        """
        self._decided = True  # also for a pass of another thread, which may still know of this session
        for module in self._linears():
            module.packed_weight = None
        self._model.packed_head = None
        self.decoding = None
        self._keep_adapted(False)
        for name, parameter in self._model.named_parameters():
            known, *state = self._before.get(name, (None,))
            if known is not parameter or state != [*_state(parameter)]:
                raise RuntimeError(f"{name} was changed inside model.session(), in which weights are frozen")

    def _keep_adapted(self, keeps: bool) -> None:
        for module in self._model.modules():
            if isinstance(module, LowRank):
                module.keep(keeps)

    def _linears(self) -> list[Linear]:
        return [m for m in self._model.modules() if isinstance(m, Linear) and m is not self._model.head]


def _state(parameter: Tensor) -> tuple[int | None, int]:
    """What changes when a parameter is written to or given other memory.

    Of one that was made in inference mode torch does not count what is written.
    """
    return None if parameter.is_inference() else parameter._version, parameter.data_ptr()
