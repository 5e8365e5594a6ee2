"""GPT: token and position embeddings, a stack of blocks, a head. Reading order is data order."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pygpt import generate as decoding
from pygpt import ops
from pygpt.models import quantized
from pygpt.models.block import Block, make_norm, run_blocks
from pygpt.models.config import GPTConfig
from pygpt.models.sequence import check_ids, check_shape, document_positions, past_lengths
from pygpt.models.transformer import Transformer
from pygpt.nn import Embedding, Linear

if TYPE_CHECKING:
    from pygpt.generate import KeyValueCache


class GPT(Transformer):
    """A decoder-only transformer.

    Args:
        config: its shape.
        device: where the parameters are made; ``"meta"`` makes a model without memory.
        dtype: of the parameters.
        initialise: draw the initial weights. False leaves them as the memory happens to be, for whoever loads others.
        quantization: make room for weights that `quantize` made with this scheme, and draw none; None: plain weights.
        head_quantization: the scheme of the head; None: ``quantization``.

    Raises:
        MemoryError: if the parameters do not fit into the device's free memory.
        ValueError: if there is no such scheme, or quantised weights cannot be computed with.

    Attributes:
        checkpoint_blocks: in training, keep each block's input only and compute the block again in the backward pass.
            Bits do not change, dropout included.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
    """

    position_table: Tensor | None

    def __init__(
        self,
        config: GPTConfig,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        initialise: bool = True,
        quantization: str | None = None,
        head_quantization: str | None = None,
    ) -> None:
        device = torch.device(device)
        meta = torch.device("meta")  # nothing is drawn twice: the weights are, once, at the end
        super().__init__(config, GPTConfig, device if quantization is None else meta, dtype)
        width = config.embedding_dim
        self.token_embedding = Embedding(config.vocab_size, width, device=meta, dtype=dtype)
        self.position_embedding: Embedding | None = None
        if config.positions == "learned":
            self.position_embedding = Embedding(config.context_length, width, device=meta, dtype=dtype)
        self.blocks = nn.ModuleList(Block(config, layer, meta, dtype) for layer in range(config.num_layers))
        self.norm = make_norm(config, device=meta, dtype=dtype) if config.norm == "pre" else None
        self.head = None
        if not config.tie_head:
            self.head = Linear(width, config.vocab_size, bias=False, device=meta, dtype=dtype)
        if quantization is not None:
            quantized.leave_room(self, quantization, head_quantization or quantization, device, dtype)
        self.register_buffer("position_table", None, persistent=False)
        self._materialise(device, initialise and quantization is None)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the initial weights from torch's default generator, as `GPTConfig.init_std` says."""
        super().reset_parameters()
        residual_std = self.config.init_std / math.sqrt(2 * self.config.num_layers)
        for block in self._blocks():
            nn.init.normal_(block.attention.out.weight, std=residual_std)
            nn.init.normal_(block.feed_forward.down.weight, std=residual_std)

    def forward(self, ids: Tensor, lengths: Tensor | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """Logits of the next token at every position.

        Args:
            ids: (batch, time) int64.
            lengths: (batch,) int64, 0 to time: each row's own tokens; what follows them may be anything.
            cu_seqlens: (documents + 1,) int64, from 0 to time: where packed documents begin and end, for batch 1.
                Not together with ``lengths``.

        Returns:
            (batch, time, vocabulary), float32; float64 for a float64 model. Zeros past a row's length.

        Raises:
            ValueError: if a shape or value does not fit.
            TypeError: if a dtype does not fit.
        """
        logits = self.logits(self.hidden(ids, lengths, cu_seqlens))  # (B, T, V)
        past = past_lengths(ids, lengths)
        return logits if past is None else logits.masked_fill(past.unsqueeze(-1), 0.0)

    def loss(
        self,
        ids: Tensor,
        targets: Tensor,
        lengths: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        ignore_index: int = -100,
    ) -> Tensor:
        """Mean cross-entropy of the targets; the logits are never held.

        Args:
            ids: (batch, time) int64.
            targets: (batch, time) int64, shifted by the caller: ``targets[b, t]`` is the token after ``ids[b, t]``.
            lengths: as in `forward`; targets past a row's length do not count.
            cu_seqlens: as in `forward`.
            ignore_index: targets of this value do not count.

        Returns:
            A scalar, float32; float64 for a float64 model. 0 if no target counts.

        Raises:
            ValueError: if a shape or value does not fit.
            TypeError: if a dtype does not fit.
        """
        check_shape("targets", targets, ids)
        hidden = self.hidden(ids, lengths, cu_seqlens)  # (B, T, C)
        past = past_lengths(ids, lengths)
        targets = targets if past is None else targets.masked_fill(past, ignore_index)
        if self.quantization is not None:
            return ops.cross_entropy(self.logits(hidden), targets, ignore_index=ignore_index)
        return ops.linear_cross_entropy(hidden, self.head_weight, targets, ignore_index=ignore_index)

    def hidden(
        self,
        ids: Tensor,
        lengths: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """What the head sees: the last block's output, after the last layer norm.

        Args:
            ids: (batch, time) int64.
            lengths: as in `forward`; with a cache, how many of each row's ids are new tokens.
            cu_seqlens: as in `forward`; not with a cache.
            cache: keys and values of the tokens before ``ids``, to which those of ``ids`` are added.

        Returns:
            (batch, time, width).

        Raises:
            ValueError: if a shape or value does not fit.
            TypeError: if a dtype does not fit.
        """
        self._check(ids, lengths, cu_seqlens, cache)
        self._count_pass()
        past = past_lengths(ids, lengths)
        if past is not None:
            ids = ids.masked_fill(past, 0)
        time = ids.shape[1]
        x: Tensor = self.token_embedding(ids)  # (B, T, C)
        if cache is None:
            visible: dict[str, Any] = {"causal": True, "key_lengths": lengths, "cu_seqlens": cu_seqlens}
            positions = document_positions(time, cu_seqlens, ids.device)  # (T,)
        else:
            visible = cache.begin(time, lengths)
            positions = cache.positions  # (B, T)
        if self.config.positions == "rope" and self.position_table is not None:
            visible["rotation"] = positions, self.position_table
        embedded = self._embed(positions)  # (T, C) or (B, T, C)
        if embedded is not None:
            x = ops.add(x, embedded)
        if self.training:
            x = ops.dropout(x, self.config.embedding_dropout)
        return run_blocks(self._blocks(), self.norm, x, self.checkpoint_blocks, cache, **visible)

    generate = decoding.generate
    beam_search = decoding.beam_search
    contrastive_search = decoding.contrastive_search

    def quantize(self, scheme: str, head_scheme: str | None = None) -> GPT:
        """Hold the weights of all linear layers and of the head in 8 or 4 bits from now on, for sampling on the CPU.

        Each product then reads a quarter or a sixth of float32's bytes. ``"int8"``: whole numbers up to ±127, and a
        scale for each output. ``"int4"``: 0 to 15, with a scale and an offset for every 32 inputs. Norms, biases and
        embeddings stay as they are: a token reads one row of a table, and what is wrong there goes through all layers.
        A head that is tied to the token embedding gets a quantised copy of it. The model can be sampled from, saved
        and loaded, but no longer trained.

        Args:
            scheme: ``"int8"`` or ``"int4"``.
            head_scheme: of the head; None: ``scheme``.

        Returns:
            The model itself, in eval mode.

        Raises:
            ValueError: if there is no such scheme, the model is quantised already, is not on the CPU or not in float32
                or bfloat16, or has weights that are not finite.
            RuntimeError: inside a session, in which weights are frozen.
        """
        if self._session is not None:
            raise RuntimeError("the weights are frozen inside model.session(); quantise the model before")
        quantized.quantize(self, scheme, scheme if head_scheme is None else head_scheme)
        return self

    def train(self, mode: bool = True) -> GPT:
        """As `torch.nn.Module.train`.

        Raises:
            RuntimeError: if the model is quantised.
        """
        if mode and self.quantization is not None:
            raise RuntimeError(
                "a quantised model cannot be trained: its weights are whole numbers; train the model that it was made "
                "from, and quantise that"
            )
        return super().train(mode)

    def _blocks(self) -> Iterator[Block]:
        return iter(self.blocks)  # type: ignore[arg-type]

    def _embed(self, positions: Tensor) -> Tensor | None:
        if self.position_embedding is not None:
            return self.position_embedding(positions)  # type: ignore[no-any-return]
        if self.config.positions == "sinusoidal" and self.position_table is not None:
            return ops.embedding(positions, self.position_table)
        return None

    def _check(
        self, ids: Tensor, lengths: Tensor | None, cu_seqlens: Tensor | None, cache: KeyValueCache | None
    ) -> None:
        """Refuse what does not fit; what depends on the values of lengths is left to attention's check where it can."""
        limit = self.config.context_length
        check_ids(ids, limit if cu_seqlens is None else None, lengths)
        if cu_seqlens is None:
            return
        batch, time = ids.shape
        if lengths is not None or cache is not None:
            raise ValueError("cu_seqlens does not go together with lengths or a cache")
        if not isinstance(cu_seqlens, Tensor):
            raise TypeError(f"cu_seqlens must be a tensor, not a {type(cu_seqlens).__name__}")
        if batch != 1 or cu_seqlens.dim() != 1 or cu_seqlens.dtype != torch.int64:
            raise ValueError(
                "cu_seqlens must be int64 of shape (documents + 1,), for ids of batch 1, "
                f"not {cu_seqlens.dtype} {tuple(cu_seqlens.shape)} for batch {batch}"
            )
        if ids.device.type != "cpu" or torch.compiler.is_compiling():
            return  # the rest depends on values, which would have to be waited for
        sizes = cu_seqlens.diff()
        if len(cu_seqlens) < 2 or int(cu_seqlens[0]) != 0 or int(cu_seqlens[-1]) != time or int(sizes.min()) < 0:
            raise ValueError(f"cu_seqlens must go from 0 to {time} and never back, but is {cu_seqlens.tolist()}")
        if int(sizes.max()) > limit:
            raise ValueError(f"context_length is {limit}, but a document has {int(sizes.max())} tokens")
