"""The ops that `compare.py` measures: one row per op, beside the same thing in plain PyTorch; on a GPU more sizes.

A new op gets a row here. Operations and elements are the floor, what any implementation has to do: a multiply-add is
two operations, `elements` are the numbers that must be read or written once if nothing but the result is kept.
Letters: B batch, T time, M = B T rows, H heads, D head_dim, C width, V vocabulary; N width inside the feed-forward.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.adamw import adamw

from bench.case import Call, Case, Work, largest_error
from pygpt import ops, reference
from pygpt.nn.rotary import rotations

FLOATS = (torch.float32, torch.bfloat16)
HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Sizes:
    """Of the tensors; the model's are GPT-2 small's."""

    batch: int
    time: int
    head_rows: int  # of tensors that are as wide as the vocabulary, which would take most of the time
    heads: int = 12
    head_dim: int = 64
    width: int = 768
    hidden: int = 3072
    vocabulary: int = 50257


class Draw:
    """Random inputs of one dtype, always the same ones, on torch's default device."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.generator = torch.Generator(torch.get_default_device()).manual_seed(1)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=self.generator) * scale).to(self.dtype)

    def ids(self, below: int, *shape: int) -> Tensor:
        return torch.randint(below, shape, generator=self.generator)


@dataclass(frozen=True)
class Row:
    """One op at one size. The three functions take the inputs by name and return one tensor."""

    op: str  # its name in csrc/ops
    name: str  # what the table calls it
    shape: str
    inputs: Callable[[Draw], dict[str, Any]]
    ours: Callable[..., Tensor]
    theirs: Callable[..., Tensor]
    exact: Callable[..., Tensor]  # in float64
    forward: Work | None  # None: too small for a limit to mean anything
    backward: Work | None  # beyond the forward pass; None: there is none to measure
    dtypes: tuple[torch.dtype, ...] = FLOATS
    comparable: bool = True  # whether PyTorch's result can be compared with `exact`
    rivals: dict[str, Callable[..., Tensor]] = field(default_factory=dict)  # other ways PyTorch has, where they work


