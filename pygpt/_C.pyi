"""The compiled kernels. Use pygpt.ops; these functions take what csrc/ops says and write into tensors given to them."""

from typing import Any

from torch import Tensor

__version__: str

def implementations() -> list[tuple[str, list[tuple[str, str]]]]: ...
def options_left(op: str) -> dict[str, str]: ...
def force(op: str, name: str | None) -> None: ...
def forced(op: str) -> str | None: ...
def last_used(op: str) -> str | None: ...
def build() -> dict[str, str]: ...
def instruction_sets() -> list[tuple[str, str]]: ...
def cuda_devices() -> tuple[list[dict[str, Any]], str]: ...
def measure_arithmetic(isa: str, dtype: str, seconds: float) -> float: ...
def measure_bandwidth(bytes: int, seconds: float) -> float: ...
def use_huge_pages(tensor: Tensor) -> None: ...
def adamw_step(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    masters: list[Tensor | None],
    steps: list[float],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    grad_scale: Tensor | None,
) -> None: ...
def add_forward(x: Tensor, y: Tensor, out: Tensor) -> None: ...
def add_backward(grad_out: Tensor, grad_y: Tensor) -> None: ...
def attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: str | None,
    scale: float,
    key_lengths: Tensor | None,
    query_start: Tensor | None,
    cu_seqlens: Tensor | None,
    mask: Tensor | None,
    bias: Tensor | None,
    window: int | None,
    softcap: float | None,
    dropout: float,
    seed: Tensor | None,
    out: Tensor,
    lse: Tensor,
    decode: bool,
) -> None: ...
def attention_weights(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: str | None,
    scale: float,
    key_lengths: Tensor | None,
    query_start: Tensor | None,
    cu_seqlens: Tensor | None,
    mask: Tensor | None,
    bias: Tensor | None,
    window: int | None,
    softcap: float | None,
    dropout: float,
    seed: Tensor | None,
    lse: Tensor,
    weights: Tensor,
) -> None: ...
def attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: str | None,
    scale: float,
    key_lengths: Tensor | None,
    query_start: Tensor | None,
    cu_seqlens: Tensor | None,
    mask: Tensor | None,
    bias: Tensor | None,
    window: int | None,
    softcap: float | None,
    dropout: float,
    seed: Tensor | None,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
) -> None: ...
def attention_bias_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: str | None,
    scale: float,
    key_lengths: Tensor | None,
    query_start: Tensor | None,
    cu_seqlens: Tensor | None,
    mask: Tensor | None,
    bias: Tensor | None,
    window: int | None,
    softcap: float | None,
    dropout: float,
    seed: Tensor | None,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    grad_bias: Tensor,
) -> None: ...
def cross_entropy_forward(
    logits: Tensor,
    targets: Tensor,
    ignore_index: int,
    reduction: str,
    loss: Tensor,
    maximum: Tensor | None,
    sum: Tensor | None,
) -> None: ...
def cross_entropy_backward(
    grad_loss: Tensor,
    logits: Tensor,
    targets: Tensor,
    maximum: Tensor,
    sum: Tensor,
    ignore_index: int,
    reduction: str,
    grad_logits: Tensor,
) -> None: ...
def dropout_forward(x: Tensor, seed: Tensor, p: float, out: Tensor) -> None: ...
def embedding_forward(ids: Tensor, table: Tensor, out: Tensor) -> None: ...
def embedding_backward(grad_out: Tensor, ids: Tensor, grad_table: Tensor) -> None: ...
def quantized_linear_forward(
    x: Tensor,
    weight: Tensor,
    scheme: str,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
    out: Tensor,
) -> None: ...
def quantized_linear_packed_bytes(out_features: int, in_features: int, scheme: str) -> int: ...
def sample_forward(
    logits: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    seeds: Tensor,
    positions: Tensor,
    tokens: Tensor,
    logprobs: Tensor,
) -> None: ...
def gated_product_forward(gate: Tensor, up: Tensor, activation: str, out: Tensor) -> None: ...
def gated_product_backward(
    grad_out: Tensor, gate: Tensor, up: Tensor, activation: str, grad_gate: Tensor, grad_up: Tensor
) -> None: ...
def grad_norm_forward(tensors: list[Tensor], out: Tensor) -> None: ...
def layer_norm_forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    out: Tensor,
    sum: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
) -> None: ...
def layer_norm_backward(
    grad_out: Tensor,
    grad_sum: Tensor | None,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    grad_x: Tensor,
    grad_narrow: Tensor | None,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
) -> None: ...
def linear_forward(
    x: Tensor,
    weight: Tensor,
    packed_weight: Tensor | None,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
    out: Tensor,
    pre_activation: Tensor | None,
    decode: bool,
) -> None: ...
def linear_backward(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    pre_activation: Tensor | None,
    activation: str | None,
    grad_x: Tensor | None,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
) -> None: ...
def linear_packed_bytes(weight: Tensor) -> int: ...
def linear_pack(weight: Tensor, packed_weight: Tensor) -> None: ...
def feed_forward_forward(
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor | None,
    w_out: Tensor,
    b_out: Tensor | None,
    packed_w_in: Tensor | None,
    packed_w_out: Tensor | None,
    activation: str | None,
    out: Tensor,
    pre_activation: Tensor | None,
    decode: bool,
) -> None: ...
def feed_forward_backward(
    grad_out: Tensor,
    x: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    pre_activation: Tensor,
    activation: str | None,
    grad_x: Tensor | None,
    grad_w_in: Tensor | None,
    grad_b_in: Tensor | None,
    grad_w_out: Tensor | None,
    grad_b_out: Tensor | None,
) -> None: ...
def linear_cross_entropy_forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    ignore_index: int,
    reduction: str,
    loss: Tensor | None,
    grad_losses: Tensor | None,
    grad_hidden: Tensor | None,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
) -> None: ...
def rms_norm_forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    eps: float,
    out: Tensor,
    sum: Tensor | None,
    rstd: Tensor | None,
) -> None: ...
def rms_norm_backward(
    grad_out: Tensor,
    grad_sum: Tensor | None,
    x: Tensor,
    weight: Tensor,
    rstd: Tensor,
    grad_x: Tensor,
    grad_narrow: Tensor | None,
    grad_weight: Tensor | None,
) -> None: ...
def rotary_forward(x: Tensor, positions: Tensor, table: Tensor, back: bool, out: Tensor) -> None: ...
def session_begin() -> object: ...
def session_end(recording: object) -> None: ...
def session_run(recording: object) -> None: ...
def session_places(
    tokens: Tensor,
    lengths: Tensor,
    alive: Tensor,
    capacity: int,
    ids: Tensor,
    positions: Tensor,
    slots: Tensor,
    query_start: Tensor,
    key_lengths: Tensor,
) -> None: ...
def session_append(tokens: Tensor, lengths: Tensor, alive: Tensor, chosen: Tensor, ends: Tensor) -> None: ...
def session_copy(x: Tensor, out: Tensor) -> None: ...
def session_store(k: Tensor, v: Tensor, slots: Tensor, k_cache: Tensor, v_cache: Tensor) -> None: ...
