"""Every op in float64, in the plainest PyTorch: what the kernels are compared with.

The functions have the signatures of `pygpt.ops`, take any floating dtype, compute in float64 and return float64; plain
autograd differentiates them. Dropout takes its mask from the caller, since a reference must not know how random bits
are made. Tests, benchmarks and ``pygpt doctor --check`` use this file; the library itself never does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def _double(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float64)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` over the last dimension, with the biased variance."""
    x = _double(x)
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = (centred * centred).mean(dim=-1, keepdim=True)
    out = centred / (variance + eps).sqrt() * _double(weight)
    return out if bias is None else out + _double(bias)


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """``layer_norm(x + residual)`` and ``x + residual``."""
    total = _double(x) + _double(residual)
    return layer_norm(total, weight, bias, eps), total


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension."""
    x = _double(x)
    return x / ((x * x).mean(dim=-1, keepdim=True) + eps).sqrt() * _double(weight)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """``rms_norm(x + residual)`` and ``x + residual``."""
    total = _double(x) + _double(residual)
    return rms_norm(total, weight, eps), total


def rotary(x: Tensor, positions: Tensor, table: Tensor) -> Tensor:
    """Pairs (i, i + head_dim / 2) of (batch, time, heads, head_dim), turned by the angles of the table's rows."""
    cosine, sine = _double(table)[positions].unsqueeze(-2).chunk(2, dim=-1)  # (…, T, 1, D / 2)
    first, second = _double(x).chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def _gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def _gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": lambda x: x.clamp(min=0),
}


def gated_product(gate: Tensor, up: Tensor, activation: str = "silu") -> Tensor:
    """``activation(gate) * up``."""
    gate = _double(gate)
    return (gate / (1 + torch.exp(-gate)) if activation == "silu" else _gelu_tanh(gate)) * _double(up)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """``activation(x W^T + b) + residual``; weight (out, in). ``out_dtype`` changes nothing here."""
    del out_dtype
    out = _double(x) @ _double(weight).T
    if bias is not None:
        out = out + _double(bias)
    out = ACTIVATIONS[activation](out)
    return out if residual is None else out + _double(residual)