def op_rows(sizes: Sizes) -> list[Row]:
    """The rows of all ops."""
    B, T, M, head_rows = sizes.batch, sizes.time, sizes.batch * sizes.time, sizes.head_rows
    H, D, C, N, V = sizes.heads, sizes.head_dim, sizes.width, sizes.hidden, sizes.vocabulary
    scale = C**-0.5

    return [
        Row(
            "layer_norm",
            "layer_norm",
            f"({B}, {T}, {C})",
            lambda d: {"x": d.normal(B, T, C), "weight": d.normal(C), "bias": d.normal(C)},
            ours=ops.layer_norm,
            theirs=lambda x, weight, bias: F.layer_norm(x, (C,), weight, bias),
            exact=reference.layer_norm,
            forward=Work(8 * M * C, 2 * M * C),
            backward=Work(12 * M * C, 3 * M * C),
        ),
        Row(
            "layer_norm",
            "add_layer_norm",
            f"({B}, {T}, {C})",
            lambda d: {n: d.normal(B, T, C) for n in ("x", "residual")} | {n: d.normal(C) for n in ("weight", "bias")},
            ours=lambda **inputs: ops.add_layer_norm(**inputs)[0],
            theirs=lambda x, residual, weight, bias: F.layer_norm(x + residual, (C,), weight, bias),
            exact=lambda **inputs: reference.add_layer_norm(**inputs)[0],
            forward=Work(9 * M * C, 4 * M * C),
            backward=Work(12 * M * C, 3 * M * C),
        ),
        *_llama_rows(B, T),
        attention_row(B, T, H, D, causal=True),
        Row(
            "linear",
            "linear (qkv)",
            f"({M}, {C}) × ({3 * C}, {C})",
            lambda d: {"x": d.normal(M, C), "weight": d.normal(3 * C, C, scale=scale), "bias": d.normal(3 * C)},
            ours=ops.linear,
            theirs=lambda x, weight, bias: F.linear(x, weight, bias),
            exact=reference.linear,
            forward=Work(6 * M * C * C, 4 * M * C + 3 * C * C),
            backward=Work(12 * M * C * C, 5 * M * C + 6 * C * C),
        ),
        Row(
            "feed_forward",
            "feed_forward",
            f"({M}, {C}), hidden {N}",
            lambda d: {
                "x": d.normal(M, C),
                "w_in": d.normal(N, C, scale=scale),
                "b_in": d.normal(N),
                "w_out": d.normal(C, N, scale=N**-0.5),
                "b_out": d.normal(C),
            },
            ours=ops.feed_forward,
            theirs=lambda x, w_in, b_in, w_out, b_out: F.linear(
                F.gelu(F.linear(x, w_in, b_in), approximate="tanh"), w_out, b_out
            ),
            exact=reference.feed_forward,
            forward=Work(4 * M * C * N, 2 * M * C + 2 * C * N),
            backward=Work(8 * M * C * N, 3 * M * C + 4 * C * N),
        ),
        Row(
            "embedding",
            "embedding",
            f"({B}, {T}) of ({V}, {C})",
            lambda d: {"ids": d.ids(V, B, T), "table": d.normal(V, C)},
            ours=ops.embedding,
            theirs=lambda ids, table: F.embedding(ids, table),
            exact=reference.embedding,
            forward=Work(0, 2 * M * C, 8 * M),
            backward=Work(M * C, M * C + V * C, 8 * M),
        ),
        Row(
            "add",
            "add (positions)",
            f"({B}, {T}, {C}) + ({T}, {C})",
            lambda d: {"x": d.normal(B, T, C), "y": d.normal(T, C)},
            ours=ops.add,
            theirs=lambda x, y: x + y,
            exact=reference.add,
            forward=Work(M * C, 2 * M * C + T * C),
            backward=Work(M * C, M * C + T * C),
        ),
        Row(
            "dropout",
            "dropout, p = 0.1",
            f"({B}, {T}, {C})",
            lambda d: {"x": d.normal(B, T, C)},
            ours=lambda x: ops.dropout(x, 0.1, seed=1),
            theirs=lambda x: F.dropout(x, 0.1),
            exact=lambda x: reference.dropout(
                x, 0.1, keep=ops.dropout(torch.ones_like(x, dtype=torch.float32), 0.1, seed=1) != 0
            ),
            forward=Work(M * C, 2 * M * C),
            backward=Work(M * C, 2 * M * C),
            comparable=False,
        ),
        Row(
            "cross_entropy",
            "cross_entropy",
            f"({head_rows}, {V})",
            lambda d: {"logits": d.normal(head_rows, V), "targets": d.ids(V, head_rows)},
            ours=ops.cross_entropy,
            theirs=lambda logits, targets: F.cross_entropy(logits, targets),
            exact=reference.cross_entropy,
            forward=Work(3 * head_rows * V, head_rows * V, 8 * head_rows),
            backward=Work(3 * head_rows * V, 2 * head_rows * V, 8 * head_rows),
        ),
        Row(
            "adamw",
            "adamw",
            f"({V}, {C})",
            lambda d: {
                **{name: d.normal(V, C) for name in ("param", "grad", "exp_avg")},
                "exp_avg_sq": d.normal(V, C).square(),
                "step": 3.0,
            },
            ours=_adamw,
            theirs=_plain_adamw,
            exact=lambda step, **tensors: reference.adamw(**tensors, step=int(step), **ADAMW)[0],
            forward=Work(16 * V * C, 7 * V * C),
            backward=None,
            dtypes=(torch.float32,),
        ),
        Row(
            "grad_norm",
            "grad_norm",
            f"({V}, {C})",
            lambda d: {"x": d.normal(V, C)},
            ours=lambda x: ops.grad_norm([x]),
            theirs=lambda x: torch.linalg.vector_norm(x),
            exact=lambda x: reference.grad_norm([x]),
            forward=Work(2 * V * C, V * C),
            backward=None,
        ),
        *(_quantized(scheme, rows, C, V) for scheme in ("int8", "int4") for rows in (1, head_rows)),
        Row(
            "sample",
            "sample, top-k 50, top-p 0.95",
            f"({B}, {V})",
            lambda d: {"logits": d.normal(B, V), "seeds": d.ids(V, B), "positions": d.ids(T, B)},
            ours=lambda logits, seeds, positions: _sample(logits, seeds, positions)[1],
            theirs=_plain_sample,
            exact=lambda logits, seeds, positions: (
                torch.log_softmax(logits, dim=-1)
                .gather(-1, _sample(logits.float(), seeds, positions)[0].unsqueeze(-1))
                .squeeze(-1)
            ),
            forward=Work(3 * B * V, B * V, 32 * B),
            backward=None,
            dtypes=(torch.float32,),
            comparable=False,
        ),
        Row(
            "linear_cross_entropy",
            "linear_cross_entropy",
            f"({head_rows}, {C}) × ({V}, {C})",
            lambda d: {
                "hidden": d.normal(head_rows, C),
                "weight": d.normal(V, C, scale=scale),
                "targets": d.ids(V, head_rows),
            },
            ours=ops.linear_cross_entropy,
            theirs=lambda hidden, weight, targets: F.cross_entropy(F.linear(hidden, weight), targets),
            exact=reference.linear_cross_entropy,
            forward=Work(2 * head_rows * C * V, head_rows * C + C * V, 8 * head_rows),
            backward=Work(4 * head_rows * C * V, 2 * head_rows * C + 2 * C * V, 8 * head_rows),
        ),
    ]


