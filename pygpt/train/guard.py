"""Steps that would harm the model: a loss or a gradient norm that is not a number or far above the recent ones."""

import math
import statistics
from collections import deque
from typing import Any


class SpikeGuard:
    """Says of each step whether to take it, by its loss and its gradient norm.

    A value is refused if it is not finite, or above mean + sigma · max(deviation, mean / 50) of the values of the last
    ``window`` steps that were taken. Spikes are looked for once half the window is filled, since the first steps of a
    training change too fast to be compared. The lower bound of the deviation keeps a loss that has stopped moving from
    being guarded too tightly.

    Args:
        sigma: how many deviations above the mean is a spike; None looks only for values that are not finite.
        window: how many past steps are compared with.
        patience: how many refused steps in a row are too many.

    Source: OLMo-core's SkipStepOptimizer (Allen Institute for AI, 2024), whose window and sigma are the defaults here.
    """

    def __init__(self, sigma: float | None = 6.0, window: int = 128, patience: int = 10) -> None:
        if sigma is not None and not sigma > 0:
            raise ValueError(f"sigma must be positive or None, not {sigma}")
        if window < 2:
            raise ValueError(f"window must be at least 2, not {window}")
        if patience < 1:
            raise ValueError(f"patience must be at least 1, not {patience}")
        self.sigma = sigma
        self.window = window
        self.patience = patience
        self.refused_in_a_row = 0
        self._past: dict[str, deque[float]] = {name: deque(maxlen=window) for name in ("loss", "gradient norm")}

    def refuse(self, loss: float, gradient_norm: float) -> str | None:
        """The reason why the step should be skipped, or None to take it. Call it once per step."""
        values = {"loss": loss, "gradient norm": gradient_norm}
        for name, value in values.items():
            reason = self._reason(name, value)
            if reason is not None:
                self.refused_in_a_row += 1
                return reason
        self.refused_in_a_row = 0
        for name, value in values.items():
            self._past[name].append(value)
        return None

    @property
    def exhausted(self) -> bool:
        """Whether ``patience`` steps in a row were refused."""
        return self.refused_in_a_row >= self.patience

    def _reason(self, name: str, value: float) -> str | None:
        if not math.isfinite(value):
            return f"the {name} is {value}"
        past = self._past[name]
        if self.sigma is None or len(past) < self.window // 2:
            return None
        mean = statistics.fmean(past)
        limit = mean + self.sigma * max(statistics.pstdev(past, mean), abs(mean) / 50)
        if value <= limit:
            return None
        return f"the {name} is {value:.4g}, above {limit:.4g}: a mean of {mean:.4g} and {self.sigma:g} deviations"

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` needs to go on as if nothing had happened, as plain JSON values."""
        return {
            "refused_in_a_row": self.refused_in_a_row,
            "past": {name: list(values) for name, values in self._past.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self.refused_in_a_row = int(state["refused_in_a_row"])
        for name, values in self._past.items():
            values.clear()
            values.extend(float(value) for value in state["past"][name])
