"""A GPT in plain PyTorch, with the parameters of one of ours."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pygpt import GPT

ACTIVATIONS = {"gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "gelu": F.gelu, "relu": F.relu}


def plain_logits(model: GPT, parameters: dict[str, Tensor], ids: Tensor) -> Tensor:
    """The logits (batch, time, vocab) of a model with these parameters, in their dtype; no dropout."""
    config, get = model.config, parameters.get
    time, heads, kv_heads, head_dim = ids.shape[1], config.num_heads, config.num_kv_heads, config.head_dim

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], get(f"{name}.weight"), get(f"{name}.bias"), config.layer_norm_eps)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, parameters[f"{name}.weight"], get(f"{name}.bias"))

    def attend(x: Tensor, name: str, window: int | None) -> Tensor:
        qkv = linear(x, f"{name}.qkv").view(*ids.shape, -1, head_dim).transpose(1, 2)
        q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
        k, v = (t.repeat_interleave(heads // kv_heads, dim=1) for t in (k, v))
        scores = q @ k.transpose(-1, -2) / math.sqrt(head_dim)
        age = torch.arange(time).view(-1, 1) - torch.arange(time)
        seen = (age >= 0) & (age < (time if window is None else window))
        weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
        return linear((weights @ v).transpose(1, 2).flatten(2), f"{name}.out")

    def feed_forward(x: Tensor, name: str) -> Tensor:
        return linear(ACTIVATIONS[config.activation](linear(x, f"{name}.up")), f"{name}.down")

    x = F.embedding(ids, parameters["token_embedding.weight"])
    if config.positions == "learned":
        x = x + parameters["position_embedding.weight"][:time]
    elif config.positions == "sinusoidal":
        table = torch.empty(time, config.embedding_dim, dtype=torch.float64)
        for t in range(time):
            for i in range(config.embedding_dim):
                angle = t / 10000 ** (i // 2 * 2 / config.embedding_dim)
                table[t, i] = math.cos(angle) if i % 2 else math.sin(angle)
        x = x + table.to(x.dtype)
    for layer in range(config.num_layers):
        name, window = f"blocks.{layer}", config.attention_windows[layer % len(config.attention_windows)]
        if config.norm == "pre":
            x = x + attend(norm(x, f"{name}.norm_1"), f"{name}.attention", window)
            x = x + feed_forward(norm(x, f"{name}.norm_2"), f"{name}.feed_forward")
        else:
            x = norm(x + attend(x, f"{name}.attention", window), f"{name}.norm_1")
            x = norm(x + feed_forward(x, f"{name}.feed_forward"), f"{name}.norm_2")
    if config.norm == "pre":
        x = norm(x, "norm")
    return F.linear(x, parameters["token_embedding.weight" if config.tie_head else "head.weight"])
