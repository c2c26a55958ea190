from __future__ import annotations

import numpy as np
import pytest

from deploy.observation_checks import (
    CheckMode,
    FrozenCheck,
    NonFiniteCheck,
    ObservationConfig,
    ObservationMonitor,
    OrderCheck,
    StaleCheck,
    Verdict,
)
from deploy.robot import Measurement
from mpo_robot.errors import ConfigError

DT = 0.01
MS = 1_000_000


def reading(time_ms: float, *values: float) -> Measurement:
    observation = np.array(values or (time_ms, 1.0), np.float32)
    return Measurement(observation, round(time_ms * MS), 0.0, False, False, {})


def monitor(check_age: bool = True, **checks: object) -> ObservationMonitor:
    return ObservationMonitor(ObservationConfig(**checks), DT, check_age)  # type: ignore[arg-type]


def test_fresh_moving_finite_readings_are_usable() -> None:
    watch = monitor()
    for k in range(100):
        assert watch.check(reading(10 * k), round(10 * k + 1) * MS) == (True, (), "")


def age_verdict(age_ns: int, **checks: object) -> Verdict:
    watch = monitor(**checks)
    watch.check(reading(0), 0)
    return watch.check(reading(1), MS + age_ns)


def test_age_limit_is_one_period_unless_given() -> None:
    assert age_verdict(10 * MS).usable
    assert age_verdict(10 * MS + 1) == (False, ("stale",), "")
    assert age_verdict(20 * MS, stale=StaleCheck(max_age_s=0.02)).usable
    assert age_verdict(10**12, check_age=False).usable


def test_first_reading_may_be_old() -> None:
    assert monitor().check(reading(0), 10**12).usable


def test_old_and_repeated_readings_are_out_of_order() -> None:
    watch = monitor(check_age=False)
    assert watch.check(reading(20), 0).usable
    assert watch.check(reading(20, 5, 5), 0).faults == ("order",)
    assert watch.check(reading(10), 0).faults == ("order",)
    assert watch.check(reading(19), 0).faults == ("order",), "the newest time counts, not the last"
    assert watch.check(reading(21), 0).usable


def test_frozen_sensor_is_found_after_its_ticks_and_forgotten_on_change() -> None:
    watch = monitor(False, frozen=FrozenCheck(mode="fallback", ticks=2))
    usable = [watch.check(reading(k, *values), 0).usable for k, values in enumerate([(1, 2)] * 4 + [(1, 3)])]
    assert usable == [True, True, False, False, True]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("off", (True, (), "")),
        ("warn", (True, ("order",), "")),
        ("fallback", (False, ("order",), "")),
        ("stop", (False, ("order",), "observation check 'order' failed")),
    ],
)
def test_modes(mode: CheckMode, expected: tuple) -> None:
    watch = monitor(False, order=OrderCheck(mode=mode))
    watch.check(reading(5), 0)
    assert watch.check(reading(5, 1, 1), 0) == expected


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_readings_are_never_usable(bad: float) -> None:
    assert monitor(False).check(reading(0, 1, bad), 0) == (False, ("non_finite",), "")
    assert monitor(False, non_finite=NonFiniteCheck("stop")).check(reading(0, 1, bad), 0).stop


def test_senseless_numbers_are_refused() -> None:
    with pytest.raises(ConfigError):
        ObservationConfig(frozen=FrozenCheck(ticks=0))
    with pytest.raises(ConfigError):
        ObservationConfig(stale=StaleCheck(max_age_s=-1.0))
