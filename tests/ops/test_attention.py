from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import pygpt
from pygpt import ops, reference
from pygpt.extension import C
from tests.philox import attention_mask
from tests.support import (
    EMULATED,
    assert_accurate,
    assert_bits_hold,
    assert_same_bits,
    dtypes_of,
    gradients,
    launches_of,
    normal,
    on_the_cpu,
    random_generator,
    smaller,
    strided,
    unaligned,
)

ROOT = Path(__file__).parents[2]


def refused(implementation, reason, *tensors, **options):
    """Whether the entry leaves these options to others; it then raises with its reason."""
    if implementation != "cuda_sm90":
        return False
    ops.attention(*tensors)
    with pytest.raises(ValueError, match=f"cuda_sm90: {reason}"):
        ops.attention(*tensors, **options)
    return True


def draw_qkv(generator, batch=2, q_time=5, k_time=7, heads=2, kv_heads=2, head_dim=8, dtype=torch.float32):
    q = normal(generator, batch, q_time, heads, head_dim, dtype=dtype)
    k, v = (normal(generator, batch, k_time, kv_heads, head_dim, dtype=dtype) for _ in range(2))
    return q, k, v


def seen_by(q, k, mask=None, **positions):
    """Which keys each query may see: bool, broadcasts to (batch, heads, q_time, k_time)."""
    seen = reference.visible_keys(q.shape[1], k.shape[1], q.shape[0], **positions).unsqueeze(1)
    return seen if mask is None else seen & mask


