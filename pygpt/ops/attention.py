"""Attention, with all of its options in one op. The kernels' contract is csrc/ops/attention.h."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
from torch import Tensor

from pygpt.extension import C
from pygpt.ops.dropout import seed_tensor
from pygpt.ops.operation import Operation, accepts_numpy, autocast, contiguous, require_tensors, unit_stride

Causal = Literal["bottom_right", "top_left"]


@accepts_numpy
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool | Causal = False,
    scale: float | None = None,
    key_lengths: Tensor | None = None,
    query_start: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    seed: int | Tensor | None = None,
    return_weights: bool = False,
    return_lse: bool = False,
    decode: bool = False,
) -> Any:
    """Average the values, weighted by the softmax of each query's scores with the keys.

    ``x = scale * (q @ k^T)``; with a softcap c, ``x = c * tanh(x / c)``; ``x += bias``; hidden keys get ``-inf``;
    ``out = dropout(softmax(x)) @ v``. Query head h reads key/value head ``h // (heads / kv_heads)``. A query that sees
    no key gives zeros. Memory is linear in the times. What lengths, documents, the diagonal or the window hide may hold
    NaN and reaches no result; keys and values that a mask or a bias of -inf hides must be finite.

    Args:
        q: (batch, q_time, heads, head_dim), head_dim 1 to 256; float32, bfloat16, float16 (CUDA) or float64 (CPU).
        k: (batch, k_time, kv_heads, head_dim), like ``q``; heads is a multiple of kv_heads.
        v: the shape of ``k``.
        causal: True is "bottom_right": query i sees key j where j <= i + k_time - q_time; "top_left": where j <= i.
        scale: finite; None is head_dim^-0.5.
        key_lengths: (batch,) int64, 0 to k_time: keys from there on are hidden; the diagonal stays.
        query_start: (batch,) int64: the place of each row's first query on the key axis (tokens already in a cache);
            the diagonal is then j = i + query_start.
        cu_seqlens: (documents + 1,) int64 from 0 to time, with batch 1 and q_time = k_time: attention stays inside each
            document, which gets the result that it has alone.
        mask: bool, broadcasts to (batch, heads, q_time, k_time); True where a key may be seen.
        bias: added to the scores; broadcasts like ``mask``; the dtype of ``q`` or float32. It may hold -inf.
        window: at least 1: of the keys that the diagonal allows only that many, the newest, are seen; without causal
            those closer than that to the diagonal, on both sides.
        softcap: positive bound of the scores.
        dropout: the probability, 0 to 1, with which each weight is dropped; the others are divided by 1 - dropout.
        seed: of dropout: an int or 0-d int64 tensor s, which gives row (or document) b the seed s + b, or an int64
            tensor with one seed for each; None draws one from torch's default generator.
        return_weights: also return the weights, (batch, heads, q_time, k_time), before dropout and without gradient.
        return_lse: also return log(sum(exp(x))), (batch, heads, q_time) float32, -inf where no key is seen.
        decode: let kernels for few queries run, on CUDA, where training's ask for many. Their bits are others, but
            depend on the query and the keys that it sees alone as well.

    Returns:
        The shape and dtype of ``q``; with ``return_weights`` or ``return_lse`` a tuple ``(out[, weights][, lse])``.

    Raises:
        ValueError: if a shape, device or value does not fit.
        TypeError: if a dtype does not fit.

    Source: Vaswani et al., "Attention Is All You Need", 2017, eq. 1; Dao et al., "FlashAttention", 2022.
    """
    require_tensors(q=q, k=k, v=v)
    q, k, v = autocast(q, k, v)
    options = _options(
        q, causal, scale, key_lengths, query_start, cu_seqlens, mask, bias, window, softcap, dropout, seed
    )
    return _results(_attention(q, k, v, *options, decode), (q, k, v, *options), return_weights, return_lse)


def attention_packed(qkv: Tensor, num_heads: int, num_kv_heads: int, **options: Any) -> Any:
    """`attention` of a sequence to itself, with queries, keys and values in one tensor, as a projection gives them.

    So is their gradient then, which need not be put together.

    Args:
        qkv: (batch, time, heads + 2 kv_heads, head_dim): the heads of the queries, of the keys, of the values.
        num_heads: heads of the queries.
        num_kv_heads: heads of the keys, and of the values; a divisor of ``num_heads``.
        options: as `attention` takes them.

    Returns:
        As `attention` with the three parts: the same bits.

    Raises:
        ValueError, TypeError: as `attention`, and if ``qkv`` has not so many heads.
    """
    require_tensors(qkv=qkv)
    if qkv.dim() != 4 or qkv.shape[2] != num_heads + 2 * num_kv_heads:
        raise ValueError(
            f"qkv must be (batch, time, {num_heads} + 2 * {num_kv_heads} heads, head_dim), but has shape "
            f"{tuple(qkv.shape)}"
        )
    if unknown := [name for name in options if name not in _DEFAULTS]:
        raise TypeError(f"attention has no option {min(unknown)!r}")
    given = {**_DEFAULTS, **options}  # torch.compile of torch 2.6 knows no | of dicts, and no - of their keys
    return_weights, return_lse, decode = (given.pop(name) for name in ("return_weights", "return_lse", "decode"))
    (qkv,) = autocast(qkv)
    parts = _parts(qkv, num_heads, num_kv_heads)
    resolved = _options(parts[0], **given)
    results = _attention_packed(qkv, num_heads, num_kv_heads, *resolved, decode)
    return _results(results, (*parts, *resolved), return_weights, return_lse)


_DEFAULTS: dict[str, Any] = inspect.unwrap(attention).__kwdefaults__


def _options(
    q: Tensor,
    causal: bool | Causal,
    scale: float | None,
    key_lengths: Tensor | None,
    query_start: Tensor | None,
    cu_seqlens: Tensor | None,
    mask: Tensor | None,
    bias: Tensor | None,
    window: int | None,
    softcap: float | None,
    dropout: float,
    seed: int | Tensor | None,
) -> tuple[Any, ...]:
    """What follows q, k and v in a problem as kernels take it."""
    if scale is None:
        scale = q.shape[-1] ** -0.5 if q.dim() and q.shape[-1] else 1.0
    drawn = None if dropout == 0 else seed_tensor(seed, q.device)
    return _causal(causal), scale, key_lengths, query_start, cu_seqlens, mask, bias, window, softcap, dropout, drawn


def _results(out_lse: tuple[Tensor, Tensor], problem: tuple[Any, ...], return_weights: bool, return_lse: bool) -> Any:
    out, lse = out_lse
    if not return_weights and not return_lse:
        return out
    results = [out]
    if return_weights:
        detached = (each.detach() if isinstance(each, Tensor) else each for each in problem)
        results.append(_attention_weights(*detached, lse.detach()))
    if return_lse:
        results.append(lse.float())
    return tuple(results)


def _parts(qkv: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, or what belongs to each of them."""
    q, k, v = torch.split(qkv, [heads, kv_heads, kv_heads], dim=2)
    return q, k, v


