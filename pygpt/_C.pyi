"""The compiled kernels. Use pygpt.ops; these functions take what csrc/ops says and write into tensors given to them."""

from torch import Tensor

__version__: str

def implementations() -> list[tuple[str, list[tuple[str, str]]]]: ...
def force(op: str, name: str | None) -> None: ...
def forced(op: str) -> str | None: ...
def last_used(op: str) -> str | None: ...
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
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
) -> None: ...
