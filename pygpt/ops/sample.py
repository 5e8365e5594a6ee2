"""Drawing the next token from logits."""

from __future__ import annotations

from torch import Tensor

from pygpt.extension import C
from pygpt.ops.operation import Operation, accepts_numpy, contiguous, require_tensors


@accepts_numpy
def sample(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seeds: Tensor,
    positions: Tensor,
) -> tuple[Tensor, Tensor]:
    """Draw one token from each row of logits.

    In this order: divide by the temperature; keep the ``top_k`` highest; of these, keep the smallest set of the highest
    whose probabilities reach ``top_p``, the one that crosses it included; keep those with at least ``min_p`` times the
    highest probability; renormalise and draw. Among equal logits the lower id counts as higher.

    A row's token depends on its logits, seed and position alone: the draw inverts the cumulative distribution, in order
    of id, with one number from Philox.

    Args:
        logits: (batch, vocabulary), float32 or float64 (CPU); -inf for tokens that must not come.
        temperature: at least 0; 0 takes the highest.
        top_k: at least 1, or None.
        top_p: above 0 and at most 1, or None.
        min_p: 0 to 1, or None.
        seeds: (batch,), int64: each row's own seed.
        positions: (batch,), int64: the place of the drawn token in its row's sequence.

    Returns:
        The tokens, (batch,) int64, and the model's log-probability of each (before temperature and the rest), (batch,)
        in the dtype of ``logits``.

    Raises:
        ValueError: if a shape, device or option does not fit, or (on the CPU) a row holds NaN, +inf, or -inf alone.
        TypeError: if a dtype does not fit.

    Source: Fan et al., 2018 (top-k); Holtzman et al., 2020 (top-p); Nguyen et al., 2024 (min-p).
    """
    require_tensors(logits=logits, seeds=seeds, positions=positions)
    return _sample(logits, temperature, top_k, top_p, min_p, seeds, positions)  # type: ignore[no-any-return]


def _forward(
    logits: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    seeds: Tensor,
    positions: Tensor,
) -> tuple[Tensor, Tensor]:
    tokens, logprobs = seeds.new_empty(seeds.shape), logits.new_empty(seeds.shape)
    C.sample_forward(
        contiguous(logits), temperature, top_k, top_p, min_p, contiguous(seeds), contiguous(positions), tokens, logprobs
    )
    return tokens, logprobs


def _fake(
    logits: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    seeds: Tensor,
    positions: Tensor,
) -> tuple[Tensor, Tensor]:
    return seeds.new_empty(seeds.shape), logits.new_empty(seeds.shape)


_sample = Operation(
    "sample",
    "(Tensor logits, float temperature, int? top_k, float? top_p, float? min_p, Tensor seeds, Tensor positions)"
    " -> (Tensor, Tensor)",
    forward=_forward,
    fake=_fake,
)