def _llama_rows(B: int, T: int) -> list[Row]:
    """What a Llama has and GPT-2 has not, in the sizes of SmolLM2-135M."""
    C, N, H, G, D, M = 576, 1536, 9, 3, 64, B * T

    @functools.cache
    def table(device: torch.device) -> Tensor:
        return rotations(T, D, 1e5).to(device, torch.float32)

    def turned(x: Tensor, positions: Tensor) -> Tensor:
        """As transformers has it."""
        cosine, sine = table(x.device)[positions].to(x.dtype).unsqueeze(-2).chunk(2, dim=-1)
        first, second = x.chunk(2, dim=-1)
        return x * torch.cat([cosine, cosine], -1) + torch.cat([-second, first], -1) * torch.cat([sine, sine], -1)

    turns = Work(6 * M * (H + G) * D / 2, 2 * M * (H + G) * D)
    return [
        Row(
            "rms_norm",
            "add_rms_norm",
            f"({B}, {T}, {C})",
            lambda d: {n: d.normal(B, T, C) for n in ("x", "residual")} | {"weight": d.normal(C)},
            ours=lambda **inputs: ops.add_rms_norm(**inputs)[0],
            theirs=lambda x, residual, weight: F.rms_norm(x + residual, (C,), weight, 1e-5),
            exact=lambda **inputs: reference.add_rms_norm(**inputs)[0],
            forward=Work(5 * M * C, 4 * M * C),
            backward=Work(8 * M * C, 3 * M * C),
        ),
        Row(
            "rotary",
            "rotary",
            f"({B}, {T}, {H + G}, {D})",
            lambda d: {"x": d.normal(B, T, H + G, D), "positions": torch.arange(T)},
            ours=lambda x, positions: ops.rotary(x, positions, table(x.device)),
            theirs=turned,
            exact=lambda x, positions: reference.rotary(x, positions, table(x.device)),
            forward=turns,
            backward=turns,
        ),
        Row(
            "gated_product",
            "gated_product, silu",
            f"({M}, {N})",
            lambda d: {"gate": d.normal(M, N), "up": d.normal(M, N)},
            ours=ops.gated_product,
            theirs=lambda gate, up: F.silu(gate) * up,
            exact=reference.gated_product,
            forward=Work(8 * M * N, 3 * M * N),
            backward=Work(12 * M * N, 5 * M * N),
        ),
    ]


def _quantized(scheme: str, rows: int, width: int, outputs: int) -> Row:
    """A head with a rounded weight, beside PyTorch's products with that weight expanded, and rounded as it has it."""

    def inputs(d: Draw) -> dict[str, Any]:
        packed, matrix = _quantized_weight(scheme, width, outputs)
        return {"x": d.normal(rows, width), "matrix": matrix.to(d.dtype), "packed": packed}

    def exact(x: Tensor, matrix: Tensor, packed: Tensor) -> Tensor:
        del matrix, packed
        return reference.linear(x, _quantized_weight(scheme, width, outputs)[1])

    packed_bytes = outputs * width * (1 if scheme == "int8" else 5 / 8)
    return Row(
        "quantized_linear",
        f"quantized_linear, {scheme}",
        f"({rows}, {width}) × ({outputs}, {width})",
        inputs,
        ours=lambda x, matrix, packed: ops.quantized_linear(x, packed, len(matrix), scheme),
        theirs=lambda x, matrix, packed: F.linear(x, matrix),
        exact=exact,
        # Bytes are multiplied in two digits: as many instructions as bfloat16 takes.
        forward=Work(2 * rows * width * outputs, rows * (width + outputs), packed_bytes, torch.bfloat16),
        backward=None,
        # With 512 rows these take 3 to 150 times as long as the expanded weight does.
        rivals={scheme: _torchs_int8 if scheme == "int8" else _torchs_int4} if rows < 64 else {},
    )


@functools.lru_cache(maxsize=1)  # of rows that follow one another: it takes seconds to make
def _quantized_weight(scheme: str, width: int, outputs: int) -> tuple[Tensor, Tensor]:
    """A weight that was rounded: packed, and as a matrix in float64."""
    packed = ops.quantize_weight(Draw(torch.float32).normal(outputs, width, scale=width**-0.5), scheme)
    return packed, reference.quantized_weight(packed, outputs, width, scheme)


