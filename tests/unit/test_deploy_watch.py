from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deploy.robot import Measurement
from deploy.watch import TermWatch, WatchedTerm, draw_back, tilt_degrees
from mpo_robot.errors import ConfigError
from mpo_robot.specs import PolicySpec, TermSpec

SPEC = PolicySpec(
    observation=(TermSpec("position", 2, "rad"), TermSpec("velocity", 2, "rad/s"), TermSpec("gravity", 3)),
    command=(TermSpec("hip", 1, "rad", (-1.0,), (1.0,)),),
    control_dt=0.1,
)


def reading(*values: float, **info: Any) -> Measurement:
    observation = np.zeros(7, np.float32)
    observation[: len(values)] = values
    observation[6] = -1.0 if len(values) < 7 else values[6]
    return Measurement(observation, 0, 0.0, False, False, info)


def watch(*items: WatchedTerm) -> TermWatch:
    return TermWatch(items, SPEC)


def test_fault_needs_consecutive_readings() -> None:
    watched = watch(WatchedTerm("velocity", 2.0, ticks=2))
    fast, slow = reading(9, 9, 0, -2.5), reading(9, 9, 0, 1)
    assert watched.check(fast) == (("velocity",), "", 1.0)
    assert watched.check(slow) == ((), "", 1.0)
    assert watched.check(fast) == (("velocity",), "", 1.0)
    assert watched.check(fast) == (("velocity",), "velocity is 2.5, limit 2", 1.0)


@pytest.mark.parametrize("word", ["fault", "stop"])
def test_stop_is_the_older_word_for_fault(word: Any) -> None:
    assert watch(WatchedTerm("velocity", 2.0, mode=word)).check(reading(0, 0, 3)).fault


def test_modes_and_nan() -> None:
    watched = watch(WatchedTerm("velocity", 2.0, mode="warn"), WatchedTerm("position", 1.0, mode="off"))
    assert watched.check(reading(5, 5, math.nan, 0)) == (("velocity",), "", 1.0)
    assert watch(WatchedTerm("velocity", 2.0)).check(reading(0, 0, 0, math.nan)).fault


def test_clamp_leaves_a_share_of_the_command_by_excess() -> None:
    watched = watch(WatchedTerm("velocity", 2.0, mode="clamp", soft_zone=4.0))
    shares = [watched.check(reading(0, 0, speed)).authority for speed in (0, 2, 3, 5, 6, 99, math.nan)]
    assert shares == [1.0, 1.0, 0.75, 0.25, 0.0, 0.0, 0.0]
    assert not watched.check(reading(0, 0, 99)).fault


def test_strictest_of_several_limits_counts() -> None:
    watched = watch(
        WatchedTerm("velocity", 2.0, mode="clamp", soft_zone=4.0),
        WatchedTerm("info.temperature", mode="clamp", high=60.0, soft_zone=10.0),
    )
    result = watched.check(reading(0, 0, 3, temperature=[40.0, 69.0]))
    assert result.authority == pytest.approx(0.1)
    assert result.violations == ("velocity", "info.temperature")


def test_battery_and_temperature_come_from_what_the_driver_reports() -> None:
    watched = watch(
        WatchedTerm("info.battery_v", low=21.0), WatchedTerm("info.health.temperature", high=70.0, mode="warn")
    )
    assert watched.check(reading(battery_v=24.0, health={"temperature": (30, 40)})) == ((), "", 1.0)
    low = watched.check(reading(battery_v=20.5, health={"temperature": (30, 40)}))
    assert low.fault == "info.battery_v is 20.5, allowed from 21 to inf"
    assert watched.check(reading(battery_v=24.0, health={"temperature": (30, 71)})).violations == (
        "info.health.temperature",
    )


@pytest.mark.parametrize("info", [{}, {"battery_v": None}, {"battery_v": "full"}, {"battery_v": {}}, {"battery_v": []}])
def test_value_that_is_not_there_is_beyond_the_limit(info: dict[str, Any]) -> None:
    result = watch(WatchedTerm("info.battery_v", low=21.0)).check(reading(**info))
    assert result.fault == "info.battery_v is not in the robot's readings"