def plain_attention(q, k, v, bias=None, *, scale=None, softcap=None, dropout=0.0, keep=None, **visible):
    """PyTorch's operations in the dtype of the inputs. Also gives the log-sum-exp."""
    seen = seen_by(q, k, **visible)
    k, v = (t.repeat_interleave(q.shape[2] // k.shape[2], dim=2).transpose(1, 2) for t in (k, v))
    scores = q.transpose(1, 2) @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    scores = scores if bias is None else scores + bias.to(q.dtype)
    scores = scores.masked_fill(~seen, -math.inf)
    blind = (scores == -math.inf).all(dim=-1, keepdim=True)
    scores = scores.masked_fill(blind, 0.0)
    weights = torch.softmax(scores, dim=-1).masked_fill(blind, 0.0)
    weights = weights if keep is None else weights * keep / (1 - dropout)
    return (weights @ v).transpose(1, 2), torch.logsumexp(scores, dim=-1).masked_fill(blind.squeeze(-1), -math.inf)


def torch_attention(q, k, v, bias=None, *, scale=None, **visible):
    """PyTorch's own fused attention, which keeps the log-sum-exp in the same precision as we do."""
    added = torch.zeros(()) if bias is None else bias
    added = added.to(q.dtype).masked_fill(~seen_by(q, k, **visible), -math.inf)
    added = added.expand(-1, q.shape[2], q.shape[1], k.shape[1])
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, added, scale=scale, enable_gqa=True).transpose(1, 2)


def check_against_reference(q, k, v, bias=None, keep=None, seed=None, **options):
    """The output, its gradients, and the log-sum-exp."""
    grad = normal(random_generator(), *q.shape, dtype=q.dtype)

    def ours(q, k, v, bias):
        return ops.attention(q, k, v, bias=bias, seed=seed, return_lse=True, **options)

    def exact(q, k, v, bias):
        return reference.attention(q, k, v, bias=bias, keep=keep, return_lse=True, **options)

    def plain(q, k, v, bias):
        return plain_attention(q, k, v, bias, keep=keep, **options)

    def mirrored(q, k, v, bias):
        out, lse = plain(q.flip(-1), k.flip(-1), v.flip(-1), bias)
        return out.flip(-1), lse

    def results(function, inputs):
        (out,), grads = gradients(lambda *x: function(*x)[0], inputs, [grad.to(inputs[0].dtype)])
        return [out, function(*inputs)[1], *grads]

    inputs = [q, k, v, bias]
    mine = results(ours, inputs)
    right = results(exact, [None if x is None else x.double() for x in inputs])
    peers = [
        results(plain, inputs),
        results(mirrored, inputs),
    ]  # an error is luck; two orders of summation, two samples
    blind = right[1] == -math.inf
    assert torch.equal(mine[1] == -math.inf, blind)
    for each in (mine, right, *peers):
        each[1] = each[1].masked_fill(blind, 0)
    if keep is None and options.get("softcap") is None and not blind.any() and blind.numel():
        visible = {name: option for name, option in options.items() if name != "softcap"}
        (out,), grads = gradients(lambda *x: torch_attention(*x, bias, **visible), inputs[:3], [grad])
        peers.append([out, peers[0][1], *grads, *peers[0][5:]])
    if q.dtype == torch.float64:  # the reference is no better
        torch.testing.assert_close(mine[0], right[0], rtol=1e-12, atol=1e-12)
        for ours_64, exact_64 in zip(mine[2:], right[2:], strict=True):  # a float32 bias has a float32 gradient
            rounding = 1e-12 if ours_64.dtype == torch.float64 else 1e-6
            torch.testing.assert_close(ours_64.double(), exact_64, rtol=rounding, atol=rounding)
        return

    def compare(what, ours, exact, *theirs, roundings=4.0):
        farthest = max(theirs, key=lambda x: float((x.double() - exact).abs().max()) if x.numel() else 0)
        assert_accurate(ours, exact, farthest, f"{what}, {q.dtype}", roundings)

    # A weight's relative error is the error of its score, which is at most this: roundings of a number, not of 1, in
    # float32 whatever the inputs are.
    largest_score = max(0.0, float(right[1].max())) if right[1].numel() else 0.0
    of_scores = largest_score * torch.finfo(torch.float32).eps / torch.finfo(q.dtype).eps
    compare("out", mine[0], right[0], *(peer[0] for peer in peers), roundings=4 + of_scores)
    compare("lse", mine[1], right[1], *(peer[1] for peer in peers))

    # The gradients as one, each divided by its largest value (to a power of two) if that is above 1, and beside what
    # came in: luck evens out over more elements, and the error of one that cancels to almost nothing says little (a
    # bias that is the same for all keys has a gradient of zero and its rounding).
    # Where every query sees one key, the gradients of q and k are zero, and what is left is rounding, of every query.
    def size_of(gradient):
        largest = float(gradient.abs().max()) if gradient.numel() else 1.0
        terms = q.shape[1] * q.shape[2] / k.shape[2]
        return 2.0 ** max(0, math.frexp(largest)[1]) if largest > 0 else max(1.0, terms**0.5)

    sizes = [size_of(x) for x in right[2:]]

    def together(results, dtype=q.dtype):
        scaled = [x / size for x, size in zip(results[2:], sizes, strict=True)]
        terms = grad * q.shape[-1] ** 0.5  # of the size of grad_out · v, whose differences the gradients are made of
        return torch.cat([x.flatten().to(dtype) for x in (terms, *scaled)])

    compare("gradients", together(mine), together(right, torch.float64), *(together(peer) for peer in peers))


@settings(max_examples=smaller(10, 4))
@given(
    sizes=st.tuples(
        st.integers(0, 2),  # batch
        st.sampled_from([0, 1, 2, 5, 47, 49, 97, 130]),  # q_time
        st.sampled_from([0, 1, 3, 63, 64, 65, 130]),  # k_time
        st.integers(1, 2),  # key/value heads
        st.integers(1, 3),  # query heads for each
        st.sampled_from([1, 2, 7, 16, 33, 64, 80]),  # head_dim
    ),
    causal=st.sampled_from([False, True, "bottom_right", "top_left"]),
    window=st.none() | st.sampled_from([1, 2, 20, 70, 2**62]),
    softcap=st.none() | st.floats(0.5, 50),
    scale=st.none() | st.sampled_from([0.0, -0.7, 0.3, 1.0]),
    places=st.sampled_from(["whole", "key_lengths", "query_start", "both"]),
    extra=st.sampled_from(["", "mask", "mask by head", "bias", "float32 bias", "bias by key", "bias by head"]),
)
@example((1, 130, 130, 2, 1, 256), True, 70, None, None, "whole", "")
@example((2, 65, 150, 1, 3, 40), True, None, 20.0, None, "both", "bias")
@example((2, 97, 65, 1, 1, 7), False, 20, None, None, "whole", "bias by key")
def test_options(implementation, sizes, causal, window, softcap, scale, places, extra):
    generator = random_generator()
    batch, q_time, k_time, kv_heads, group, head_dim = sizes
    heads = kv_heads * group
    if implementation == "cuda_sm90":  # the others have tests of their own
        extra, head_dim = "", min(head_dim, 128)
        scale = scale if scale is None or scale > 0 else 0.4
    options = {"causal": causal, "window": window, "softcap": softcap, "scale": scale}
    if places in ("key_lengths", "both"):
        options["key_lengths"] = torch.randint(0, k_time + 1, (batch,), generator=generator)
    if places in ("query_start", "both"):
        options["query_start"] = torch.randint(0, k_time + 3, (batch,), generator=generator)
    if extra == "mask":
        options["mask"] = torch.randint(0, 2, (q_time, k_time), generator=generator).bool()
    if extra == "mask by head":
        options["mask"] = torch.randint(0, 2, (batch, heads, 1, 1), generator=generator).bool()
    bias_shape = {
        "bias": (batch, heads, q_time, k_time),
        "float32 bias": (heads, q_time, k_time),
        "bias by key": (batch, 1, 1, k_time),
        "bias by head": (heads, 1, 1),
    }.get(extra)
    for dtype in dtypes_of(implementation):
        q, k, v = draw_qkv(generator, batch, q_time, k_time, heads, kv_heads, head_dim, dtype)
        bias = None
        if bias_shape is not None:
            bias = normal(generator, *bias_shape, dtype=torch.float32 if extra == "float32 bias" else dtype)
            if extra == "bias":
                bias[bias > 1] = -math.inf
        check_against_reference(q, k, v, bias, **options)


def test_packed_documents(implementation, generator):
    lengths = [0, 1, 70, 130, 0, 3]
    bounds = [0, *np.cumsum(lengths).tolist()]
    cu_seqlens = torch.tensor(bounds)
    for dtype in dtypes_of(implementation):
        for causal, window in ((True, None), (False, None), (True, 33)):
            q, k, v = draw_qkv(generator, 1, bounds[-1], bounds[-1], 4, 2, 20, dtype)
            options = {"causal": causal, "window": window}
            check_against_reference(q, k, v, cu_seqlens=cu_seqlens, **options)
            grad = normal(generator, *q.shape, dtype=dtype)
            if implementation != "cuda_sm90":
                options |= {"dropout": 0.3}

            def packed(q, k, v, options=options):
                return ops.attention(q, k, v, cu_seqlens=cu_seqlens, seed=5, **options)

            (out,), grads = gradients(packed, [q, k, v], [grad])
            for document, (begin, end) in enumerate(itertools.pairwise(bounds)):
                part = slice(begin, end)

                def alone(q, k, v, document=document, options=options):
                    return ops.attention(q, k, v, seed=5 + document, **options)

                (own,), own_grads = gradients(alone, [x[:, part] for x in (q, k, v)], [grad[:, part]])
                for a, b in zip([out, *grads], [own, *own_grads], strict=True):
                    assert_same_bits(a[:, part], b, f"document {document}, causal {causal}, window {window}")


def all_results(q, k, v, bias=None, grad=None, **options):
    """The output, the log-sum-exp, and the gradients of everything (through the output)."""
    grad = torch.ones_like(q) if grad is None else grad

    def run(*tensors):
        return ops.attention(*tensors[:3], bias=tensors[3], return_lse=True, **options)

    outputs, grads = gradients(run, [q, k, v, bias], [grad, torch.zeros(q.shape[0], q.shape[2], q.shape[1])])
    return [*outputs, *grads]


def test_bits_do_not_depend_on_threads_or_mode(implementation, generator):
    for dtype in dtypes_of(implementation):
        time = smaller(150, 70)
        q, k, v = draw_qkv(generator, 2, time, time, 4, 2, 24, dtype)
        v[0] *= 1e-38  # outputs among the denormals
        bias = normal(generator, 1, 4, time, 1, dtype=dtype)
        grad = normal(generator, *q.shape, dtype=dtype)
        options = {"causal": True, "dropout": 0.2, "seed": 3, "softcap": 30.0}
        if implementation == "cuda_sm90":
            bias, options["dropout"] = None, 0.0
        assert_bits_hold(lambda a=(q, k, v, bias, grad), o=options: all_results(*a, **o), f"{dtype}")


def test_bits_do_not_depend_on_batch_padding_or_strides(implementation, generator):
    lengths = torch.tensor([70, 129, 1])
    for dtype in dtypes_of(implementation):
        q, k, v = draw_qkv(generator, 3, 140, 140, 4, 2, 24, dtype)
        grad = normal(generator, *q.shape, dtype=dtype)
        for row, length in enumerate(lengths):  # the padding holds anything
            k[row, length:], v[row, length:], grad[row, length:] = math.nan, math.inf, 0
        options = {"causal": "top_left", "dropout": 0.0 if implementation == "cuda_sm90" else 0.2}
        batch = all_results(q, k, v, grad=grad, key_lengths=lengths, seed=8, **options)
        packed = torch.stack([q, k.repeat(1, 1, 2, 1), v.repeat(1, 1, 2, 1)], dim=2)  # as a joint projection gives them
        kv = packed[:, :, 1, :2], packed[:, :, 2, :2]
        for a, b in zip(
            batch,
            all_results(packed[:, :, 0], *kv, grad=strided(grad), key_lengths=lengths, seed=8, **options),
            strict=True,
        ):
            assert_same_bits(a, b, f"{dtype}, other strides")
        for a, b in zip(
            batch,
            all_results(
                unaligned(q), unaligned(k), unaligned(v), grad=unaligned(grad), key_lengths=lengths, seed=8, **options
            ),
            strict=True,
        ):
            assert_same_bits(a, b, f"{dtype}, unaligned")
        for row, length in enumerate(lengths):
            one = slice(row, row + 1), slice(0, int(length))
            alone = all_results(q[one], k[one], v[one], grad=grad[one], seed=8 + row, **options)
            for a, b in zip((batch[0], *batch[2:]), (alone[0], *alone[2:]), strict=True):
                assert_same_bits(a[one], b, f"{dtype}, row {row}")
            for gradient in batch[3:]:
                assert (gradient[row, length:] == 0).all(), "padding has no gradient"


@pytest.mark.parametrize("head_dim", [24, 64])
def test_one_packed_tensor_gives_the_bits_of_its_parts(implementation, generator, head_dim):
    for dtype in dtypes_of(implementation):
        q, k, v = draw_qkv(generator, 2, 70, 70, 4, 2, head_dim, dtype)
        grads = [normal(generator, *q.shape, dtype=dtype), normal(generator, 2, 4, 70)]
        options = {"causal": True, "key_lengths": torch.tensor([70, 33]), "return_lse": True}

        def packed(qkv, options=options):
            return ops.attention_packed(qkv, 4, 2, **options)

        def parts(q, k, v, options=options):
            return ops.attention(q, k, v, **options)

        outs, (grad,) = gradients(packed, [torch.cat([q, k, v], dim=2)], grads)
        right_outs, right_grads = gradients(parts, [q, k, v], grads)
        for mine, right in zip([*outs, grad], [*right_outs, torch.cat(right_grads, dim=2)], strict=True):
            assert_same_bits(mine, right, f"{dtype}")


@pytest.mark.parametrize("window", [None, 50])
def test_bits_do_not_depend_on_the_cache_or_the_split_of_a_prompt(implementation, generator, window):
    time, capacity = 150, 200
    for dtype in dtypes_of(implementation):
        q, k, v = draw_qkv(generator, 2, time, time, 6, 2, 40, dtype)
        whole = ops.attention(q, k, v, causal=True, window=window, softcap=10.0)
        cache = [torch.full((2, capacity, 2, 40), math.nan, dtype=dtype) for _ in range(2)]
        begin = 0
        for end in (1, 2, 65, 130, 131, 132, 150):
            cache[0][:, begin:end], cache[1][:, begin:end] = k[:, begin:end], v[:, begin:end]
            start = torch.full((2,), begin)
            part = ops.attention(q[:, begin:end], *cache, causal=True, query_start=start, window=window, softcap=10.0)
            assert_same_bits(part, whole[:, begin:end], f"{dtype}, queries {begin} to {end} from the cache")
            begin = end
        for row, length in ((0, 77), (1, 130)):  # a step of a ragged batch: each row has its own number of tokens
            start = torch.tensor([77, 130])
            ragged = [x.clone() for x in cache]
            for b in range(2):
                for x in ragged:
                    x[b, start[b] + 1 :] = math.nan
            step = ops.attention(
                torch.stack([q[0, 77:78], q[1, 130:131]]),
                *ragged,
                causal=True,
                query_start=start,
                window=window,
                softcap=10.0,
            )
            assert_same_bits(step[row], whole[row, length : length + 1], f"{dtype}, step of row {row}")


def test_queries_that_see_nothing_give_zeros(implementation, generator):
    for dtype in dtypes_of(implementation):
        q, k, v = draw_qkv(generator, 2, 70, 70, 2, 1, 12, dtype)
        nothing = torch.full_like(k, math.nan)
        bias = torch.full((70, 1), -math.inf)
        for options in (
            {"key_lengths": torch.tensor([0, 0])},
            {"mask": torch.zeros(1, 1, dtype=torch.bool)},
            {"bias": bias},
            {"causal": True, "query_start": torch.tensor([200, 200]), "window": 3},
        ):
            if implementation == "cuda_sm90" and ("mask" in options or "bias" in options):
                continue
            hidden = (nothing, nothing) if "mask" not in options and "bias" not in options else (k, v)
            out, lse, *grads = all_results(q, *hidden, **options)
            assert (lse == -math.inf).all() and lse.dtype == torch.float32
            for tensor in (out, *grads):
                assert (tensor == 0).all(), f"{dtype}, {options}"
        out, lse, *grads = all_results(q, k[:, :0], v[:, :0], causal=True)
        assert (out == 0).all() and (lse == -math.inf).all() and (grads[0] == 0).all()
        assert ops.attention(q[:0], k[:0], v[:0]).shape == (0, 70, 2, 12)
        assert ops.attention(q[:, :0], k, v).shape == (2, 0, 2, 12)
        empty = q[:, :0].detach().requires_grad_()
        ops.attention(empty, k, v).sum().backward()  # of a gradient with strides of 0
        assert empty.grad.shape == empty.shape


def test_nan_stays_in_its_sequence(implementation, generator):
    q, k, v = draw_qkv(generator, 2, 70, 70, dtype=dtypes_of(implementation)[0])
    clean = all_results(q, k, v, causal=True)
    for poisoned in (q, k, v):
        poisoned[1, 40] = math.nan
    for a, b in zip(clean, all_results(q, k, v, causal=True), strict=True):
        assert_same_bits(a[:1], b[:1], "the row beside it")
        assert b[1].isnan().any()
    q, k, v = (x.flatten(0, 1).unsqueeze(0) for x in (q, k, v))
    packed = all_results(q, k, v, causal=True, cu_seqlens=torch.tensor([0, 70, 140]))
    assert_same_bits(packed[0][:, :70], clean[0][:1], "the document before it")


def test_what_is_not_finite_in_a_query_is_in_its_results(implementation, generator):
    for dtype in dtypes_of(implementation):
        for value in (math.nan, math.inf):
            q, k, v = draw_qkv(generator, 1, 5, 70, dtype=dtype)
            q[0, 2, 0, 1] = value
            out, lse, *grads = all_results(q, k, v)
            assert lse.isnan().nonzero().tolist() == [[0, 0, 2]], f"{dtype}, {value}: the log-sum-exp is {lse}"
            assert out[0, 2, 0].isnan().all() and grads[0][0, 2, 0].isnan().all()
            assert grads[1][0, :, 0].isnan().any(), "a loss of NaN is not found in k's gradient"


def test_weights(implementation, generator):
    for dtype in dtypes_of(implementation):
        q, k, v = draw_qkv(generator, 2, 67, 90, 4, 2, 16, dtype)
        if refused(implementation, "it gives no weights", q, k, v, return_weights=True):
            continue
        options = {"causal": True, "softcap": 5.0, "mask": torch.randint(0, 3, (90,), generator=generator) > 0}
        out, weights, lse = ops.attention(q.requires_grad_(), k, v, return_weights=True, return_lse=True, **options)
        exact = reference.attention(*(x.detach().double() for x in (q, k, v)), return_weights=True, **options)[1]
        assert_same_bits(out, ops.attention(q, k, v, **options), "the output keeps its bits")
        assert out.requires_grad and lse.requires_grad and not weights.requires_grad
        assert weights.dtype == dtype
        assert torch.equal(weights == 0, exact == 0)
        torch.testing.assert_close(weights.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)
        dropped = ops.attention(q, k, v, return_weights=True, dropout=0.5, **options)[1]
        assert_same_bits(dropped, weights, "weights before dropout")
        packed = ops.attention(
            *(x.detach()[:1, :67] for x in (q, k, v)), cu_seqlens=torch.tensor([0, 40, 67]), return_weights=True
        )[1]
        assert (packed[:, :, :40, 40:] == 0).all() and (packed[:, :, 40:, :40] == 0).all()
        torch.testing.assert_close(packed.float().sum(-1), torch.ones(1, 4, 67), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("p", [0.1, 0.75, 1.0])
def test_dropout_follows_the_documented_bits(implementation, generator, p):
    for dtype in dtypes_of(implementation):
        q, k, v = draw_qkv(generator, 2, 50, 130, 4, 2, 20, dtype)
        if refused(implementation, "it takes no dropout", q, k, v, dropout=p, seed=17):
            continue
        keep = attention_mask(2, 4, 50, 130, p, 17).to(q.device) if p < 1 else None
        if p < 1:
            check_against_reference(q, k, v, keep=keep, dropout=p, seed=17)
        else:
            out, _, *grads = all_results(q, k, v, dropout=p, seed=17)
            assert (out == 0).all() and (grads[2] == 0).all()
        each = torch.tensor([17, 18])
        a, b = (ops.attention(q, k, v, dropout=p, seed=seed) for seed in (torch.tensor(17), each))
        assert_same_bits(a, b, "a seed for each row")


def test_dropout_without_a_seed_follows_torch(generator):
    q, k, v = draw_qkv(generator)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(ops.attention(q, k, v, dropout=0.5))
    assert_same_bits(results[0], results[1], "the same seed")
    assert not torch.equal(results[0], results[2])


def test_large_scores_do_not_overflow(implementation, generator):
    q, k, v = draw_qkv(generator, 1, 3, 100, dtype=dtypes_of(implementation)[0])
    out = ops.attention(q * 1e4, k * 1e4, v)
    best = reference.attention((q * 1e4).double(), (k * 1e4).double(), v.double())
    assert_accurate(out, best, None, "scores of 1e8")
    if implementation == "cuda_sm90":  # whose weights are rounded to the dtype, and must not overflow there
        q, k, v = (x.half() for x in (q, k, v))
        out, lse = ops.attention(q * 1e4, k * 1e4, v, scale=1e6, return_lse=True)
        assert out.isfinite().all() and lse.isfinite().all()
    q[..., 0] = math.inf
    assert not ops.attention(q, k, v).isfinite().any()


@pytest.mark.decode
@pytest.mark.skipif(EMULATED is None, reason="only the emulated device counts")
@pytest.mark.parametrize("head_dim", [64, 128])
def test_few_queries_read_each_key_once_in_whole_sectors_without_conflicts(implementation, generator, head_dim):
    for dtype in dtypes_of(implementation):
        q, k, v = draw_qkv(generator, 1, 1, 256, 1, 1, head_dim, dtype)
        decode, combine = launches_of(lambda x=(q, k, v): ops.attention(*x, causal=True))
        assert "attention_decode" in decode["kernel"] and "attention_combine" in combine["kernel"]
        for line in decode["lines"]:
            if any(file in line["line"] for file in ("ldmatrix.cuh", "cp_async.cuh", "products.cuh", "pack.cuh")):
                assert line["shared_wavefronts"] == line["shared_ideal"], f"{dtype}: {line}"
        copied = sum(line["global_sectors"] for line in decode["lines"] if "cp_async.cuh" in line["line"])
        once = (k.numel() + v.numel()) * q.element_size() / 32
        assert once <= copied <= 1.07 * once, f"{dtype}: each split also has the query"
        for launch in (decode, combine):
            assert launch["global_sectors"] <= launch["global_ideal"], f"{dtype}, {launch['kernel']}"


@pytest.mark.skipif(EMULATED is None, reason="only the emulated device counts")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_operands_of_products_have_no_bank_conflicts(generator, head_dim, dtype):
    q, k, v = draw_qkv(generator, 1, 128, 128, 1, 1, head_dim, dtype)
    with pygpt.force("attention", "cuda_sm80"):
        launches = launches_of(lambda: all_results(q, k, v, causal=True))
    source = (ROOT / "csrc/cuda/attention/products.cuh").read_text().splitlines()
    first_of_epilogue = next(i for i, line in enumerate(source, start=1) if "void put_rows(" in line)
    checked = set()
    for launch in launches:
        for line in launch["lines"]:
            file, _, number = line["line"].rpartition(":")
            in_a_product = file.endswith("products.cuh") and int(number) < first_of_epilogue
            if in_a_product or file.endswith(("ldmatrix.cuh", "cp_async.cuh")):
                assert line["shared_wavefronts"] == line["shared_ideal"], (launch["kernel"], line)
                checked.add(launch["kernel"])
    assert len(checked) == 3, "forward, gradients of queries, gradients of keys"


@pytest.mark.skipif(EMULATED is None, reason="only the emulated device counts")
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("causal", [True, False])
def test_rows_come_and_go_in_whole_sectors(implementation, generator, head_dim, causal):
    """All but the statistics of rows in the backward, floats that lie a row apart."""
    for dtype in dtypes_of(implementation):
        q, k, v = draw_qkv(generator, 1, 128, 128, 2, 2, head_dim, dtype)
        launches = launches_of(lambda x=(q, k, v): all_results(*x, causal=causal))
        assert len(launches) >= 4
        for launch in launches:
            backward = "backward" in launch["kernel"] or "facts" in launch["kernel"]
            for line in launch["lines"]:
                excess = line["global_sectors"] - line["global_ideal"]
                assert excess <= 0 or (backward and line["global_sectors"] <= 600), (launch["kernel"], line)
            assert launch["global_sectors"] <= (1.08 if backward else 1) * launch["global_ideal"], launch["kernel"]


@pytest.mark.decode
@settings(max_examples=smaller(20, 6))
@given(
    sizes=st.tuples(
        st.integers(1, 2),  # batch
        st.sampled_from([0, 1, 2, 3, 5]),  # q_time
        st.sampled_from([0, 1, 17, 127, 128, 129, 300]),  # k_time
        st.integers(1, 2),  # key/value heads
        st.sampled_from([1, 2, 9]),  # query heads for each
        st.sampled_from([1, 7, 16, 33, 64, 80]),  # head_dim
    ),
    causal=st.booleans(),
    window=st.none() | st.sampled_from([1, 20, 150]),
    softcap=st.none() | st.floats(0.5, 50),
    places=st.sampled_from(["whole", "key_lengths", "query_start", "both"]),
    extra=st.sampled_from(["", "mask", "bias"]),
)
@example((1, 1, 300, 1, 1, 256), True, None, None, "whole", "")
@example((2, 5, 300, 1, 9, 40), True, 150, 20.0, "both", "bias")
def test_few_queries_match_the_reference(implementation, sizes, causal, window, softcap, places, extra):
    generator = random_generator()
    batch, q_time, k_time, kv_heads, group, head_dim = sizes
    shape = batch, kv_heads * group, q_time, k_time
    options = {"causal": causal, "window": window, "softcap": softcap}
    if places in ("key_lengths", "both"):
        options["key_lengths"] = torch.randint(0, k_time + 1, (batch,), generator=generator)
    if places in ("query_start", "both"):
        options["query_start"] = torch.randint(0, k_time + 3, (batch,), generator=generator)
    if extra == "mask":
        options["mask"] = torch.randint(0, 2, shape, generator=generator).bool()
    for dtype in dtypes_of(implementation):
        q, k, v = draw_qkv(generator, batch, q_time, k_time, shape[1], kv_heads, head_dim, dtype)
        bias = normal(generator, *shape, dtype=dtype) if extra == "bias" else None
        if bias is not None:
            bias[bias > 1] = -math.inf
        ours = ops.attention(q, k, v, bias=bias, return_lse=True, **options)
        upcast = [None if x is None else x.double() for x in (q, k, v, bias)]
        exact = reference.attention(*upcast[:3], bias=upcast[3], return_lse=True, **options)
        flipped, lse = plain_attention(*(x.flip(-1) for x in (q, k, v)), bias, **options)
        peers = [plain_attention(q, k, v, bias, **options), (flipped.flip(-1), lse)]
        blind = exact[1] == -math.inf
        assert torch.equal(ours[1] == -math.inf, blind)
        for i, name in enumerate(("out", "lse")):
            mine, right, *theirs = (x[i] if i == 0 else x[i].masked_fill(blind, 0) for x in (ours, exact, *peers))
            farthest = max(theirs, key=lambda x, y=right: float((x.double() - y).abs().max()) if x.numel() else 0)
            assert_accurate(mine, right, farthest, f"{name}, {dtype}")


@pytest.mark.decode
def test_bits_of_a_query_do_not_depend_on_what_is_beside_it(implementation, generator):
    """On other rows and queries, the cache's size, what lies behind a row's keys, strides, the interleaving."""
    lengths = torch.tensor([300, 1, 128, 129])
    for dtype in dtypes_of(implementation):
        q, k, v = draw_qkv(generator, 4, 2, 320, 6, 2, 40, dtype)
        for row, length in enumerate(lengths):
            k[row, length:], v[row, length:] = math.nan, math.inf
        for window in (None, 130):
            options = {"causal": True, "window": window}
            batch = ops.attention(q, k, v, key_lengths=lengths, query_start=lengths - 2 + 1, **options)
            for row, length in enumerate(lengths.tolist()):
                own = q[row : row + 1], k[row : row + 1, :length], v[row : row + 1, :length]
                start = torch.tensor([length - 1])
                alone = ops.attention(*own, query_start=start, **options)
                assert_same_bits(batch[row : row + 1], alone, f"{dtype}, row {row}, window {window}")
                one = ops.attention(own[0][:, :1], *own[1:], query_start=start, **options)
                assert_same_bits(alone[:, :1], one, f"{dtype}, row {row}, the first query")
        packed = torch.stack([k, v], dim=2)[:2]
        strided_kv = packed[:, :, 0], packed[:, :, 1]
        for kv in (strided_kv, [unaligned(x[:2]) for x in (k, v)]):
            moved = ops.attention(
                unaligned(q[:2]), *kv, key_lengths=lengths[:2], query_start=lengths[:2] - 1, **options
            )
            assert_same_bits(moved, batch[:2], f"{dtype}, other places in memory")
        where = {"key_lengths": lengths[2:], "query_start": lengths[2:] - 1, "softcap": 30.0, "dropout": 0.2, "seed": 3}
        assert_bits_hold(
            lambda t=(q[2:], k[2:], v[2:]), o=options | where: ops.attention(*t, return_lse=True, **o), f"{dtype}"
        )


@pytest.mark.decode
def test_dropout_of_few_queries_follows_the_documented_bits(implementation, generator):
    for dtype in dtypes_of(implementation):
        q, k, v = draw_qkv(generator, 2, 3, 150, 4, 2, 20, dtype)
        keep = attention_mask(2, 4, 3, 150, 0.75, 17).to(q.device)
        out = ops.attention(q, k, v, dropout=0.75, seed=17)
        exact = reference.attention(*(x.double() for x in (q, k, v)), keep=keep, dropout=0.75)
        assert_accurate(out, exact, plain_attention(q, k, v, keep=keep, dropout=0.75)[0], f"{dtype}")
        assert (ops.attention(q, k, v, dropout=1.0, seed=17) == 0).all()


@pytest.mark.decode
def test_packed_documents_of_few_queries(implementation, generator):
    bounds = [0, 0, 5, 140, 141]
    for dtype in dtypes_of(implementation):
        q, k, v = draw_qkv(generator, 1, 141, 141, 2, 1, 20, dtype)
        packed = ops.attention(q, k, v, causal=True, dropout=0.3, seed=5, cu_seqlens=torch.tensor(bounds))
        for document, (begin, end) in enumerate(itertools.pairwise(bounds)):
            own = (x[:, begin:end] for x in (q, k, v))
            alone = ops.attention(*own, causal=True, dropout=0.3, seed=5 + document)
            assert_same_bits(packed[:, begin:end], alone, f"{dtype}, document {document}")


on_hopper = pytest.mark.skipif(EMULATED != "90", reason="Hopper's kernels run there alone")


@on_hopper
@pytest.mark.parametrize("head_dim", [64, 96, 128, 192, 256])
def test_head_sizes_on_hopper(generator, head_dim):
    for dtype, softcap in ((torch.bfloat16, None), (torch.float16, 4.0)):
        q, k, v = draw_qkv(generator, 1, 200, 270, 2, 1, head_dim, dtype)
        grad = normal(generator, *q.shape, dtype=dtype)
        options = {"causal": True, "softcap": softcap}
        with pygpt.force("attention", "cuda_sm90"):
            out, lse = ops.attention(q, k, v, return_lse=True, **options)
        exact, exact_lse = reference.attention(q.double(), k.double(), v.double(), return_lse=True, **options)
        assert_accurate(out, exact, plain_attention(q, k, v, **options)[0], f"{dtype}")
        torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-5, atol=1e-5)
        if head_dim <= 128:
            with pygpt.force("attention", "cuda_sm90"):
                check_against_reference(q, k, v, **options)
        else:
            (_,), grads = gradients(lambda *x, o=options: ops.attention(*x, **o), [q, k, v], [grad])
            assert C.last_used("attention") == "cuda_sm80", "head sizes whose backward Hopper's kernels do not take"
            assert all(x.isfinite().all() for x in grads)


@on_hopper
def test_what_hopper_refuses_falls_to_the_next_entry(generator):
    for dtype in (torch.bfloat16, torch.float32):
        q, k, v = draw_qkv(generator, dtype=dtype)
        for options, reason in (
            ({}, None),
            ({"mask": torch.ones(5, 7, dtype=torch.bool)}, "it takes no mask"),
            ({"bias": torch.zeros(5, 7)}, "it takes no bias"),
            ({"dropout": 0.5, "seed": 1}, "it takes no dropout"),
            ({"scale": -0.5}, "it takes a positive scale, not -0.5"),
        ):
            reason = "float32 is not rounded" if dtype == torch.float32 else reason
            ops.attention(q, k, v, **options)
            assert C.last_used("attention") == ("cuda_sm80" if reason else "cuda_sm90"), options
            with pygpt.force("attention", "cuda_sm90"):
                if reason:
                    with pytest.raises(ValueError, match=f"cuda_sm90: {reason}"):
                        ops.attention(q, k, v, **options)


@on_hopper
def test_many_tiles_on_few_multiprocessors(generator):
    """Blocks that take several tiles, one after the other: rings go round, and turns stay in order."""
    bounds = torch.tensor([0, 300, 301, 301, 640])
    q, k, v = draw_qkv(generator, 1, 640, 640, 4, 2, 64, torch.bfloat16)
    with pygpt.force("attention", "cuda_sm90"):
        check_against_reference(q, k, v, causal=True, cu_seqlens=bounds)
        check_against_reference(q, k, v, causal=True, window=150)


FUSED = {"facts", "backward_fused", "grad_q"}
SEPARATE = {"facts", "backward_keys", "backward_queries"}


@on_hopper
@pytest.mark.parametrize(
    ("head_dim", "options", "expected"),
    [
        (40, {}, FUSED),
        (64, {"causal": True}, FUSED),
        (64, {"window": 50}, FUSED),
        (96, {}, SEPARATE),
        (128, {}, FUSED),
        (128, {"key_lengths": torch.tensor([60, 100])}, FUSED),
        (128, {"causal": True}, SEPARATE),
        (128, {"window": 50}, SEPARATE),
    ],
)
def test_head_size_and_kind_of_visibility_choose_hoppers_backward(generator, head_dim, options, expected):
    """And nothing else: neither batch nor times, which would change a row's bits."""
    for batch, time in ((2, 100), (1, 1), (1, 270)):
        if batch == 1 and "key_lengths" in options:
            continue
        q, k, v = draw_qkv(generator, batch, time, max(time, 100), 2, 1, head_dim, torch.bfloat16)
        with pygpt.force("attention", "cuda_sm90"):
            launches = launches_of(lambda x=(q, k, v): all_results(*x, **options))
        found = {name for name in FUSED | SEPARATE if any(f"attention_{name}_sm90" in x["kernel"] for x in launches)}
        assert found == expected, (batch, time)


@on_hopper
@pytest.mark.parametrize(("head_dim", "causal"), [(64, True), (128, True), (128, False)])
def test_hopper_has_no_bank_conflicts(generator, head_dim, causal):
    q, k, v = draw_qkv(generator, 1, 256, 256, 1, 1, head_dim, torch.bfloat16)
    with pygpt.force("attention", "cuda_sm90"):
        launches = launches_of(lambda: all_results(q, k, v, causal=causal))
    kernels = {launch["kernel"] for launch in launches}
    assert len([kernel for kernel in kernels if "_sm90" in kernel]) == 4
    for launch in launches:
        for line in launch["lines"]:
            assert line["shared_wavefronts"] == line["shared_ideal"], (launch["kernel"], line)


def each_option(dtype):
    generator = random_generator()
    mask = torch.randint(0, 3, (2, 1, 3, 4), generator=generator) > 0
    yield {}
    yield {"causal": True, "window": 2}
    yield {"causal": "top_left"}
    yield {"softcap": 2.0, "scale": 0.9}
    yield {"key_lengths": torch.tensor([3, 0]), "query_start": torch.tensor([1, 0]), "causal": True}
    yield {"mask": mask}
    yield {"bias": normal(generator, 2, 1, 4, dtype=dtype).requires_grad_()}
    yield {"bias": normal(generator, 2, 2, 3, 1, dtype=dtype).requires_grad_(), "softcap": 1.5}
    yield {"dropout": 0.4, "seed": torch.tensor(3)}


@pytest.mark.float64
@pytest.mark.parametrize("with_lse", [False, True])
def test_gradcheck(with_lse):
    # The log-sum-exp is float32: over a step this wide its rounding counts for 1e-5, and so does the curvature.
    bounds = {"eps": 5e-3, "atol": 2e-4} if with_lse else {}
    generator = random_generator()
    inputs = [x.requires_grad_() for x in draw_qkv(generator, 2, 3, 4, 2, 1, 3, torch.float64)]
    for options in each_option(torch.float64):
        bias = options.pop("bias", None)

        def run(q, k, v, bias, options=options):
            if not with_lse:
                return ops.attention(q, k, v, bias=bias, **options)
            out, lse = ops.attention(q, k, v, bias=bias, return_lse=True, **options)
            return out, lse.masked_fill(lse == -math.inf, 0)  # of rows that see nothing

        assert torch.autograd.gradcheck(run, (*inputs, bias), **bounds), options


@pytest.mark.float64
def test_gradcheck_of_what_is_packed():
    generator = random_generator()
    inputs = [x.requires_grad_() for x in draw_qkv(generator, 2, 3, 4, 2, 1, 3, torch.float64)]
    qkv = torch.cat([x.detach()[:, :3] for x in inputs], dim=2).requires_grad_()
    bias = normal(generator, 3, 1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, bias: ops.attention_packed(x, 2, 1, bias=bias, causal=True), (qkv, bias))
    packed = [x.detach().flatten(0, 1)[None, :6].clone().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(
        lambda q, k, v: ops.attention(q, k, v, cu_seqlens=torch.tensor([0, 2, 6]), causal=True), packed
    )


def test_gradient_through_lse(implementation, generator):
    dtype = dtypes_of(implementation)[0]
    q, k, v = draw_qkv(generator, 2, 70, 70, 4, 2, 24, dtype)
    grads = normal(generator, *q.shape, dtype=dtype), normal(generator, 2, 4, 70)
    options = {"causal": True, "softcap": 10.0, "return_lse": True}
    _, ours = gradients(lambda *x: ops.attention(*x, **options), [q, k, v], grads)
    upcast = [x.double() for x in (q, k, v)]
    _, exact = gradients(lambda *x: reference.attention(*x, **options), upcast, [x.double() for x in grads])
    for mine, right in zip(ours, exact, strict=True):
        if dtype == torch.float32:
            torch.testing.assert_close(mine.double(), right, rtol=1e-5, atol=1e-5)
        else:
            assert_accurate(mine, right, None, f"{dtype}")


def test_opcheck(generator):
    for options in each_option(torch.float32):
        tensors = [x.requires_grad_() for x in draw_qkv(generator, 2, 3, 4, 2, 1, 3)]
        causal = "bottom_right" if options.pop("causal", None) else None
        names = ("key_lengths", "query_start", "cu_seqlens", "mask", "bias", "window", "softcap")
        problem = (*tensors, causal, options.pop("scale", 0.5), *(options.get(name) for name in names))
        problem = (*problem, options.get("dropout", 0.0), options.get("seed"), False)
        torch.library.opcheck(torch.ops.pygpt.attention, problem)
        if "key_lengths" not in options and "mask" not in options and "bias" not in options:  # for 3 queries, 4 keys
            qkv = torch.cat([x.detach()[:, :3] for x in tensors], dim=2).requires_grad_()
            torch.library.opcheck(torch.ops.pygpt.attention_packed, (qkv, 2, 1, *problem[3:]))


def test_compiled_gives_the_same_bits(generator):
    q, k, v = draw_qkv(generator, 2, 9, 9, 4, 2, 16)
    bias, grad = normal(generator, 4, 9, 9), normal(generator, *q.shape)

    def run(q, k, v, bias):
        out, weights, lse = ops.attention(
            q, k, v, bias=bias, causal=True, dropout=0.1, seed=4, return_weights=True, return_lse=True
        )
        return out, weights.detach() + 0 * lse.unsqueeze(-1), lse

    def results(function):
        leaves = [x.clone().requires_grad_() for x in (q, k, v, bias)]
        out, weights, lse = function(*leaves)
        return [out, weights, lse, *torch.autograd.grad(out, leaves, grad)]

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    for a, b in zip(results(run), results(compiled), strict=True):
        assert_same_bits(a.detach(), b.detach(), "compiled")


def test_autocast(generator):
    q, k, v = (x.requires_grad_() for x in draw_qkv(generator))
    bias = normal(generator, 5, 7).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.attention(q, k, v, bias=bias)
    assert out.dtype == torch.bfloat16
    assert_same_bits(out, ops.attention(*(x.bfloat16() for x in (q, k, v)), bias=bias), "cast by hand")
    out.float().sum().backward()
    assert q.grad.dtype == torch.float32 and bias.grad.dtype == torch.float32
    if EMULATED:
        return  # CUDA kernels do not compute in float64
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.attention(q.double(), k.double(), v.double()).dtype == torch.float64


def test_numpy_in_numpy_out(generator):
    q, k, v = draw_qkv(generator)
    lengths = torch.tensor([3, 7])
    out, lse = ops.attention(q.numpy(), k.numpy(), v.numpy(), key_lengths=lengths.numpy(), return_lse=True)
    assert isinstance(out, np.ndarray)
    assert_same_bits(torch.from_numpy(out), ops.attention(q, k, v, key_lengths=lengths), "NumPy")
    assert lse.shape == (2, 2, 5)


ONES = torch.ones(2, 5, 2, 8)


def test_bad_packed_input():
    with pytest.raises(ValueError, match=r"qkv must be \(batch, time, 2 \+ 2 \* 1 heads, head_dim\).*\(1, 3, 5, 8\)"):
        ops.attention_packed(torch.ones(1, 3, 5, 8), 2, 1)
    with pytest.raises(ValueError, match="qkv must be"):
        ops.attention_packed(torch.ones(3, 4, 8), 2, 1)
    with pytest.raises(TypeError, match="qkv must be a torch"):
        ops.attention_packed([1.0], 2, 1)
    with pytest.raises(TypeError, match="attention has no option 'casual'"):
        ops.attention_packed(torch.ones(1, 3, 4, 8), 2, 1, casual=True)
    with pytest.raises(ValueError, match="window must be at least 1"):
        ops.attention_packed(torch.ones(1, 3, 4, 8), 2, 1, window=0)


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"q": torch.ones(2, 5, 8)}, ValueError, r"q must be \(batch, q_time, heads, head_dim\).*\(2, 5, 8\)"),
        ({"q": torch.ones(2, 5, 2, 300)}, ValueError, "head_dim of 1 to 256"),
        ({"q": torch.ones(2, 5, 2, 0)}, ValueError, "head_dim of 1 to 256"),
        ({"q": torch.ones(2, 5, 3, 8)}, ValueError, "multiple of k's kv_heads.*3 and k has 2"),
        ({"q": torch.ones(2, 5, 0, 8)}, ValueError, "at least one head"),
        pytest.param(
            {"q": ONES.half(), "k": ONES.half(), "v": ONES.half()},
            *(ValueError, "no CPU kernels for float16"),
            marks=on_the_cpu,
        ),
        ({"q": ONES.long()}, TypeError, "q must be of dtype.*int64"),
        ({"q": "query"}, TypeError, "q must be a torch.Tensor"),
        ({"k": ONES.double()}, TypeError, "k must be float32.*float64"),
        ({"k": torch.ones(3, 5, 2, 8)}, ValueError, r"k must have shape \(2, 5, 2, 8\).*\(3, 5, 2, 8\)"),
        ({"v": torch.ones(2, 4, 2, 8)}, ValueError, r"v must have shape \(2, 5, 2, 8\)"),
        ({"v": ONES.to("meta")}, (ValueError, RuntimeError), "v|meta"),
        ({"causal": "left"}, ValueError, 'causal must be.*"left"'),
        ({"scale": math.inf}, ValueError, "scale must be finite"),
        ({"softcap": 0.0}, ValueError, "softcap must be positive"),
        ({"window": 0}, ValueError, "window must be at least 1"),
        ({"dropout": 1.5}, ValueError, "dropout must be 0 to 1"),
        ({"dropout": math.nan}, ValueError, "dropout must be 0 to 1"),
        ({"dropout": 0.5, "seed": torch.tensor(0.5)}, TypeError, "seed must be int64"),
        ({"dropout": 0.5, "seed": torch.tensor([1])}, ValueError, r"seed must have shape \(2,\)"),
        pytest.param(
            *({"key_lengths": torch.tensor([1, 6])}, ValueError, r"key_lengths\[1\] must be 0 to 5.*6"),
            marks=on_the_cpu,
        ),
        pytest.param(
            *({"key_lengths": torch.tensor([-1, 5])}, ValueError, r"key_lengths\[0\] must be 0 to 5.*-1"),
            marks=on_the_cpu,
        ),
        ({"key_lengths": torch.tensor([1])}, ValueError, r"key_lengths must have shape \(2,\)"),
        ({"key_lengths": torch.tensor([1, 2], dtype=torch.int32)}, TypeError, "key_lengths must be int64"),
        pytest.param(
            *({"query_start": torch.tensor([0, -1])}, ValueError, r"query_start\[1\] must be 0 to"), marks=on_the_cpu
        ),
        pytest.param(
            *({"query_start": torch.tensor([0, 2**40])}, ValueError, r"query_start\[1\] must be 0 to"), marks=on_the_cpu
        ),
        ({"cu_seqlens": torch.tensor([0, 5])}, ValueError, "cu_seqlens needs one row.*batch is 2"),
        ({"mask": torch.ones(5, 5)}, TypeError, "mask must be bool"),
        ({"mask": torch.ones(5, 4, dtype=torch.bool)}, ValueError, r"mask must broadcast.*\(5, 4\)"),
        ({"mask": torch.ones(1, 2, 2, 5, 5, dtype=torch.bool)}, ValueError, "mask must broadcast"),
        ({"bias": torch.ones(3, 1, 1, 1)}, ValueError, r"bias must broadcast.*\(3, 1, 1, 1\)"),
        ({"bias": torch.ones(5, 5).double()}, TypeError, "bias must be float32"),
    ],
)
def test_bad_input(change, error, words):
    with pytest.raises(error, match=words):
        ops.attention(**{"q": ONES, "k": ONES, "v": ONES, **change})


