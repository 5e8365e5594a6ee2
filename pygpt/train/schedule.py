"""The learning rate of each step: a warm-up, then cosine, linear, constant or warm-up-stable-decay."""

import math
from dataclasses import dataclass

SCHEDULES = ("cosine", "linear", "constant", "wsd")


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a function of the step.

    With s the step from 0, p = (s − warmup) / (steps − warmup) and d = (s − (steps − decay)) / decay:

    * warm-up, s < warmup: peak · ((s + 1) / warmup)
    * ``cosine``: floor + (peak − floor) · (1 + cos(π p)) / 2
    * ``linear``: floor + (peak − floor) · (1 − p)
    * ``constant``: peak
    * ``wsd``: peak while d < 0, then floor + (peak − floor) · (1 − √d)

    The floor would be reached at s = steps, one step after the last: no step is taken at a rate of zero.

    Args:
        kind: one of ``SCHEDULES``.
        peak: the highest rate.
        steps: how many steps the training has.
        warmup: steps of linear warm-up.
        floor: the lowest rate after the warm-up.
        decay: steps of the decay that ends ``wsd``.

    Raises: ValueError naming the argument that does not fit.
    Source: cosine: Loshchilov, Hutter, "SGDR", 2017, eq. 5. WSD and its 1 − √ decay: Hägele et al., "Scaling Laws and
        Compute-Optimal Training Beyond Fixed Training Durations", 2024, section 3.
    """

    kind: str
    peak: float
    steps: int
    warmup: int = 0
    floor: float = 0.0
    decay: int = 0

    def __post_init__(self) -> None:
        if self.kind not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, not {self.kind!r}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")
        if not 0 <= self.warmup <= self.steps:
            raise ValueError(f"warmup must be between 0 and steps, {self.steps}, not {self.warmup}")
        if not 0 <= self.decay <= self.steps - self.warmup:
            raise ValueError(
                f"decay must be between 0 and the {self.steps - self.warmup} steps after the warm-up, not {self.decay}"
            )
        if not (math.isfinite(self.peak) and self.peak > 0):
            raise ValueError(f"the peak learning rate must be positive and finite, not {self.peak}")
        if not 0 <= self.floor <= self.peak:
            raise ValueError(f"the lowest learning rate must be between 0 and the peak, {self.peak}, not {self.floor}")

    def __call__(self, step: int) -> float:
        """The learning rate of ``step``, counted from 0; steps past the end keep the floor."""
        if step < self.warmup:
            return self.peak * ((step + 1) / self.warmup)
        if self.kind == "constant":
            return self.peak
        if self.kind == "wsd":
            return self._between(1 - math.sqrt(_share(step, self.steps - self.decay, self.steps)))
        progress = _share(step, self.warmup, self.steps)
        return self._between((1 + math.cos(math.pi * progress)) / 2 if self.kind == "cosine" else 1 - progress)

    def _between(self, share: float) -> float:
        return min(self.peak, self.floor + (self.peak - self.floor) * share)  # rounding may pass the peak


def _share(step: int, start: int, end: int) -> float:
    """How far ``step`` is from ``start`` to ``end``, within 0 and 1."""
    if step < start:
        return 0.0
    return (step - start) / (end - start) if step < end else 1.0