def _torchs_int8(x: Tensor, matrix: Tensor, packed: Tensor) -> Tensor:
    """By the kernel that PyTorch has for weights in 8 bits, with a scale for each output."""
    del packed
    return torch._weight_int8pack_mm(x, *_rounded_for_torch(matrix, "int8"))


def _torchs_int4(x: Tensor, matrix: Tensor, packed: Tensor) -> Tensor:
    """By the kernel that PyTorch has for weights in 4 bits, with a scale and an offset for every 32 inputs."""
    del packed
    weight, scales = _rounded_for_torch(matrix, "int4")
    return torch._weight_int4pack_mm_for_cpu(x, weight, 32, scales)[:, : len(matrix)]


@functools.lru_cache(maxsize=1)  # of the case that is measured: made by the call that does not count
def _rounded_for_torch(matrix: Tensor, scheme: str) -> tuple[Tensor, Tensor]:
    """A matrix in the form that PyTorch's kernels read."""
    if scheme == "int8":
        scale = matrix.float().abs().amax(dim=1).clamp(min=1e-30) / 127
        return (matrix.float() / scale.unsqueeze(1)).round().to(torch.int8), scale.to(matrix.dtype)
    groups = F.pad(matrix.float(), (0, 0, 0, -len(matrix) % 16)).unflatten(1, (-1, 32))  # rows come in sixteens
    low, high = groups.amin(dim=2, keepdim=True), groups.amax(dim=2, keepdim=True)
    scale = ((high - low) / 15).clamp(min=1e-30)
    numbers = ((groups - low) / scale).round().to(torch.int32).flatten(1)
    scales = torch.cat([scale, low + 8 * scale], dim=2).transpose(0, 1).contiguous().to(matrix.dtype)
    return torch._convert_weight_to_int4pack_for_cpu(numbers, 1), scales


def attention_row(B: int, T: int, H: int, D: int, causal: bool) -> Row:
    """Attention of T tokens to themselves."""

    def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)

    pairs = B * H * (T * (T + 1) / 2 if causal else T * T)  # of a query and a key that it sees
    elements = B * T * H * D
    return Row(
        "attention",
        "attention, causal" if causal else "attention",
        f"({B}, {T}, {H}, {D})",
        lambda d: {name: d.normal(B, T, H, D) for name in ("q", "k", "v")},
        ours=lambda q, k, v: ops.attention(q, k, v, causal=causal),
        theirs=theirs,
        exact=lambda q, k, v: reference.attention(q, k, v, causal=causal),
        forward=Work(4 * D * pairs, 4 * elements),
        backward=Work(10 * D * pairs, 8 * elements),
    )


# Of the models whose sizes are measured on a GPU: GPT-2 XL, and GPT-3 13B.
XL = Sizes(batch=16, time=1024, head_rows=4096, heads=25, width=1600, hidden=6400)
LARGE = Sizes(batch=8, time=2048, head_rows=2048, heads=40, head_dim=128, width=5120, hidden=20480)
TOKENS_OF_ATTENTION = 16384  # in a batch, whatever the sequence's length


