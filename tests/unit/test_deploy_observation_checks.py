from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from deploy.frozen_check import CheckMode, FrozenCheck
from deploy.observation_checks import (
    NonFiniteCheck,
    ObservationConfig,
    ObservationMonitor,
    OrderCheck,
    StaleCheck,
    Verdict,
)
from deploy.robot import Measurement
from mpo_robot.errors import ConfigError
from mpo_robot.specs import PolicySpec, TermSpec

SPEC = PolicySpec(
    observation=(TermSpec("encoder", 1, "rad"), TermSpec("gyro", 1, "rad/s")),
    command=(TermSpec("hip", 1, "rad", (-1.0,), (1.0,)), TermSpec("knee", 1, "rad", (0.0,), (4.0,))),
    control_dt=0.01,
)
MS = 1_000_000


def reading(time_ms: float, *values: float) -> Measurement:
    observation = np.array(values or (time_ms, -time_ms), np.float32)
    return Measurement(observation, round(time_ms * MS), 0.0, False, False, {})


def monitor(check_age: bool = True, **checks: object) -> ObservationMonitor:
    return ObservationMonitor(ObservationConfig(**checks), SPEC, check_age)  # type: ignore[arg-type]


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


def test_reading_from_the_future_is_unfit_and_later_ones_are_not_compared_with_it() -> None:
    watch = monitor()
    assert watch.check(reading(0), 0).usable
    assert watch.check(reading(15), 10 * MS).usable, "5 ms ahead is a clock that differs a little"
    assert watch.check(reading(1e6), 20 * MS) == (False, ("future",), "")
    assert [watch.check(reading(time), time * MS).usable for time in (30, 40, 50)] == [True] * 3


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (OrderCheck(max_ahead_s=0.02), (True, (), "")),
        (OrderCheck("fault"), (False, ("future",), "observation check 'future' failed")),
        (OrderCheck("off"), (True, (), "")),
    ],
)
def test_how_far_ahead_is_too_far_and_what_follows(order: OrderCheck, expected: tuple) -> None:
    assert monitor(order=order).check(reading(15), 0) == expected, "also the first reading"


def test_simulated_time_may_be_ahead() -> None:
    assert monitor(check_age=False).check(reading(1e6), 0).usable


def test_reading_after_a_first_one_from_the_future_must_be_fresh() -> None:
    watch = monitor()
    watch.check(reading(1e6), 0)
    assert watch.check(reading(0), 20 * MS).faults == ("stale",)


def test_frozen_sensor_is_found_after_its_ticks_and_forgotten_on_change() -> None:
    watch = monitor(False, frozen=FrozenCheck(mode="fallback", ticks=2, after_s=0.0))
    usable = [watch.check(reading(k, *values), 0).usable for k, values in enumerate([(1, 2)] * 4 + [(3, 4)])]
    assert usable == [True, True, False, False, True]


SWINGING = ((-0.5, 1.0), (0.5, 3.0))  # commands of which each scalar moves by half its half range
RESTING = ((0.5, 1.0), (0.5, 1.0))


def first_frozen(encoder: Callable[[int], float], gyro: Callable[[int], float], commands=SWINGING, **check: Any) -> int:
    """Index of the first reading that counts as frozen, of 2000 at 100 Hz; -1: none. Command k precedes reading k."""
    watch = monitor(False, frozen=FrozenCheck(mode="fallback", **check))
    for k in range(2000):
        command = np.array(commands[k // 10 % 2], np.float32)
        if watch.check(reading(k, encoder(k), gyro(k)), 0, command).faults:
            return k
    return -1


def test_frozen_encoder_beside_a_live_gyro_is_found_half_a_second_after_the_commands_moved() -> None:
    # It moves until reading 104. The commands swing at 110, and 50 readings from there have not changed.
    assert first_frozen(lambda k: min(k, 104), lambda k: k) == 159
    assert first_frozen(lambda k: min(k, 104), lambda k: k, after_s=0.0) == 134, "25 readings at least"
    assert first_frozen(lambda k: k, lambda k: min(k, 104)) == 159
    assert first_frozen(lambda k: k, lambda k: min(k, 104), exempt=("gyro",)) == -1


def test_robot_at_rest_repeats_itself_and_is_healthy() -> None:
    assert first_frozen(lambda k: 1.0, lambda k: 0.0, RESTING) == -1
    trembling = ((0.5, 1.0), (0.55, 1.1))
    assert first_frozen(lambda k: 1.0, lambda k: 0.0, trembling) == -1
    assert first_frozen(lambda k: 1.0, lambda k: 0.0, trembling, command_change=0.04) > 0
    other_joint = ((0.5, 1.0), (0.5, 3.0))  # an encoder per joint: the one of the hip may rest
    assert first_frozen(lambda k: 1.0, lambda k: k, other_joint) == -1


def test_slow_drift_of_commands_need_not_be_seen_by_a_coarse_sensor() -> None:
    watch = monitor(False, frozen=FrozenCheck(mode="fallback"))
    for k in range(1000):  # 0.08 of the half range in half a second
        command = np.array([-0.8 + 0.0016 * k, 0.4 + 0.0032 * k], np.float32)
        assert watch.check(reading(k, 1.0, 0.0), 0, command).usable


def test_first_answer_after_a_rest_has_its_time() -> None:
    """Commands begin to swing after 3 s at rest; the encoder answers 0.3 s later."""
    watch = monitor(False, frozen=FrozenCheck(mode="fallback"))
    for k in range(1000):
        command = np.array(SWINGING[k // 10 % 2] if k > 300 else SWINGING[0], np.float32)
        assert watch.check(reading(k, max(k - 330, 0), k), 0, command).usable


def test_all_terms_at_rest_for_too_long_are_frozen_where_that_cannot_be() -> None:
    assert first_frozen(lambda k: 1.0, lambda k: 0.0, RESTING, rest_s=5.0) == 500
    assert first_frozen(lambda k: 1.0, lambda k: k, RESTING, rest_s=5.0) == -1, "a live sensor"
    assert first_frozen(lambda k: 1.0, lambda k: k, RESTING, rest_s=5.0, exempt=("gyro",)) == 500


def test_fault_names_the_frozen_term() -> None:
    watch = monitor(False, frozen=FrozenCheck(ticks=1, after_s=0.0))  # no mode: a fault
    watch.check(reading(0, 1, 0), 0)
    assert "encoder has not changed" in watch.check(reading(1, 1, 1), 0).stop


def test_simulated_robots_may_rest_and_a_given_mode_stays() -> None:
    assert ObservationConfig().for_robot(is_simulated=True).frozen.mode == "warn"
    assert ObservationConfig().for_robot(is_simulated=False).frozen.mode == "fault"
    assert ObservationConfig(frozen=FrozenCheck("off")).for_robot(is_simulated=False).frozen.mode == "off"


@pytest.mark.parametrize(("exempt", "text"), [(("giro",), "did you mean 'gyro'"), (("encoder", "gyro"), "mode: off")])
def test_senseless_exemptions_are_refused(exempt: tuple[str, ...], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        monitor(frozen=FrozenCheck(exempt=exempt))


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
    for numbers in ({"ticks": 0}, {"after_s": -1.0}, {"rest_s": np.inf}, {"command_change": 0.0}):
        with pytest.raises(ConfigError):
            FrozenCheck(**numbers)
    with pytest.raises(ConfigError):
        ObservationConfig(stale=StaleCheck(max_age_s=-1.0))
    with pytest.raises(ConfigError):
        ObservationConfig(order=OrderCheck(max_ahead_s=-1.0))
