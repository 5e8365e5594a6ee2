"""The guard refuses what would harm the model, and nothing else."""

import json
import math
import random

import pytest

from pygpt.train.guard import SpikeGuard


def filled(**options: object) -> SpikeGuard:
    guard = SpikeGuard(**options)  # type: ignore[arg-type]
    generator = random.Random(0)
    for _ in range(guard.window):
        assert guard.refuse(3 + generator.gauss(0, 0.1), 1 + generator.gauss(0, 0.1)) is None
    return guard


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_refuses_what_is_not_finite_from_the_first_step(value: float) -> None:
    assert SpikeGuard().refuse(value, 1.0) == f"the loss is {value}"
    assert SpikeGuard(sigma=None).refuse(1.0, value) == f"the gradient norm is {value}"


def test_refuses_spikes_of_either_value() -> None:
    guard = filled()
    assert guard.refuse(3.3, 1.2) is None
    assert (guard.refuse(30.0, 1.0) or "").startswith("the loss is 30, above 3.")
    assert (guard.refuse(3.0, 50.0) or "").startswith("the gradient norm is 50, above 1.")
    assert guard.refuse(3.0, 1.0) is None
    assert guard.refuse(0.1, 0.1) is None, "a fall is no spike"
    assert filled(sigma=None).refuse(30.0, 50.0) is None


def test_a_refused_value_does_not_move_the_limit() -> None:
    guard = filled(patience=1000)
    assert all(guard.refuse(30.0, 1.0) for _ in range(500))


def test_a_loss_that_stands_still_is_not_guarded_too_tightly() -> None:
    guard = SpikeGuard()
    for _ in range(200):
        assert guard.refuse(2.0, 1.0) is None
    assert guard.refuse(2.2, 1.1) is None
    assert guard.refuse(2.5, 1.0) is not None


def test_does_not_judge_spikes_before_half_the_window() -> None:
    guard = SpikeGuard(window=8)
    assert [guard.refuse(value, 1.0) for value in (1.0, 1.0, 1.0, 100.0)] == [None] * 4
    assert guard.refuse(1000.0, 1.0)


def test_patience() -> None:
    guard = SpikeGuard(patience=2)
    for values, exhausted in [((math.nan, 1), False), ((1, 1), False), ((math.nan, 1), False), ((1, math.inf), True)]:
        guard.refuse(*values)
        assert guard.exhausted is exhausted


def test_goes_on_from_its_state() -> None:
    guard, other = filled(patience=3), SpikeGuard(patience=3)
    guard.refuse(math.nan, 1.0)
    other.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    for values in [(30.0, 1.0), (3.2, 1.0), (3.0, 9.0)]:
        assert guard.refuse(*values) == other.refuse(*values)
        assert guard.exhausted == other.exhausted


@pytest.mark.parametrize("options", [{"sigma": 0.0}, {"sigma": math.nan}, {"window": 1}, {"patience": 0}])
def test_refuses_options(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        SpikeGuard(**options)  # type: ignore[arg-type]
