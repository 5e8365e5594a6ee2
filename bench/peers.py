"""GPT-2 in plain PyTorch, as one would write it today: what the whole-model rows of the benchmark are held against.

Parameters have the names and shapes of `pygpt.GPT`'s, so that both can have the same weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pygpt import GPTConfig

Cache = tuple[Tensor, Tensor]  # keys and values, (B, H, longest, D) each


class Attention(nn.Module):
    """Causal multi-head attention; with a cache, from ``start`` on."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, cache: Cache | None, start: int) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
        if cache is not None:
            for stored, new in zip(cache, (k, v), strict=True):
                stored[:, :, start : start + T] = new
            k, v = (stored[:, :, : start + T] for stored in cache)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1)  # (B, H, T, D)
        return self.out(mixed.transpose(1, 2).reshape(B, T, C))


class FeedForward(nn.Module):
    """Four times as wide inside, with GPT-2's GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    """Pre-norm attention, then pre-norm feed-forward, each added to the residual stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm_2 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width)

    def forward(self, x: Tensor, cache: Cache | None, start: int) -> Tensor:
        x = x + self.attention(self.norm_1(x), cache, start)
        return x + self.feed_forward(self.norm_2(x))


class PlainGPT(nn.Module):
    """Learned positions, a tied head, no dropout."""

    def __init__(self, config: GPTConfig, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        width = config.embedding_dim
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.position_embedding = nn.Embedding(config.context_length, width)
        self.blocks = nn.ModuleList(Block(width, config.num_heads) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(width)
        self.to(dtype)

    def hidden(self, ids: Tensor, caches: list[Cache] | None = None, start: int = 0) -> Tensor:
        """What the head sees, (B, T, C)."""
        x = self.token_embedding(ids) + self.position_embedding.weight[start : start + ids.shape[1]]
        for layer, block in enumerate(self.blocks):
            x = block(x, caches[layer] if caches else None, start)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.token_embedding.weight)

    def forward(self, ids: Tensor) -> Tensor:
        return self.logits(self.hidden(ids))

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self(ids).flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def generate(self, ids: Tensor, max_new_tokens: int) -> Tensor:
        """Greedy, with a preallocated key/value cache."""
        B, T = ids.shape
        weight, heads = self.token_embedding.weight, self.blocks[0].attention.heads
        shape = (B, heads, T + max_new_tokens, weight.shape[1] // heads)
        caches = [(weight.new_empty(shape), weight.new_empty(shape)) for _ in self.blocks]
        out, new, start = ids, ids, 0
        for _ in range(max_new_tokens):
            logits = self.logits(self.hidden(new, caches, start)[:, -1])  # (B, V)
            start = out.shape[1]
            new = logits.argmax(dim=-1, keepdim=True)
            out = torch.cat([out, new], dim=1)
        return out
