"""The one block that all models are stacks of, and the stack itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pygpt import ops
from pygpt.models.config import GATED, TransformerConfig
from pygpt.models.memory import check_bytes_fit
from pygpt.models.sequence import sinusoids
from pygpt.nn import Embedding, FeedForward, GatedFeedForward, LayerNorm, MultiHeadAttention, RMSNorm
from pygpt.nn.rotary import rotations

if TYPE_CHECKING:
    from pygpt.generate import KeyValueCache

KeysAndValues = tuple[Tensor, Tensor]  # of a context, (B, S, G, D) each


class Memory(NamedTuple):
    """What the blocks of a decoder know of its context.

    Attributes:
        layers: keys and values for each block.
        lengths: (B,) int64, each row's own tokens of the context; None: all.
    """

    layers: list[KeysAndValues]
    lengths: Tensor | None

    def repeated(self, times: int) -> Memory:
        """The memory in which each row stands that many times, one after the other."""
        layers = [(k.repeat_interleave(times, dim=0), v.repeat_interleave(times, dim=0)) for k, v in self.layers]
        return Memory(layers, None if self.lengths is None else self.lengths.repeat_interleave(times))


class Block(nn.Module):
    """One layer: attention, in a decoder of a context attention to that, and the feed-forward network.

    Each is added to the residual stream.

    Args:
        config: of the model.
        layer: which layer of the stack this is, from 0.
        device: where the parameters are made.
        dtype: of the parameters.
        cross: whether there is attention to a context.
    """

    cross_attention: MultiHeadAttention | None
    cross_norm: LayerNorm | RMSNorm | None

    def __init__(
        self, config: TransformerConfig, layer: int, device: torch.device, dtype: torch.dtype, cross: bool = False
    ) -> None:
        super().__init__()
        width = config.embedding_dim
        made: dict[str, Any] = {"device": device, "dtype": dtype}

        def attention() -> MultiHeadAttention:
            heads = config.num_heads, config.num_kv_heads, config.head_dim
            qk_norm_eps = config.layer_norm_eps if config.qk_norm else None
            return MultiHeadAttention(width, *heads, config.bias, config.attention_dropout, qk_norm_eps, **made)

        def norm() -> LayerNorm | RMSNorm:
            return make_norm(config, **made)

        self.pre_norm = config.norm == "pre"
        self.window = config.window(layer)
        self.dropout = config.residual_dropout
        self.norm_1 = norm()
        self.attention = attention()
        self.cross_norm = norm() if cross else None
        self.cross_attention = attention() if cross else None
        self.norm_2 = norm()
        kind = GatedFeedForward if config.activation in GATED else FeedForward
        self.feed_forward = kind(
            width, config.hidden_dim, config.activation, config.bias, config.residual_dropout, **made
        )

    def forward(
        self,
        x: Tensor,
        branch: Tensor | None = None,
        memory: KeysAndValues | None = None,
        memory_lengths: Tensor | None = None,
        decode: bool = False,
        **visible: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Map the residual stream to the next layer's.

        A block that normalises first leaves its last branch to be added by the next norm, which does so in its own
        pass over memory. Under autocast branches have its dtype, and the stream keeps its own.

        Args:
            x: (B, T, C), the residual stream.
            branch: (B, T, C), what the block before has left to be added to it; None: nothing.
            memory: the context's keys and values, from ``cross_attention.keys_values``.
            memory_lengths: (B,) int64, each row's own tokens of the context.
            decode: as in `pygpt.ops.linear`, for all that the block computes.
            visible: other options of `MultiHeadAttention.forward`.

        Returns:
            The stream, and what is still to be added to it.
        """
        if self.pre_norm:
            inner, x = _add_norm(self.norm_1, branch, x)  # (B, T, C) each
            branch = self._attend(inner, decode, visible)
            if self.cross_norm is not None:
                inner, x = _add_norm(self.cross_norm, branch, x)
                branch = self._attend_to(memory, memory_lengths, inner, decode)
            inner, x = _add_norm(self.norm_2, branch, x)
            return x, self.feed_forward(inner, decode)
        x, _ = _add_norm(self.norm_1, self._attend(x, decode, visible).to(x.dtype), x)  # (B, T, C)
        if self.cross_norm is not None:
            x, _ = _add_norm(self.cross_norm, self._attend_to(memory, memory_lengths, x, decode).to(x.dtype), x)
        x, _ = _add_norm(self.norm_2, self.feed_forward(x, decode).to(x.dtype), x)
        return x, None

    def _attend(self, x: Tensor, decode: bool, visible: dict[str, Any]) -> Tensor:
        out: Tensor = self.attention(x, window=self.window, decode=decode, **visible)
        return ops.dropout(out, self.dropout) if self.training else out

    def _attend_to(self, memory: KeysAndValues | None, lengths: Tensor | None, x: Tensor, decode: bool) -> Tensor:
        assert self.cross_attention is not None and memory is not None, "a block that attends to a context is given one"
        out: Tensor = self.cross_attention(x, memory, key_lengths=lengths, decode=decode)
        return ops.dropout(out, self.dropout) if self.training else out