def _causal(causal: bool | Causal) -> Causal | None:
    if causal is True:
        return "bottom_right"
    return None if causal is False else causal


def _kernel_problem(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> tuple[Any, ...]:
    causal, scale, key_lengths, query_start, cu_seqlens, *others, seed = options
    integers = contiguous(key_lengths), contiguous(query_start), contiguous(cu_seqlens)
    return unit_stride(q), unit_stride(k), unit_stride(v), causal, scale, *integers, *others, contiguous(seed)


def _lse_like(q: Tensor) -> Tensor:
    if q.dim() != 4:  # the kernel's check raises
        return q.new_empty(0)
    return q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=_statistics_dtype(q))


def _statistics_dtype(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _forward(q: Tensor, *problem_and_decode: Any) -> tuple[Tensor, Tensor]:
    *problem, decode = problem_and_decode
    out, lse = q.new_empty(q.shape), _lse_like(q)
    C.attention_forward(*_kernel_problem(q, *problem), out, lse, decode)
    return out, lse


def _fake(q: Tensor, *problem: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), _lse_like(q)


def _weights_forward(*problem_and_lse: Any) -> Tensor:
    *problem, lse = problem_and_lse
    weights = _weights_fake(*problem_and_lse)
    C.attention_weights(*_kernel_problem(*problem), lse, weights)
    return weights


def _weights_fake(q: Tensor, k: Tensor, *_: Any) -> Tensor:
    return q.new_empty((q.shape[0], q.shape[2], q.shape[1], k.shape[1]))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *problem, _ = inputs
    ctx.options = tuple(None if isinstance(each, Tensor) else each for each in problem)
    ctx.tensors = [i for i, each in enumerate(inputs) if isinstance(each, Tensor)]
    ctx.save_for_backward(*(inputs[i] for i in ctx.tensors), *output)
    ctx.set_materialize_grads(False)


_BIAS = 9  # its place among the inputs


def _backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients: list[Tensor | None] = [None] * (len(ctx.options) + 1)
    saved = _saved(ctx, grad_out, grad_lse)
    if saved is None:
        return tuple(gradients)
    if any(ctx.needs_input_grad[:3]):
        gradients[:3] = _attention_backward(*saved)
    if ctx.needs_input_grad[_BIAS]:
        gradients[_BIAS] = _attention_bias_backward(*saved)
    return tuple(gradients)


def _saved(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...] | None:
    """What a backward kernel reads; None if nothing has a gradient."""
    if grad_out is None and grad_lse is None:
        return None
    *tensors, out, lse = ctx.saved_tensors
    problem = list(ctx.options)
    for i, tensor in zip(ctx.tensors, tensors, strict=True):
        problem[i] = tensor
    return (*problem, torch.zeros_like(out) if grad_out is None else grad_out, grad_lse, out, lse)


def _packed_forward(qkv: Tensor, heads: int, kv_heads: int, *options_and_decode: Any) -> tuple[Tensor, Tensor]:
    return _forward(*_parts(qkv, heads, kv_heads), *options_and_decode)


def _packed_fake(qkv: Tensor, heads: int, kv_heads: int, *_: Any) -> tuple[Tensor, Tensor]:
    return _fake(_parts(qkv, heads, kv_heads)[0])


def _packed_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, heads, kv_heads, *options_and_decode = inputs
    _setup(ctx, (*_parts(qkv, heads, kv_heads), *options_and_decode), output)


def _packed_backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients: list[Tensor | None] = [None] * (len(ctx.options) + 1)
    saved = _saved(ctx, grad_out, grad_lse)
    if saved is None:
        return tuple(gradients)
    if ctx.needs_input_grad[0]:
        gradients[0] = _attention_packed_backward(*saved)
    if ctx.needs_input_grad[_BIAS]:
        gradients[_BIAS] = _attention_bias_backward(*saved)
    return tuple(gradients)


def _kernel_saved(*saved: Any) -> tuple[Any, ...]:
    *problem, grad_out, grad_lse, out, lse = saved
    return (
        *_kernel_problem(*problem),
        unit_stride(grad_out),
        None if grad_lse is None else contiguous(grad_lse),
        out,
        lse,
    )


def _backward_kernel(*saved: Any) -> tuple[Tensor, Tensor, Tensor]:
    gradients = _backward_fake(*saved)
    C.attention_backward(*_kernel_saved(*saved), *gradients)
    return gradients


def _backward_fake(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _packed_backward_kernel(*saved: Any) -> Tensor:
    gradient = _packed_backward_fake(*saved)
    heads, kv_heads = saved[0].shape[2], saved[1].shape[2]
    C.attention_backward(*_kernel_saved(*saved), *_parts(gradient, heads, kv_heads))
    return gradient


def _packed_backward_fake(q: Tensor, k: Tensor, *_: Any) -> Tensor:
    batch, time, heads, width = q.shape
    return q.new_empty((batch, time, heads + 2 * k.shape[2], width))


def _bias_backward_kernel(*saved: Any) -> Tensor:
    grad_bias = _bias_backward_fake(*saved)
    C.attention_bias_backward(*_kernel_saved(*saved), grad_bias)
    return grad_bias


def _bias_backward_fake(*saved: Any) -> Tensor:
    bias: Tensor = saved[_BIAS]
    return bias.new_empty(bias.shape)


_OPTIONS = (
    "str? causal, float scale, Tensor? key_lengths, Tensor? query_start, Tensor? cu_seqlens, Tensor? mask, "
    "Tensor? bias, SymInt? window, float? softcap, float dropout, Tensor? seed"
)
_PROBLEM = f"Tensor q, Tensor k, Tensor v, {_OPTIONS}"
_SAVED = "Tensor grad_out, Tensor? grad_lse, Tensor out, Tensor lse"

_attention_backward = Operation(
    "attention_backward",
    f"({_PROBLEM}, {_SAVED}) -> (Tensor, Tensor, Tensor)",
    forward=_backward_kernel,
    fake=_backward_fake,
)
_attention_packed_backward = Operation(
    "attention_packed_backward",
    f"({_PROBLEM}, {_SAVED}) -> Tensor",
    forward=_packed_backward_kernel,
    fake=_packed_backward_fake,
)
_attention_bias_backward = Operation(
    "attention_bias_backward",
    f"({_PROBLEM}, {_SAVED}) -> Tensor",
    forward=_bias_backward_kernel,
    fake=_bias_backward_fake,
)
_attention_weights = Operation(
    "attention_weights", f"({_PROBLEM}, Tensor lse) -> Tensor", forward=_weights_forward, fake=_weights_fake
)
_attention = Operation(
    "attention",
    f"({_PROBLEM}, bool decode) -> (Tensor, Tensor)",
    forward=_forward,
    fake=_fake,
    setup=_setup,
    backward=_backward,
)
_attention_packed = Operation(
    "attention_packed",
    f"(Tensor qkv, SymInt heads, SymInt kv_heads, {_OPTIONS}, bool decode) -> (Tensor, Tensor)",
    forward=_packed_forward,
    fake=_packed_fake,
    setup=_packed_setup,
    backward=_packed_backward,
)