@pytest.mark.parametrize(
    "bounds, more, words",
    [
        pytest.param(*([0, 3], {}, "must go from 0 to q_time, 5, but goes from 0 to 3"), marks=on_the_cpu),
        pytest.param(*([1, 5], {}, "must go from 0"), marks=on_the_cpu),
        pytest.param(*([0, 4, 3, 5], {}, r"must not decrease.*cu_seqlens\[1\] is 4"), marks=on_the_cpu),
        ([], {}, "at least one element"),
        ([0, 5], {"key_lengths": torch.tensor([5])}, "cu_seqlens and key_lengths"),
        ([0, 5], {"query_start": torch.tensor([0])}, "cu_seqlens and query_start"),
    ],
)
def test_bad_documents(bounds, more, words):
    with pytest.raises(ValueError, match=words):
        ops.attention(ONES[:1], ONES[:1], ONES[:1], cu_seqlens=torch.tensor(bounds, dtype=torch.int64), **more)


def test_memory_is_linear_in_the_sequence():
    time = smaller(100_000, 5_000)  # 40 GB of scores, were they held
    q, k, v = (torch.zeros(1, time, 1, 1, requires_grad=True) for _ in range(3))
    out = ops.attention(q, k, v, causal=True, window=100)
    out.sum().backward()
    assert (out == 0).all() and (q.grad == 0).all() and (k.grad == 0).all()
    torch.testing.assert_close(v.grad.sum(), torch.tensor(float(time)))
