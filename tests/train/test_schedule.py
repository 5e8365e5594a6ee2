"""Learning rates: the formula at chosen points, and what holds for every schedule."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pygpt.train.schedule import SCHEDULES, Schedule


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # steps 100, warm-up 20, peak 2, floor 1, decay 40: at steps 0, 19, 20, 60, 70, 99
        (
            "cosine",
            [0.1, 2, 2, 1.5, 1 + (1 + math.cos(math.pi * 5 / 8)) / 2, 1 + (1 + math.cos(math.pi * 79 / 80)) / 2],
        ),
        ("linear", [0.1, 2, 2, 1.5, 1.375, 1 + 1 / 80]),
        ("constant", [0.1, 2, 2, 2, 2, 2]),
        ("wsd", [0.1, 2, 2, 2, 1.5, 2 - math.sqrt(39 / 40)]),
    ],
)
def test_formula(kind: str, expected: list[float]) -> None:
    schedule = Schedule(kind, peak=2.0, steps=100, warmup=20, floor=1.0, decay=40 if kind == "wsd" else 0)
    assert [schedule(step) for step in (0, 19, 20, 60, 70, 99)] == pytest.approx(expected, rel=1e-12)


@given(
    st.sampled_from(SCHEDULES),
    st.integers(1, 60),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(1e-8, 10),
    st.floats(0, 1),
)
def test_stays_in_bounds_rises_then_falls(
    kind: str, steps: int, warm: float, decaying: float, peak: float, floor: float
) -> None:
    warmup = round(warm * steps)
    schedule = Schedule(kind, peak, steps, warmup, floor * peak, round(decaying * (steps - warmup)))
    rates = [schedule(step) for step in range(steps)]
    assert all(0 < rate <= peak for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert max(rates) == pytest.approx(peak)
    assert schedule(steps + 5) == (peak if kind == "constant" else floor * peak)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "cosin"}, "schedule must be one of cosine, linear, constant, wsd, not 'cosin'"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"warmup": 11}, "warmup must be between 0 and steps, 10, not 11"),
        ({"warmup": 4, "decay": 7}, "decay must be between 0 and the 6 steps after the warm-up, not 7"),
        ({"peak": math.inf}, "peak learning rate must be positive and finite, not inf"),
        ({"floor": 2.0}, "lowest learning rate must be between 0 and the peak, 1.0, not 2.0"),
    ],
)
def test_refuses(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(**{"kind": "wsd", "peak": 1.0, "steps": 10, **changes})  # type: ignore[arg-type]
