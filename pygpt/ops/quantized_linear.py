"""Linear layers whose weight is held in 8 or 4 bits, for sampling."""

from __future__ import annotations

import torch
from torch import Tensor

from pygpt.extension import C
from pygpt.ops.operation import Operation, accepts_numpy, autocast, contiguous, require_tensors

SCHEMES = ("int8", "int4")
PANEL_COLUMNS, GROUP_PLACES = 32, 32  # of csrc/ops/quantized_linear.h


@accepts_numpy
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
    """``activation(x W^T + b) + residual`` over the last dimension, for a weight that `quantize_weight` made.

    ``x`` is rounded on the way, to 15 bits for the largest of each 32 neighbours; sums are exact within these, and in
    float32 over them. There is no gradient.

    Args:
        x: (..., in), float32 or bfloat16, on the CPU.
        weight: of an (out, in) matrix, packed: one-dimensional, uint8.
        out_features: out.
        scheme: ``"int8"`` or ``"int4"``, as it was made.
        bias: (out,), the dtype of ``x`` or float32, or None.
        activation: ``"gelu"``, ``"gelu_tanh"``, ``"relu"`` or None, as in `linear`.
        residual: (..., out), the dtype of the result, or None.
        out_dtype: the dtype of the result, that of ``x`` or float32; by default that of ``residual``, else of ``x``.

    Returns:
        (..., out).

    Raises:
        ValueError: if a shape, device, ``scheme`` or ``activation`` does not fit.
        TypeError: if a dtype does not fit.
        NotImplementedError: if a gradient is asked for.
    """
    require_tensors(x=x, weight=weight)
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in (x, bias, residual)):
        raise NotImplementedError(
            "quantized_linear has no gradient: a quantised model is for sampling; train the model that it was made "
            "from, or compute inside torch.no_grad()"
        )
    (x,) = autocast(x)
    return _quantized_linear(  # type: ignore[no-any-return]
        x, weight, out_features, scheme, bias, activation, residual, out_dtype
    )