def quantized_weight(packed: Tensor, out_features: int, in_features: int, scheme: str) -> Tensor:
    """The (out, in) matrix that a packed weight of `pygpt.ops.quantize_weight` stands for."""
    panels, groups = -(-out_features // 32), -(-in_features // 32)
    if scheme == "int8":
        panel = packed.view(panels, 128 + groups * 1024)
        scale = panel[:, :128].contiguous().view(torch.float32).double()  # (panels, 32 columns)
        numbers = panel[:, 128:].reshape(panels, groups, 8, 32, 4).double() - 128
        weight = numbers * scale[:, None, None, :, None]
    else:
        group = packed.view(panels, groups, 640)
        scale, offset = (
            group[:, :, at : at + 64].contiguous().view(torch.float16).double()[:, :, None, :, None] for at in (0, 64)
        )
        pairs = group[:, :, 128:].reshape(panels, groups, 4, 32, 4)
        weight = torch.cat([pairs & 15, pairs >> 4], dim=2).double() * scale + offset
    weight = weight.permute(0, 3, 1, 2, 4).reshape(panels * 32, groups * 32)  # from (panel, group, step, column, place)
    return weight[:out_features, :in_features]


def rounded_in_groups(x: Tensor) -> Tensor:
    """``x`` as `pygpt.ops.quantized_linear` takes it: in groups of 32, multiples of their largest value / 16256."""
    width = x.shape[-1]
    groups = torch.nn.functional.pad(x.detach().float(), (0, -width % 32)).view(*x.shape[:-1], -(-width // 32), 32)
    largest = groups.abs().amax(dim=-1, keepdim=True)
    tiny, most = largest < 2.0**-110, torch.tensor(16256.0)  # as a tensor, for divisions that round once
    step, inverse = torch.where(tiny, 0.0, largest / most), torch.where(tiny, 0.0, most / largest)
    rounded: Tensor = ((groups * inverse).round().double() * step.double()).flatten(-2)
    return rounded[..., :width]


def quantized_linear(
    x: Tensor,
    weight: Tensor,
    out_features: int,
    scheme: str,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """``linear`` with the weight that ``weight`` stands for and ``x`` rounded as the op does."""
    matrix = quantized_weight(weight, out_features, x.shape[-1], scheme)
    return linear(rounded_in_groups(x), matrix, bias, activation, residual, out_dtype)


def feed_forward(
    x: Tensor, w_in: Tensor, b_in: Tensor | None, w_out: Tensor, b_out: Tensor | None, activation: str = "gelu_tanh"
) -> Tensor:
    """``activation(x W_in^T + b_in) W_out^T + b_out``."""
    return linear(linear(x, w_in, b_in, activation), w_out, b_out)


def visible_keys(
    q_time: int,
    k_time: int,
    batch: int = 1,
    *,
    causal: bool | str = False,
    key_lengths: Tensor | None = None,
    query_start: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    window: int | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Which key each query may see by position: bool (batch, q_time, k_time). Masks and biases come on top."""
    i = torch.arange(q_time, device=device).view(1, q_time, 1)
    j = torch.arange(k_time, device=device).view(1, 1, k_time)
    seen = torch.ones(batch, q_time, k_time, dtype=torch.bool, device=device)
    if cu_seqlens is not None:
        document = torch.searchsorted(cu_seqlens, j.flatten(), right=True)
        seen &= document.view(1, q_time, 1) == document.view(1, 1, k_time)
        diagonal = i
    elif query_start is not None:
        diagonal = i + query_start.view(batch, 1, 1)
    elif causal == "top_left":
        diagonal = i
    else:
        diagonal = i + (k_time - q_time)
    if causal:
        seen &= j <= diagonal
        if window is not None:
            seen &= j > diagonal - window
    elif window is not None:
        seen &= (j - diagonal).abs() < window
    if key_lengths is not None:
        seen &= j < key_lengths.view(batch, 1, 1)
    return seen


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool | str = False,
    scale: float | None = None,
    key_lengths: Tensor | None = None,
    query_start: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    keep: Tensor | None = None,
    return_weights: bool = False,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """Softmax attention with every option of ``pygpt.ops.attention``, by materialised scores.

    q is (batch, q_time, heads, head_dim); k and v are (batch, k_time, kv_heads, head_dim). Of the options only dropout
    differs: ``keep``, bool (batch, heads, q_time, k_time), says which weights it keeps; they are divided by
    ``1 - dropout``. Returns (batch, q_time, heads, head_dim), with the weights and the log-sum-exp where asked for.
    """
    batch, q_time, heads, head_dim = q.shape
    k_time, kv_heads = k.shape[1], k.shape[2]
    scale = head_dim**-0.5 if scale is None else scale
    seen = visible_keys(
        q_time,
        k_time,
        batch,
        causal=causal,
        key_lengths=key_lengths,
        query_start=query_start,
        cu_seqlens=cu_seqlens,
        window=window,
        device=q.device,
    ).unsqueeze(1)
    seen = seen.expand(batch, heads, q_time, k_time)
    if mask is not None:
        seen = seen & mask

    # Memory that nobody sees may hold anything, NaN included.
    seen_keys = (
        seen.view(batch, kv_heads, heads // kv_heads, q_time, k_time).any(dim=2).any(dim=2)
    )  # (batch, kv_heads, k_time)
    unseen = ~seen_keys.transpose(1, 2).unsqueeze(-1)
    k, v = (_double(t).masked_fill(unseen, 0).repeat_interleave(heads // kv_heads, dim=2) for t in (k, v))

    scores = scale * torch.einsum("bihd,bjhd->bhij", _double(q), k)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + _double(bias)
    scores = scores.masked_fill(~seen, -math.inf)
    blind = (scores == -math.inf).all(dim=-1, keepdim=True)  # true too where k_time is 0
    weights = torch.softmax(scores.masked_fill(blind, 0.0), dim=-1).masked_fill(blind, 0.0)
    lse = torch.logsumexp(scores.masked_fill(blind, 0.0), dim=-1).masked_fill(blind.squeeze(-1), -math.inf)
    kept = weights if keep is None else weights * keep / (1 - dropout)
    out = torch.einsum("bhij,bjhd->bihd", kept, v)
    extras = (*((weights.detach(),) if return_weights else ()), *((lse,) if return_lse else ()))
    return (out, *extras) if extras else out


def embedding(ids: Tensor, table: Tensor) -> Tensor:
    """``table[ids]``."""
    return _double(table)[ids]


def add(x: Tensor, y: Tensor) -> Tensor:
    """``x + y``; ``y`` may broadcast over leading dimensions."""
    return _double(x) + _double(y)


def dropout(x: Tensor, p: float, keep: Tensor) -> Tensor:
    """``x / (1 - p)`` where ``keep``, else 0."""
    return torch.where(keep, _double(x) / (1 - p) if p < 1 else _double(x) * 0, 0.0)


def cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int = -100, reduction: str = "mean") -> Tensor:
    """``logsumexp(logits) - logits[target]``, 0 where the target is ignored.

    The mean is over the targets that are not ignored, and 0 if all are.
    """
    counted = targets != ignore_index
    safe = targets.masked_fill(~counted, 0)
    logits = _double(logits)
    losses = torch.logsumexp(logits, dim=-1) - logits.gather(-1, safe.unsqueeze(-1)).squeeze(-1)
    losses = torch.where(counted, losses, 0.0)
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / counted.sum().clamp(min=1)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """``cross_entropy(hidden W^T + b, targets)``."""
    return cross_entropy(linear(hidden, weight, bias), targets, ignore_index, reduction)


def grad_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all elements of all tensors together."""
    return (
        torch.stack([torch.zeros((), dtype=torch.float64), *(_double(t).square().sum() for t in tensors)]).sum().sqrt()
    )


def adamw(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    grad_scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of AdamW on one tensor; ``step`` counts from 1. Loshchilov and Hutter, 2019, algorithm 2.

    Returns:
        The new parameter, first and second moment.
    """
    param, grad = _double(param), _double(grad) * grad_scale
    param = param * (1 - lr * weight_decay)
    exp_avg = betas[0] * _double(exp_avg) + (1 - betas[0]) * grad
    exp_avg_sq = betas[1] * _double(exp_avg_sq) + (1 - betas[1]) * grad * grad
    mean, variance = exp_avg / (1 - betas[0] ** step), exp_avg_sq / (1 - betas[1] ** step)
    return param - lr * mean / (variance.sqrt() + eps), exp_avg, exp_avg_sq


def repetition_penalty(logits: Tensor, history: Tensor, penalty: float) -> Tensor:
    """What ``generate`` does first: the logit of each token in ``history`` is divided by ``penalty`` if positive, else
    multiplied by it. logits (vocab,), history (tokens,) int64. Keskar et al., "CTRL", 2019, section 4.1.
    """
    logits = _double(logits).clone()
    for token in set(history.tolist()):
        logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
    return logits


def sample(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Tensor:
    """The distribution that ``pygpt.ops.sample`` draws from, (batch, vocab); at temperature 0 all on the first maximum.

    Order: temperature, top-k, top-p (the smallest set of highest probabilities that reaches p, the crossing token
    included), min-p (relative to the highest), renormalise. Ties keep the lower id.
    """
    logits = _double(logits)
    out = torch.zeros_like(logits)
    for row, values in zip(out, logits, strict=True):
        if temperature == 0:
            row[int((values == values.max()).nonzero()[0])] = 1.0
            continue
        order = sorted(range(values.numel()), key=lambda token: (-float(values[token]), token))
        if top_k is not None:
            order = order[:top_k]
        probabilities = torch.softmax(values[order] / temperature, dim=0)
        if top_p is not None:
            before = probabilities.cumsum(0) - probabilities
            count = int((before < top_p).sum())
            order, probabilities = order[:count], probabilities[:count]
        if min_p is not None:
            count = int((probabilities >= min_p * probabilities[0]).sum())
            order, probabilities = order[:count], probabilities[:count]
        row[order] = probabilities / probabilities.sum()
    return out