def position_table(config: TransformerConfig, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    """Sinusoids (context_length, width), or rotations (context_length, head_dim); None for other positions.

    Sinusoids are added to embeddings, and have their dtype; rotations are float32, for a float64 model float64.

    Raises:
        MemoryError: if they do not fit into memory.
    """
    if config.positions in ("sinusoidal", "rope"):
        width = config.embedding_dim if config.positions == "sinusoidal" else config.head_dim
        needed = 8 * config.context_length * width  # on the CPU, in float64
        check_bytes_fit(needed, torch.device("cpu"), f"the positions of {config.context_length:,} tokens")
    if config.positions == "sinusoidal":
        return sinusoids(config.context_length, config.embedding_dim).to(device, dtype)
    if config.positions == "rope":
        rounded = torch.float64 if dtype == torch.float64 else torch.float32
        return rotations(config.context_length, config.head_dim, config.rope_theta).to(device, rounded)
    return None


def make_norm(config: TransformerConfig, **made: Any) -> LayerNorm | RMSNorm:
    """The norm of a model's width that its configuration asks for."""
    if config.norm_type == "rms":
        return RMSNorm(config.embedding_dim, config.layer_norm_eps, **made)
    return LayerNorm(config.embedding_dim, config.layer_norm_eps, config.bias, **made)


def _add_norm(norm: LayerNorm | RMSNorm, branch: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    """``(norm(x + branch), x + branch)``: the first in the branch's dtype, the second in the stream's."""
    if branch is None:
        return norm(x), x
    if x.dtype != torch.float32:  # which alone may be wider than its branches
        branch = branch.to(x.dtype)
    if isinstance(norm, RMSNorm):
        return ops.add_rms_norm(branch, x, norm.weight, norm.eps)
    return ops.add_layer_norm(branch, x, norm.weight, norm.bias, norm.eps)


def run_blocks(
    blocks: Iterable[Block],
    norm: LayerNorm | RMSNorm | None,
    x: Tensor,
    recompute: bool,
    cache: KeyValueCache | None = None,
    memory: Memory | None = None,
    **visible: Any,
) -> Tensor:
    """What blocks, one after the other, and the norm behind them make of (B, T, C).

    Args:
        blocks: from the first.
        norm: of a model whose blocks normalise first.
        x: (B, T, C).
        recompute: in training, keep each block's input only and compute the block again in the backward pass.
        cache: of earlier tokens, in which ``x`` is counted when all blocks have run.
        memory: the context that the blocks attend to.
        visible: options of `Block.forward`.
    """
    branch: Tensor | None = None
    for layer, block in enumerate(blocks):
        if cache is not None:
            visible["cache"] = cache.layer(layer)
        if memory is not None:
            visible["memory"], visible["memory_lengths"] = memory.layers[layer], memory.lengths
        if recompute and block.training and torch.is_grad_enabled():
            x, branch = checkpoint(block, x, branch, use_reentrant=False, **visible)
        else:
            x, branch = block(x, branch, **visible)  # (B, T, C)
    if cache is not None:
        cache.end()
    return x if norm is None else _add_norm(norm, branch, x)[0]


class Stack(nn.Module):
    """Positions, blocks and norms: all of an encoder or a decoder but the tables that its tokens come from.

    ``norm(block(… block(dropout(embedding_norm(x + positions)))))``; there is an ``embedding_norm`` if asked for, and
    a ``norm`` at the end of blocks that normalise first.

    Args:
        config: of the model.
        layers: how many blocks there are.
        embedding_norm: whether the embeddings are normalised.
        causal: whether a token sees itself and earlier ones only.
        cross: whether the blocks attend to a context.
        position_offset: the row of the table of learned positions that position 0 has.
        device: where the parameters are made.
        dtype: of the parameters.
    """

    position_table: Tensor | None

    def __init__(
        self,
        config: TransformerConfig,
        layers: int,
        device: torch.device,
        dtype: torch.dtype,
        *,
        embedding_norm: bool = False,
        causal: bool = False,
        cross: bool = False,
        position_offset: int = 0,
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        width = config.embedding_dim
        self.config = config
        self.causal = causal
        self.position_offset = position_offset
        self.position_embedding: Embedding | None = None
        if config.positions == "learned":
            self.position_embedding = Embedding(config.context_length + position_offset, width, **made)
        self.embedding_norm = make_norm(config, **made) if embedding_norm else None
        self.blocks = nn.ModuleList(Block(config, layer, device, dtype, cross) for layer in range(layers))
        self.norm = make_norm(config, **made) if config.norm == "pre" else None
        self.register_buffer("position_table", None, persistent=False)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        cache: KeyValueCache | None = None,
        memory: Memory | None = None,
        recompute: bool = False,
    ) -> Tensor:
        """Map the embeddings of tokens (B, T, C) to what the last block makes of them.

        Args:
            x: (B, T, C).
            lengths: (B,) int64, each row's own tokens; with a cache, its new ones.
            cache: of the tokens before ``x``, to which those of ``x`` are added.
            memory: the context that the blocks attend to.
            recompute: as in `run_blocks`.
        """
        if cache is None:
            visible: dict[str, Any] = {"causal": self.causal, "key_lengths": lengths}
            positions = torch.arange(x.shape[1], device=x.device)  # (T,)
        else:
            visible = cache.begin(x.shape[1], lengths)
            positions = cache.positions  # (B, T)
        if self.position_embedding is not None:
            x = ops.add(x, self.position_embedding(positions + self.position_offset))
        elif self.config.positions == "sinusoidal" and self.position_table is not None:
            x = ops.add(x, ops.embedding(positions, self.position_table))
        elif self.position_table is not None:
            visible["rotation"] = positions, self.position_table
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        if self.training:
            x = ops.dropout(x, self.config.embedding_dropout)
        return run_blocks(self._blocks(), self.norm, x, recompute, cache, memory, **visible)

    def remember(self, context: Tensor, lengths: Tensor | None) -> Memory:
        """The keys and values of a context (B, S, C), of which each row has its own length: computed once."""
        attentions = [block.cross_attention for block in self._blocks()]
        return Memory([a.keys_values(context) for a in attentions if a is not None], lengths)

    def _blocks(self) -> Iterator[Block]:
        return iter(self.blocks)  # type: ignore[arg-type]
