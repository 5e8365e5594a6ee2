"""What every model has: parameters made where they are asked for, initial weights, sessions, a head, files."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pygpt import ops
from pygpt.models.block import position_table
from pygpt.models.config import TransformerConfig
from pygpt.models.memory import check_fits
from pygpt.models.session import Session
from pygpt.nn import Embedding, LayerNorm, Linear, QuantizedLinear, RMSNorm

Model = TypeVar("Model", bound="Transformer")

_lock = threading.Lock()  # of the sessions that threads begin and end


class Transformer(nn.Module):
    """The base of `GPT`, `Encoder` and `Seq2Seq`.

    A model makes its modules on ``meta``, then calls `_materialise`: nothing is drawn twice.

    Args:
        config: its shape.
        kind: the class that ``config`` must be of.
        device: where the parameters will be made.
        dtype: of the parameters.

    Raises:
        TypeError: if the configuration is another model's, or the dtype is none of floating-point numbers.
        MemoryError: if the parameters do not fit into the device's free memory.

    Attributes:
        checkpoint_blocks: in training, keep each block's input only and compute the block again in the backward pass.
            Bits do not change, dropout included.
        quantization: ``"int8"`` or ``"int4"`` where `GPT.quantize` made it so; else None.
        head_quantization: the same of the head.
    """

    config: Any
    token_embedding: Embedding
    head: Linear | QuantizedLinear | None

    def __init__(
        self, config: TransformerConfig, kind: type[TransformerConfig], device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__()
        if not isinstance(config, kind):
            raise TypeError(f"config must be a {kind.__name__}, not {config!r}")
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"dtype must be a torch.dtype of floating-point numbers, not {dtype!r}")
        check_fits(config.num_parameters(), device, dtype)
        self.config = config
        self.checkpoint_blocks = False
        self.quantization: str | None = None
        self.head_quantization: str | None = None
        self.packed_head: Tensor | None = None  # of head_weight, inside a session
        self._session: Session | None = None

    def _materialise(self, device: torch.device, initialise: bool) -> None:
        self.to_empty(device=device)
        self._make_position_tables()
        if initialise and device.type != "meta":
            self.reset_parameters()

    def _make_position_tables(self) -> None:
        """Compute the tables of positions that are no parameters, for the model's device and dtype."""
        weight = self.token_embedding.weight
        for module in self._modules_with_positions():
            module.position_table = position_table(self.config, weight.device, weight.dtype)

    def _modules_with_positions(self) -> list[Any]:
        return [module for module in self.modules() if hasattr(module, "position_table")]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        # ``to`` and its like come here. Positions are not rounded to another dtype but computed anew: then a model that
        # was moved has the bits of one that was made there, and is the same after there and back.
        before = [module.position_table for module in self._modules_with_positions()]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        after = [module.position_table for module in self._modules_with_positions()]
        if any(new is not old for old, new in zip(before, after, strict=True)):
            self._make_position_tables()
        return self

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the initial weights from torch's default generator: normal, of ``config.init_std``, and no biases."""
        std = self.config.init_std
        for module in self.modules():
            if isinstance(module, LayerNorm | RMSNorm):
                module.reset_parameters()
            elif isinstance(module, Embedding):
                nn.init.normal_(module.weight, std=std)
            elif isinstance(module, Linear):
                nn.init.normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def logits(self, hidden: Tensor, decode: bool = False) -> Tensor:
        """The head: (..., width) to (..., vocabulary), in float32 (float64 for a float64 model), never rounded.

        Args:
            hidden: (..., width).
            decode: as in `pygpt.ops.linear`.
        """
        if isinstance(self.head, QuantizedLinear):
            return self.head(hidden, out_dtype=torch.float32)  # type: ignore[no-any-return]
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        packed = None if torch.is_autocast_enabled(hidden.device.type) else self.packed_head
        return ops.linear(
            hidden, self.head_weight, self.head_bias, out_dtype=dtype, packed_weight=packed, decode=decode
        )

    @contextlib.contextmanager
    def session(self, passes: int = 0) -> Iterator[Session]:
        """Promise that the weights do not change inside the ``with`` block, so that packed copies of them may be kept.

        On CUDA the graph of `generate`'s steps is kept too, for further calls with the same shapes and options.

        Args:
            passes: how many passes through the model will come, as far as that is known: where they are enough, the
                weights are packed at once, else after some passes.

        Raises:
            RuntimeError: at the end of the block, naming a parameter that was written to or replaced in it.
        """
        with _lock:
            if self._session is None:
                self._session = Session(self)
            session = self._session  # inside another, also another thread's, it is the same
            session.users += 1
        try:
            session.expect_passes(passes)
            yield session
        finally:
            with _lock:
                session.users -= 1
                if session.users == 0:
                    self._session = None
                    session.close()

    def __getstate__(self) -> dict[str, Any]:
        # Of copies and pickles: a session is the model's own.
        return {**self.__dict__, "_session": None, "packed_head": None}

    def _count_pass(self) -> None:
        session = self._session
        if session is not None and not torch.is_grad_enabled():
            session.count_pass()

    @classmethod
    def from_pretrained(
        cls: type[Model], folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> Model:
        """Load a model; `pygpt.models.huggingface.load` says everything.

        Raises:
            ValueError: also if the folder holds a model of another class, which is named.
        """
        from pygpt.models import huggingface  # which imports the models

        return huggingface.load(cls, folder, device, dtype)

    def save_pretrained(self, folder: str | Path) -> str:
        """Save the model; `pygpt.models.huggingface.save` says everything."""
        from pygpt.models import huggingface

        return huggingface.save(self, folder)

    @property
    def head_weight(self) -> nn.Parameter:
        """The head's matrix, (vocabulary, width): the token embedding's if the head is tied to it."""
        assert not isinstance(self.head, QuantizedLinear), "a quantised head has no matrix"
        return (self.token_embedding if self.head is None else self.head).weight

    @property
    def head_bias(self) -> nn.Parameter | None:
        """The head's bias, (vocabulary,), where it has one."""
        return None