def gpu_rows() -> Iterator[tuple[Row, Row]]:
    """More rows for a GPU, for 16-bit dtypes, each with a small one that its errors are measured at."""
    for heads, head_dim in ((16, 64), (16, 128)):
        for causal in (True, False):
            for time in (512, 2048, 8192, 16384):
                row = attention_row(TOKENS_OF_ATTENTION // time, time, heads, head_dim, causal)
                rivals = {name: _with_backend(row.theirs, backend) for name, backend in BACKENDS.items()}
                yield replace(row, rivals=rivals), attention_row(1, 256, heads, head_dim, causal)
    for sizes in (XL, LARGE):
        small = replace(sizes, batch=1, time=256, head_rows=64)
        for row, at_errors in zip(op_rows(sizes), op_rows(small), strict=True):
            if row.op in ("layer_norm", "linear", "feed_forward", "cross_entropy"):
                yield row, at_errors


BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def _with_backend(attend: Callable[..., Tensor], backend: SDPBackend) -> Callable[..., Tensor]:
    """PyTorch's attention by one of its kernels."""

    def run(**inputs: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return attend(**inputs)

    return run


ADAMW = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}


def _adamw(param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: float) -> Tensor:
    """In place, as in PyTorch; ``step`` is the number of the step."""
    ops.adamw([param], [grad], [exp_avg], [exp_avg_sq], [None], [step], **ADAMW)
    return param


def _plain_adamw(param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: float) -> Tensor:
    lr, (beta1, beta2), eps, decay = ADAMW.values()
    adamw(
        [param],
        [grad],
        [exp_avg],
        [exp_avg_sq],
        max_exp_avg_sqs=[],
        state_steps=[torch.full((), step - 1)],
        fused=True,
        amsgrad=False,
        maximize=False,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=decay,
    )
    return param


def _sample(logits: Tensor, seeds: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    return ops.sample(logits, top_k=50, top_p=0.95, seeds=seeds, positions=positions)


def _plain_sample(logits: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """Log-probabilities of drawn tokens; torch.multinomial draws from one generator for all rows."""
    del seeds, positions
    highest, ids = logits.topk(50)
    weights = torch.softmax(highest, dim=-1)
    weights = weights.masked_fill(weights.cumsum(dim=-1) - weights >= 0.95, 0.0)
    tokens = ids.gather(-1, torch.multinomial(weights, 1))
    return torch.log_softmax(logits, dim=-1).gather(-1, tokens).squeeze(-1)


def overhead_row() -> Row:
    """So small that what is measured is the way from Python to the kernel and back."""
    return Row(
        "layer_norm",
        "overhead of one call",
        "layer_norm of (1, 8)",
        lambda d: {"x": d.normal(1, 8), "weight": d.normal(8), "bias": d.normal(8)},
        ours=ops.layer_norm,
        theirs=lambda x, weight, bias: F.layer_norm(x, (8,), weight, bias),
        exact=reference.layer_norm,
        forward=None,
        backward=None,
        dtypes=(torch.float32,),
    )


def cases(row: Row, small: Row) -> Iterator[Case]:
    """A row with each dtype, forward without gradient, and forward and backward; errors at the smaller size."""
    for dtype in row.dtypes:
        yield _case(row, small, dtype, None)
        if row.backward:
            yield _case(row, small, dtype, row.backward)


def _case(row: Row, small: Row, dtype: torch.dtype, backward: Work | None) -> Case:
    def contenders(compiled: bool) -> dict[str, Call]:
        draw = Draw(dtype)
        inputs = row.inputs(draw)
        grad = _gradient(row, inputs, draw) if backward else None
        out = {"pygpt": _call(row.ours, inputs, grad), "eager": _call(row.theirs, inputs, grad)}
        if compiled:
            out["compiled"] = _call(torch.compile(row.theirs), inputs, grad)  # compiles when it is first called
        for name, rival in row.rivals.items():
            call = _call(rival, inputs, grad)
            try:
                call()
            except RuntimeError:  # it does not take this input, or has not the memory for it
                continue
            out[name] = call
        return out

    def errors() -> tuple[float, float | None]:
        draw = Draw(dtype)
        inputs = small.inputs(draw)
        doubles = {n: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in inputs.items()}
        grad = _gradient(small, inputs, draw) if backward else None
        exact = _call(small.exact, doubles, grad)()
        copies = {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}
        theirs = largest_error(_call(small.theirs, copies, grad)(), exact) if small.comparable else None
        return largest_error(_call(small.ours, inputs, grad)(), exact), theirs

    return Case(
        op=row.op,
        name=row.name,
        shape=row.shape,
        dtype=dtype,
        direction="forward + backward" if backward else "forward",
        work=row.forward + backward if row.forward and backward else row.forward,
        contenders=contenders,
        errors=errors,
        recorded=row.forward is not None,  # a recording has no way from Python to the kernel
    )


def _gradient(row: Row, inputs: dict[str, Any], draw: Draw) -> Tensor:
    """Of the result, at random."""
    with torch.no_grad():
        out = row.ours(**inputs)
    return draw.normal(*out.shape).to(out.dtype)


def _call(function: Callable[..., Tensor], inputs: dict[str, Any], grad: Tensor | None) -> Callable[[], list[Tensor]]:
    """A call that gives the result; with ``grad`` also the gradients of all floating inputs, else without gradient."""
    if grad is None:

        def forward() -> list[Tensor]:
            with torch.no_grad():
                return [function(**inputs)]

        return forward
    floating = {n: v for n, v in inputs.items() if isinstance(v, Tensor) and v.is_floating_point()}
    leaves = {name: value.detach().requires_grad_() for name, value in floating.items()}

    def forward_and_backward() -> list[Tensor]:
        out = function(**{**inputs, **leaves})
        return [out.detach(), *torch.autograd.grad(out, list(leaves.values()), grad.to(out.dtype))]

    return forward_and_backward