def quantize_weight(weight: Tensor, scheme: str) -> Tensor:
    """A weight in 8 or 4 bits, in the order in which `quantized_linear` reads it.

    Args:
        weight: (out, in), floating point, on the CPU.
        scheme: ``"int8"``: whole numbers up to ±127 and a scale for each output. ``"int4"``: 0 to 15, and a scale and
            an offset for every 32 neighbours along ``in``; both are fitted by least squares, and kept in float16.

    Returns:
        One-dimensional, uint8. Its layout depends on shape and scheme alone (csrc/ops/quantized_linear.h).

    Raises:
        ValueError: if the shape or device does not fit, the scheme is unknown, or a value is not finite or, in int4,
            too large for float16.
        TypeError: if ``weight`` is not floating point.
    """
    require_tensors(weight=weight)
    check_scheme(scheme)
    if not weight.is_floating_point():
        raise TypeError(f"weight must be floating point, not {weight.dtype}")
    if weight.dim() != 2 or weight.device.type != "cpu":
        raise ValueError(f"weight must be (out, in), on the CPU, not {tuple(weight.shape)} on {weight.device}")
    weight = weight.detach()
    largest = float(weight.abs().max()) if weight.numel() else 0.0
    if not largest < float("inf"):
        raise ValueError("weight must be finite, but holds NaN or an infinity")
    if scheme == "int4" and largest > torch.finfo(torch.float16).max:
        raise ValueError(f"weight must be within the range of float16 for int4, but holds ±{largest:.3g}")
    rounded = _round_rows if scheme == "int8" else _fit_groups
    rows = max(1, _NUMBERS_AT_ONCE // max(1, weight.shape[1]))
    parts = zip(*(rounded(part.float()) for part in torch.split(weight, rows)), strict=True)
    return pack_weight(*(torch.cat(part) for part in parts))


def check_scheme(scheme: str) -> None:
    """Refuse a scheme that there is not. Raises: ValueError."""
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, not {scheme!r}")


def pack_weight(numbers: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """Put a weight in the order in which `quantized_linear` reads it.

    Args:
        numbers: (out, in), uint8. Without ``offset``: int8, the weight is scale · (number - 128). With it: int4, the
            weight is scale · number + offset.
        scale: int8: (out,), float32. int4: (out, groups of 32 along in), float16.
        offset: int4: like ``scale``.
    """
    columns, places = numbers.shape
    panels, groups = -(-columns // PANEL_COLUMNS), -(-places // GROUP_PLACES)
    missing = groups * GROUP_PLACES - places
    if offset is not None:
        numbers = torch.nn.functional.pad(numbers, (0, missing)).view(columns, groups, GROUP_PLACES)
        half = GROUP_PLACES // 2
        return pack_pairs(numbers[..., :half] | numbers[..., half:] << 4, scale, offset)
    numbers = _with_rows(torch.nn.functional.pad(numbers, (0, missing), value=128), panels * PANEL_COLUMNS, 128)
    numbers = numbers.view(panels, PANEL_COLUMNS, groups, GROUP_PLACES // 4, 4).permute(0, 2, 3, 1, 4)
    scale = _with_rows(scale, panels * PANEL_COLUMNS).view(panels, PANEL_COLUMNS)
    return torch.cat([_bytes(scale), numbers.flatten(1)], dim=1).flatten()


def pack_pairs(pairs: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """`pack_weight` of int4, for numbers that lie in pairs.

    Args:
        pairs: (out, groups of 32 along in, 16), uint8: place p of the group in the lower half, p + 16 in the upper.
        scale: (out, groups), float16.
        offset: like ``scale``.
    """
    columns, groups, size = pairs.shape
    panels = -(-columns // PANEL_COLUMNS)
    rows = panels * PANEL_COLUMNS
    pairs = _with_rows(pairs, rows).view(panels, PANEL_COLUMNS, groups, size // 4, 4).permute(0, 2, 3, 1, 4)
    heads = (_with_rows(each, rows).view(panels, PANEL_COLUMNS, groups).transpose(1, 2) for each in (scale, offset))
    return torch.cat([*(_bytes(head) for head in heads), pairs.flatten(2)], dim=2).flatten()


def _with_rows(tensor: Tensor, rows: int, value: int = 0) -> Tensor:
    """With as many rows; PyTorch 2.6 does not pad a tensor whose rows are empty."""
    return torch.cat([tensor, tensor.new_full((rows - len(tensor), *tensor.shape[1:]), value)])


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format).view(torch.uint8)


_NUMBERS_AT_ONCE = 2**18  # what stands between stays in the cache


def _round_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers and scales of int8."""
    scale = (weight.abs().amax(dim=1) if weight.shape[1] else weight.new_zeros(len(weight))) / 127
    inverse = torch.where(scale >= torch.finfo(torch.float32).tiny, 1 / scale, 0.0)
    return ((weight * inverse[:, None]).round() + 128).clamp(1, 255).to(torch.uint8), scale


def _fit_groups(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers, scales and offsets of int4: from the smallest to the largest of a group, then nearer to most of it."""
    columns, places = weight.shape
    groups = -(-places // GROUP_PLACES)
    missing = groups * GROUP_PLACES - places
    there = torch.nn.functional.pad(torch.ones(places), (0, missing)).view(groups, GROUP_PLACES)
    if missing:  # places past the end repeat the last one, and so do not widen their group
        weight = torch.cat([weight, weight[:, -1:].expand(-1, missing)], dim=1)
    weight = weight.view(columns, groups, GROUP_PLACES)
    if not weight.numel():
        empty = weight.new_zeros(columns, groups, dtype=torch.float16)
        return weight.new_zeros(columns, places, dtype=torch.uint8), empty, empty
    low, high = weight.amin(dim=2), weight.amax(dim=2)
    scale, offset = ((high - low) / 15).half(), low.half()
    numbers = _nearest(weight, scale, offset)
    error = _squares(weight, numbers, scale, offset, there)
    count = there.sum(dim=1)
    for _ in range(_FITS):
        # The scale and offset that fit these numbers best (a line through points), and the numbers nearest to these.
        mean_q, mean_w = (numbers * there).sum(dim=2) / count, (weight * there).sum(dim=2) / count
        q, w = (numbers - mean_q[..., None]) * there, weight - mean_w[..., None]
        spread = (q * q).sum(dim=2)
        slope = torch.where(spread > 0, (q * w).sum(dim=2) / spread, scale.float())
        tried_scale, tried_offset = slope.half(), (mean_w - slope * mean_q).half()
        tried = _nearest(weight, tried_scale, tried_offset)
        tried_error = _squares(weight, tried, tried_scale, tried_offset, there)
        better = tried_error < error  # not where something left float16's range and became NaN
        scale, offset = torch.where(better, tried_scale, scale), torch.where(better, tried_offset, offset)
        numbers, error = torch.where(better[..., None], tried, numbers), torch.where(better, tried_error, error)
    return numbers.to(torch.uint8).view(columns, -1)[:, :places], scale, offset


_FITS = 4


def _nearest(weight: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """The numbers 0 to 15, as float32, that come nearest to a weight."""
    inverse = torch.where(scale > 0, 1 / scale.float(), 0.0)
    return ((weight - offset.float()[..., None]) * inverse[..., None]).round().clamp(0, 15)


def _squares(weight: Tensor, numbers: Tensor, scale: Tensor, offset: Tensor, there: Tensor) -> Tensor:
    """The sum of squared errors of each group."""
    error = numbers * scale.float()[..., None] + offset.float()[..., None] - weight
    return (error * error * there).sum(dim=2)


def _out(x: Tensor, out_features: int, residual: Tensor | None, out_dtype: torch.dtype | None) -> Tensor:
    if out_dtype is None:
        out_dtype = x.dtype if residual is None else residual.dtype
    return x.new_empty((*x.shape[:-1], out_features), dtype=out_dtype)


def _forward(
    x: Tensor,
    weight: Tensor,
    out_features: int,
    scheme: str,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
    out_dtype: torch.dtype | None,
) -> Tensor:
    out = _out(x, out_features, residual, out_dtype)
    C.quantized_linear_forward(
        contiguous(x), contiguous(weight), scheme, contiguous(bias), activation, contiguous(residual), out
    )
    return out


def _fake(
    x: Tensor,
    weight: Tensor,
    out_features: int,
    scheme: str,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
    out_dtype: torch.dtype | None,
) -> Tensor:
    return _out(x, out_features, residual, out_dtype)


_quantized_linear = Operation(
    "quantized_linear",
    "(Tensor x, Tensor weight, int out_features, str scheme, Tensor? bias, str? activation, Tensor? residual,"
    " ScalarType? out_dtype) -> Tensor",
    forward=_forward,
    fake=_fake,
)