def test_workspace_is_a_box_of_low_and_high() -> None:
    box = WatchedTerm("position", low=(0.0, -1.0), high=(1.0, 1.0))
    assert not watch(box).check(reading(0.5, 0.0)).fault
    assert "allowed from 0, -1 to 1, 1" in watch(box).check(reading(0.5, -1.1)).fault
    assert watch(box).check(reading(1.01, 0.0)).fault
    soft = WatchedTerm("position", low=(0.0, -1.0), high=(1.0, 1.0), mode="clamp", soft_zone=0.2)
    assert watch(soft).check(reading(1.1, 0.0)).authority == pytest.approx(0.5, abs=1e-6)


def test_tilt_of_gravity_and_quaternion() -> None:
    for degrees in (0.0, 30.0, 90.0, 135.0):
        angle = math.radians(degrees)
        assert tilt_degrees(np.array([9.81 * math.sin(angle), 0.0, -9.81 * math.cos(angle)])) == pytest.approx(degrees)
        rolled = np.array([math.cos(angle / 2), math.sin(angle / 2), 0.0, 0.0])
        assert tilt_degrees(rolled) == pytest.approx(degrees, abs=1e-5)
        assert tilt_degrees(-rolled) == pytest.approx(degrees, abs=1e-5), "q and -q are the same orientation"
    turned = np.array([math.cos(0.7), 0.0, 0.0, math.sin(0.7)])
    assert tilt_degrees(turned) == pytest.approx(0.0, abs=1e-5), "turning about the vertical is no tilt"
    assert math.isnan(tilt_degrees(np.zeros(3)))


def test_tilt_limit() -> None:
    watched = watch(WatchedTerm("gravity", tilt_deg=45.0))
    assert not watched.check(reading()).fault
    assert "limit 45" in watched.check(reading(0, 0, 0, 0, 1.0, 0, -0.9)).fault
    assert watched.check(reading(0, 0, 0, 0, 0, 0, 0)).fault, "no direction of gravity is no upright robot"
    quaternion = watch(WatchedTerm("info.orientation", tilt_deg=45.0))
    assert not quaternion.check(reading(orientation=[1, 0, 0, 0])).fault
    assert quaternion.check(reading(orientation=[0, 1, 0, 0])).fault
    assert quaternion.check(reading(orientation=[1, 0])).fault


@given(
    command=hnp.arrays(np.float32, 3, elements=st.floats(-1e6, 1e6, width=32)),
    safe_pose=hnp.arrays(np.float32, 3, elements=st.floats(-1e6, 1e6, width=32)),
    authority=st.floats(-0.5, 1.5),
)
def test_drawn_back_command_lies_between_command_and_safe_pose(
    command: np.ndarray, safe_pose: np.ndarray, authority: float
) -> None:
    result = draw_back(command, safe_pose, authority)
    assert result.dtype == np.float32
    assert (result >= np.minimum(command, safe_pose)).all()
    assert (result <= np.maximum(command, safe_pose)).all()
    if authority >= 1:
        np.testing.assert_array_equal(result, command)
    if authority <= 0:
        np.testing.assert_array_equal(result, safe_pose)


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (WatchedTerm("velocty", 1.0), "did you mean 'velocity'"),
        (WatchedTerm("zzz", 1.0), "info.NAME"),
        (WatchedTerm("velocity", 0.0), "max_abs"),
        (WatchedTerm("velocity"), "exactly one"),
        (WatchedTerm("velocity", 1.0, low=0.0), "exactly one"),
        (WatchedTerm("velocity", low=1.0, high=1.0), "must be below high"),
        (WatchedTerm("velocity", low=(1.0, 2.0, 3.0)), "3 numbers, the term 2"),
        (WatchedTerm("velocity", tilt_deg=45.0), "gravity"),
        (WatchedTerm("gravity", tilt_deg=0.0), "tilt_deg"),
        (WatchedTerm("velocity", 1.0, mode="clamp"), "soft_zone"),
        (WatchedTerm("velocity", 1.0, mode="clamp", soft_zone=np.inf), "soft_zone of 'velocity' must be finite"),
        (WatchedTerm("velocity", np.inf), "max_abs of 'velocity' must be finite"),
        (WatchedTerm("velocity", high=(1.0, np.inf)), "high of 'velocity' must be finite"),
        (WatchedTerm("velocity", low=-np.inf), "low of 'velocity' must be finite"),
        (WatchedTerm("velocity", 1.0, ticks=0), "ticks"),
    ],
)
def test_senseless_watches_are_refused(item: WatchedTerm, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        watch(item)
