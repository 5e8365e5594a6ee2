"""The float64 references against torch's own functions, and, for what torch has not, against a loop over scores."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.nn import functional as F

from pygpt import reference
from tests.support import normal, random_generator

DOUBLE = torch.float64


def close(ours, theirs):
    assert ours.dtype == DOUBLE
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("with_bias", [True, False])
def test_layer_norm(generator, with_bias):
    x, weight = normal(generator, 3, 4, 7, dtype=DOUBLE), normal(generator, 7, dtype=DOUBLE)
    bias = normal(generator, 7, dtype=DOUBLE) if with_bias else None
    close(reference.layer_norm(x, weight, bias, 1e-3), F.layer_norm(x, (7,), weight, bias, 1e-3))
    out, total = reference.add_layer_norm(x, x.flip(0), weight, bias)
    close(total, x + x.flip(0))
    close(out, F.layer_norm(total, (7,), weight, bias))


def test_rms_norm(generator):
    x, weight = normal(generator, 3, 4, 7, dtype=DOUBLE), normal(generator, 7, dtype=DOUBLE)
    close(reference.rms_norm(x, weight, 1e-3), F.rms_norm(x, (7,), weight, 1e-3))
    out, total = reference.add_rms_norm(x, x.flip(0), weight, 1e-3)
    close(total, x + x.flip(0))
    close(out, F.rms_norm(total, (7,), weight, 1e-3))


def test_rotary(generator):
    """Pairs are complex numbers, which are multiplied by e^(i angle)."""
    x, angles = normal(generator, 2, 3, 4, 10, dtype=DOUBLE), normal(generator, 6, 5, dtype=DOUBLE)
    positions = torch.tensor([[4, 0, 5], [1, 1, 2]])
    out = reference.rotary(x, positions, torch.cat([angles.cos(), angles.sin()], dim=-1))
    turn = torch.polar(torch.ones_like(angles), angles)[positions].unsqueeze(2)
    turned = torch.complex(*x.chunk(2, dim=-1)) * turn
    close(out, torch.cat([turned.real, turned.imag], dim=-1))


def test_gated_product(generator):
    gate, up = normal(generator, 3, 7, dtype=DOUBLE), normal(generator, 3, 7, dtype=DOUBLE)
    close(reference.gated_product(gate, up), F.silu(gate) * up)
    close(reference.gated_product(gate, up, "gelu_tanh"), F.gelu(gate, approximate="tanh") * up)


@pytest.mark.parametrize(
    "name, peer",
    [
        (None, lambda x: x),
        ("gelu", F.gelu),
        ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh")),
        ("relu", F.relu),
    ],
)
def test_linear_and_feed_forward(generator, name, peer):
    x, residual = normal(generator, 2, 5, 3, dtype=DOUBLE), normal(generator, 2, 5, 4, dtype=DOUBLE)
    weight, bias = normal(generator, 4, 3, dtype=DOUBLE), normal(generator, 4, dtype=DOUBLE)
    w_out, b_out = normal(generator, 6, 4, dtype=DOUBLE), normal(generator, 6, dtype=DOUBLE)
    hidden = peer(F.linear(x, weight, bias))
    close(reference.linear(x, weight, bias, name, residual), hidden + residual)
    close(reference.feed_forward(x, weight, bias, w_out, b_out, name), F.linear(hidden, w_out, b_out))
    close(reference.feed_forward(x, weight, None, w_out, None, name), F.linear(peer(F.linear(x, weight)), w_out))


def test_small_inputs_are_upcast_first(generator):
    x, weight = normal(generator, 5, 3, dtype=torch.bfloat16), normal(generator, 4, 3, dtype=torch.bfloat16)
    close(reference.linear(x, weight), F.linear(x.double(), weight.double()))


def slow_attention(q, k, v, seen, *, scale, softcap=None, bias=None, keep=None, p=0.0):
    """Attention by Python loops; seen[b][h][i] is the list of visible keys."""
    batch, q_time, heads, _ = q.shape
    group = heads // k.shape[2]
    out, lse = torch.zeros_like(q), torch.full((batch, heads, q_time), -math.inf, dtype=DOUBLE)
    weights = torch.zeros(batch, heads, q_time, k.shape[1], dtype=DOUBLE)
    for b in range(batch):
        for h in range(heads):
            for i in range(q_time):
                score = {}
                for j in seen[b][h][i]:
                    x = scale * float(q[b, i, h] @ k[b, j, h // group])
                    x = x if softcap is None else softcap * math.tanh(x / softcap)
                    x = x if bias is None else x + float(bias[b, h, i, j])
                    if x != -math.inf:
                        score[j] = x
                if not score:
                    continue
                lse[b, h, i] = torch.logsumexp(torch.tensor(list(score.values()), dtype=DOUBLE), 0)
                for j, x in score.items():
                    weights[b, h, i, j] = math.exp(x - lse[b, h, i])
                    kept = 1.0 if keep is None else float(keep[b, h, i, j]) / (1 - p)
                    out[b, i, h] += weights[b, h, i, j] * kept * v[b, j, h // group]
    return out, weights, lse


@given(
    q_time=st.integers(0, 5),
    k_time=st.integers(0, 6),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 2),
    causal=st.sampled_from([False, True, "bottom_right", "top_left"]),
    window=st.none() | st.integers(1, 4),
    softcap=st.none() | st.floats(0.5, 5),
    place=st.sampled_from(["alone", "key_lengths", "query_start", "both"]),
    extras=st.sampled_from(["nothing", "mask", "bias", "dropout"]),
)
@example(3, 5, 2, 2, True, 2, 1.5, "both", "mask")
@example(4, 0, 1, 1, False, None, None, "alone", "nothing")
@example(0, 3, 1, 2, True, None, None, "alone", "bias")
def test_attention_option_by_option(q_time, k_time, kv_heads, group, causal, window, softcap, place, extras):
    generator = random_generator()
    batch, heads, head_dim = 2, kv_heads * group, 3
    q = normal(generator, batch, q_time, heads, head_dim, dtype=DOUBLE)
    k, v = (normal(generator, batch, k_time, kv_heads, head_dim, dtype=DOUBLE) for _ in range(2))
    options: dict = {"causal": causal, "window": window, "softcap": softcap, "scale": 0.7}
    lengths = starts = None
    if place in ("key_lengths", "both"):
        lengths = torch.randint(0, k_time + 1, (batch,), generator=generator)
    if place in ("query_start", "both"):
        starts = torch.randint(0, k_time + 1, (batch,), generator=generator)
    mask = bias = keep = None
    if extras == "mask":
        mask = torch.rand(heads, 1, k_time, generator=generator) < 0.5
    if extras == "bias":
        bias = normal(generator, batch, 1, q_time, k_time, dtype=DOUBLE)
        bias[bias > 0.8] = -math.inf
    if extras == "dropout":
        keep = torch.rand(batch, heads, q_time, k_time, generator=generator) < 0.6

    def visible(b: int, h: int, i: int, j: int) -> bool:
        diagonal = i + k_time - q_time
        if starts is not None:
            diagonal = i + int(starts[b])
        elif causal == "top_left":
            diagonal = i
        if causal and j > diagonal:
            return False
        if window is not None and abs(j - diagonal) >= window:
            return False
        if lengths is not None and j >= int(lengths[b]):
            return False
        return mask is None or bool(mask[h, 0, j])

    every = range(k_time)
    seen = [[[[j for j in every if visible(b, h, i, j)] for i in range(q_time)] for h in range(heads)] for b in (0, 1)]
    theirs = slow_attention(
        q,
        k,
        v,
        seen,
        scale=0.7,
        softcap=softcap,
        bias=None if bias is None else bias.expand(batch, heads, q_time, k_time),
        keep=keep,
        p=0.4,
    )
    if keep is not None:
        options |= {"dropout": 0.4, "keep": keep}
    options |= {"key_lengths": lengths, "query_start": starts, "mask": mask, "bias": bias}
    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    ours = reference.attention(*leaves, **options, return_weights=True, return_lse=True)
    for mine, right in zip(ours, theirs, strict=True):
        close(mine.detach(), right)
    assert not ours[1].requires_grad
    for gradient in torch.autograd.grad(ours[0].sum(), leaves):
        assert gradient.isfinite().all()


def test_attention_equals_torchs(generator):
    q, k, v = (normal(generator, 2, 5, 3, 4, dtype=DOUBLE) for _ in range(3))
    theirs = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), is_causal=True)
    close(reference.attention(q, k, v, causal=True), theirs.transpose(1, 2))


def test_packed_documents_are_the_documents_alone(generator):
    q, k, v = (normal(generator, 1, 9, 2, 4, dtype=DOUBLE) for _ in range(3))
    cuts = [0, 4, 4, 5, 9]
    options: dict = {"causal": True, "window": 3}
    packed = reference.attention(q, k, v, cu_seqlens=torch.tensor(cuts), **options)
    for begin, end in itertools.pairwise(cuts):
        alone = reference.attention(*(t[:, begin:end] for t in (q, k, v)), **options)
        close(packed[:, begin:end], alone)


def test_hidden_memory_may_hold_anything(generator):
    q, k, v = (normal(generator, 2, 4, 2, 3, dtype=DOUBLE) for _ in range(3))
    lengths = torch.tensor([2, 0])
    clean = reference.attention(q, k, v, key_lengths=lengths)
    for b, length in enumerate(lengths.tolist()):
        k[b, length:], v[b, length:] = math.nan, math.inf
    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    out = reference.attention(*leaves, key_lengths=lengths)
    close(out.detach(), clean)
    assert (out[1] == 0).all()
    for gradient in torch.autograd.grad(out.sum(), leaves):
        assert gradient.isfinite().all()


def test_embedding_add_dropout(generator):
    table, ids = normal(generator, 7, 3, dtype=DOUBLE), torch.tensor([[0, 6], [2, 2]])
    close(reference.embedding(ids, table), F.embedding(ids, table))
    close(reference.add(table, table[0]), table + table[0])
    keep = torch.rand(7, 3, generator=generator) < 0.5
    close(reference.dropout(table, 0.25, keep), table * keep / 0.75)
    close(reference.dropout(table, 1.0, keep), torch.zeros_like(table))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy(generator, reduction):
    hidden, weight = normal(generator, 2, 5, 3, dtype=DOUBLE), normal(generator, 7, 3, dtype=DOUBLE)
    bias, logits = normal(generator, 7, dtype=DOUBLE), normal(generator, 2, 5, 7, dtype=DOUBLE) * 50
    targets = torch.randint(0, 7, (2, 5), generator=generator)
    targets[0, 1] = -1
    options: dict = {"ignore_index": -1, "reduction": reduction}
    close(
        reference.cross_entropy(logits, targets, **options), F.cross_entropy(logits.transpose(1, 2), targets, **options)
    )
    close(
        reference.linear_cross_entropy(hidden, weight, targets, bias, **options),
        F.cross_entropy(F.linear(hidden, weight, bias).transpose(1, 2), targets, **options),
    )


def test_cross_entropy_of_nothing_is_zero(generator):
    logits = normal(generator, 4, 7, dtype=DOUBLE).requires_grad_()
    loss = reference.cross_entropy(logits, torch.full((4,), -100))
    loss.backward()
    assert float(loss.detach()) == 0 and (logits.grad == 0).all()


def test_grad_norm(generator):
    tensors = [normal(generator, 3, 4), normal(generator, 5), torch.zeros(0)]
    close(reference.grad_norm(tensors), torch.cat([t.flatten().double() for t in tensors]).norm())
    assert float(reference.grad_norm([])) == 0


def test_adamw(generator):
    theirs = torch.nn.Parameter(normal(generator, 3, 4, dtype=DOUBLE))
    ours, moments = theirs.detach().clone(), (torch.zeros(3, 4), torch.zeros(3, 4))
    optimizer = torch.optim.AdamW([theirs], lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.3)
    for step in range(1, 4):
        theirs.grad = normal(generator, 3, 4, dtype=DOUBLE)
        optimizer.step()
        ours, *moments = reference.adamw(ours, theirs.grad, *moments, step, 0.1, (0.8, 0.9), 1e-3, 0.3)
        close(ours, theirs.detach())


def test_sample_follows_the_stated_order():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=DOUBLE).log()
    close(reference.sample(logits), logits.exp())
    close(reference.sample(logits, temperature=0.5), logits.exp().square() / 0.3)
    close(reference.sample(logits, top_k=2), torch.tensor([[4, 3, 0, 0]], dtype=DOUBLE) / 7)
    close(reference.sample(logits, top_p=0.69), torch.tensor([[4, 3, 0, 0]], dtype=DOUBLE) / 7)
    close(reference.sample(logits, top_p=0.71), torch.tensor([[4, 3, 2, 0]], dtype=DOUBLE) / 9)
    close(reference.sample(logits, min_p=0.6), torch.tensor([[4, 3, 0, 0]], dtype=DOUBLE) / 7)
    # after top-k the probabilities are 4/7 and 3/7: the first alone reaches 0.5
    close(reference.sample(logits, top_k=2, top_p=0.5), torch.tensor([[1, 0, 0, 0]], dtype=DOUBLE))
    tied = torch.tensor([[1, 3, 3, 2]], dtype=DOUBLE)
    first = torch.tensor([[0, 1, 0, 0]], dtype=DOUBLE)
    close(reference.sample(tied, temperature=0), first)
    close(reference.sample(tied, top_k=1), first)


def test_repetition_penalty():
    logits = torch.tensor([2.0, -2.0, 3.0, -3.0])
    penalised = reference.repetition_penalty(logits, torch.tensor([0, 1, 1, 0]), 2.0)
    close(penalised, torch.tensor([1.0, -4.0, 3.0, -3.0], dtype=DOUBLE))
