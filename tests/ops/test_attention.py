from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.nn import functional as F

import pygpt
from pygpt import ops, reference
from tests.support import (
    assert_accurate,
    assert_bits_hold,
    assert_same_bits,
    dtypes_of,
    gradients,
    normal,
    random_generator,
    strided,
    unaligned,
)

KEY_TILE = 64  # of the CPU kernels; sizes around it are worth trying
CAUSALS = [False, True, "bottom_right", "top_left"]


def qkv(generator, batch=2, q_time=5, k_time=7, heads=2, kv_heads=2, head_dim=8, dtype=torch.float32):
    q = normal(generator, batch, q_time, heads, head_dim, dtype=dtype)
    k, v = (normal(generator, batch, k_time, kv_heads, head_dim, dtype=dtype) for _ in range(2))
    return q, k, v


def doubled(option):
    return option.double() if isinstance(option, torch.Tensor) and option.is_floating_point() else option


def plain_attention(q, k, v, *, bias=None, **options):
    """PyTorch's own operations in the dtype of the inputs, with the scores held: the peer in accuracy."""
    group = q.shape[2] // k.shape[2]
    seen = reference.visible_keys(
        q.shape[1],
        k.shape[1],
        q.shape[0],
        **{
            name: options[name]
            for name in ("causal", "key_lengths", "query_start", "cu_seqlens", "window")
            if name in options
        },
    ).unsqueeze(1)
    if options.get("mask") is not None:
        seen = seen & options["mask"]
    keys, values = (t.repeat_interleave(group, dim=2).transpose(1, 2) for t in (k, v))
    scores = q.transpose(1, 2) @ keys.transpose(2, 3) * options.get("scale", q.shape[-1] ** -0.5)
    if options.get("softcap") is not None:
        scores = options["softcap"] * torch.tanh(scores / options["softcap"])
    if bias is not None:
        scores = scores + bias
    scores = scores.masked_fill(~seen, -math.inf)
    blind = (scores == -math.inf).all(dim=-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(blind, 0.0), dim=-1).masked_fill(blind, 0.0).to(q.dtype)
    return (weights @ values).transpose(1, 2)


def check_against_reference(q, k, v, what, *, bias=None, keep=None, grad=None, **options):
    """Output, log-sum-exp and all gradients, beside the reference and PyTorch's operations."""
    generator = random_generator()
    grad = normal(generator, *q.shape, dtype=q.dtype) if grad is None else grad
    grad_lse = normal(generator, q.shape[0], q.shape[2], q.shape[1])

    def ours(q, k, v, bias):
        return ops.attention(q, k, v, bias=bias, return_lse=True, **options)

    def exact(q, k, v, bias):
        known = {name: value for name, value in options.items() if name != "seed"}
        out, lse = reference.attention(q, k, v, bias=bias, keep=keep, return_lse=True, **known)
        return out, lse

    inputs = [q, k, v, bias]
    unseen = exact(*(doubled(t) for t in inputs))[1] == -math.inf
    grad_lse[unseen] = 0
    (out, lse), grads = gradients(ours, inputs, [grad, grad_lse])
    (right, right_lse), right_grads = gradients(exact, [doubled(t) for t in inputs], [grad.double(), grad_lse.double()])
    assert torch.equal(lse == -math.inf, unseen), what
    assert_accurate(lse.masked_fill(unseen, 0), right_lse.masked_fill(unseen, 0), None, f"{what}: lse")
    peers = [None] * (1 + len(grads))
    if keep is None and q.dtype != torch.float64:
        mixed = bias is not None and bias.dtype != q.dtype
        peer, peer_grads = gradients(
            lambda q, k, v, bias: plain_attention(q, k, v, bias=bias, **options),
            [q, k, v, bias.to(q.dtype) if mixed else bias],
            [grad],
        )
        without_lse = gradients(lambda *x: exact(*x)[0], [doubled(t) for t in inputs], [grad.double()])[1]
        # PyTorch's errors stand for the same gradients without the part that comes through lse.
        peers = [peer, *(p.double() - r + w for p, r, w in zip(peer_grads, without_lse, right_grads, strict=True))]
    names = ["out", "grad_q", "grad_k", "grad_v", "grad_bias"]
    for name, mine, theirs, peer in zip(names, [out, *grads], [right, *right_grads], peers, strict=False):
        assert_accurate(mine, theirs, peer, f"{what}: {name}")
