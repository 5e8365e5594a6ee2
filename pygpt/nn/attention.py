"""Multi-head attention as a module: projections around ``pygpt.ops.attention``."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pygpt import ops
from pygpt.nn.linear import Linear
from pygpt.nn.rms_norm import RMSNorm


class Cache(Protocol):
    """Where keys and values of earlier tokens are kept."""

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of new tokens; give those of all tokens."""


class MultiHeadAttention(nn.Module):
    """Attention of a sequence to itself, or to a context, with ``num_heads`` heads.

    ``concat_h(attention(x W_q^T, y W_k^T, y W_v^T)_h) W_out^T`` (and biases), where y is the context, or x itself.

    Args:
        width: of input, context and output.
        num_heads: query heads.
        num_kv_heads: key and value heads, a divisor of ``num_heads``; None: as many.
        head_dim: size of a head; None: ``width / num_heads``.
        bias: whether the projections have biases.
        dropout: probability with which each attention weight is dropped in training.
        qk_norm_eps: normalise each head of queries and keys by its root mean square, with this added to it (Henry et
            al., "Query-Key Normalization", 2020; Qwen3); None: do not.
        device: where the parameters are made.
        dtype: of the parameters.

    Raises:
        ValueError: if the heads do not fit the width or each other.

    The rows of ``qkv.weight`` are W_q, W_k and W_v, one after the other, each head's rows together: one product gives
    all three.

    Source: Vaswani et al., "Attention Is All You Need", 2017, section 3.2; Ainslie et al., "GQA", 2023.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        qk_norm_eps: float | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if num_heads < 1 or num_kv_heads < 1 or num_heads % num_kv_heads:
            raise ValueError(f"num_heads must be a multiple of num_kv_heads, but {num_heads} is none of {num_kv_heads}")
        if head_dim is None and width % num_heads:
            raise ValueError(f"width must be a multiple of num_heads, but {width} is none of {num_heads}; set head_dim")
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = width // num_heads if head_dim is None else head_dim
        self.dropout = dropout
        rows = (num_heads + 2 * num_kv_heads) * self.head_dim
        self.qkv = Linear(width, rows, bias, device=device, dtype=dtype)
        self.out = Linear(num_heads * self.head_dim, width, bias, device=device, dtype=dtype)
        self.q_norm: RMSNorm | None = None
        self.k_norm: RMSNorm | None = None
        if qk_norm_eps is not None:
            self.q_norm = RMSNorm(self.head_dim, qk_norm_eps, device=device, dtype=dtype)
            self.k_norm = RMSNorm(self.head_dim, qk_norm_eps, device=device, dtype=dtype)

    def forward(
        self,
        x: Tensor,
        context: Tensor | tuple[Tensor, Tensor] | None = None,
        *,
        cache: Cache | None = None,
        rotation: tuple[Tensor, Tensor] | None = None,
        decode: bool = False,
        **options: Any,
    ) -> Any:
        """Attend from ``x``.

        Args:
            x: (batch, q_time, width).
            context: (batch, k_time, width): attend to this, or to what `keys_values` made of it. None: to ``x`` itself.
            cache: keeps the keys and values of ``x`` (or the context), and gives those that came before.
            rotation: positions and table with which `pygpt.ops.rotary` turns queries and keys.
            decode: as in `pygpt.ops.attention` and `pygpt.ops.linear`, but not for a context's keys and values.
            options: of `pygpt.ops.attention`, such as ``causal=True``; ``dropout`` stands in the module.

        Returns:
            (batch, q_time, width); with ``return_weights`` or ``return_lse`` a tuple, as `pygpt.ops.attention` gives.

        Raises:
            ValueError: if a shape or an option does not fit.
        """
        dropout = self.dropout if self.training else 0.0
        if context is None and cache is None and rotation is None and self.q_norm is None:
            qkv = self._heads(self.qkv(x, decode), self.num_heads + 2 * self.num_kv_heads)
            attended = ops.attention_packed(
                qkv, self.num_heads, self.num_kv_heads, dropout=dropout, decode=decode, **options
            )
        else:
            q, k, v = self._project(x, context, decode, rotation)
            if cache is not None:
                k, v = cache.append(k, v)
            attended = ops.attention(q, k, v, dropout=dropout, decode=decode, **options)
        attended, extras = (attended[0], attended[1:]) if isinstance(attended, tuple) else (attended, ())
        out = self.out(attended.flatten(2), decode)  # (B, T, H, D) -> (B, T, C)
        return (out, *extras) if extras else out

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of a context (batch, k_time, width), (batch, k_time, kv_heads, head_dim) each.

        `forward` takes them in the context's place, so that a context that stays is projected once.
        """
        rows, bias = self.num_heads * self.head_dim, self.qkv.bias
        kv = ops.linear(context, self.qkv.weight[rows:], None if bias is None else bias[rows:])
        k, v = torch.split(self._heads(kv, 2 * self.num_kv_heads), self.num_kv_heads, dim=2)
        return k, v

    def _project(
        self,
        x: Tensor,
        context: Tensor | tuple[Tensor, Tensor] | None,
        decode: bool,
        rotation: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, T, H, D), keys and values (B, S, G, D), normalised and turned."""
        heads, kv_heads = self.num_heads, self.num_kv_heads
        if context is None:
            qkv = self._heads(self.qkv(x, decode), heads + 2 * kv_heads)  # (B, T, H + 2 G, D)
            if rotation is not None and self.q_norm is None:
                qk, v = torch.split(qkv, [heads + kv_heads, kv_heads], dim=2)
                q, k = torch.split(ops.rotary(qk, *rotation), [heads, kv_heads], dim=2)
                return q, k, v
            q, k, v = torch.split(qkv, [heads, kv_heads, kv_heads], dim=2)
        else:
            rows, bias = heads * self.head_dim, self.qkv.bias
            q = ops.linear(x, self.qkv.weight[:rows], None if bias is None else bias[:rows], decode=decode)
            q = self._heads(q, heads)
            k, v = context if isinstance(context, tuple) else self.keys_values(context)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = ops.rotary(q, *rotation), ops.rotary(k, *rotation)
        return q, k, v

    def _heads(self, projected: Tensor, heads: int) -> Tensor:
        return projected.view(*projected.shape[:-1], heads, self.head_dim)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"heads={self.num_heads}, kv_heads={self.num_kv_heads}, head_dim={self.head_dim}, dropout={self.dropout}"
