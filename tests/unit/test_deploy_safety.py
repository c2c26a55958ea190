from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deploy.safety import (
    ClampMode,
    CommandLimits,
    PositionLimit,
    Range,
    RateLimit,
    SafetyConfig,
    TermWatch,
    WatchedTerm,
    compile_limits,
    filter_command,
)
from mpo_robot.errors import ConfigError
from mpo_robot.specs import PolicySpec, TermSpec

SPEC = PolicySpec(
    observation=(TermSpec("position", 2, "rad"), TermSpec("velocity", 2, "rad/s")),
    command=(TermSpec("hip", 1, "rad", (-1.0,), (1.0,)), TermSpec("knee", 2, "rad", (0.0, 0.0), (2.0, 2.0))),
    control_dt=0.1,
)
ZERO = np.zeros(3, np.float32)


def array(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def limits(position: PositionLimit | None = None, rate: RateLimit | None = None) -> CommandLimits:
    return compile_limits(SafetyConfig(position=position or PositionLimit(), rate=rate or RateLimit()), SPEC)


def test_command_inside_all_limits_passes_unchanged() -> None:
    command = array(0.1, 0.1, 0.2)
    result = filter_command(command, ZERO, limits(rate=RateLimit(max_per_second={"default": 5.0})))
    assert result.command is not None
    np.testing.assert_array_equal(result.command, command)
    assert (result.modified, result.violations, result.stop) == (False, (), "")


def test_command_at_the_bounds_is_no_violation_without_margin() -> None:
    for action in (-5.0, 5.0):
        command = SPEC.to_command(np.full(3, action))
        assert not filter_command(command, command, limits()).modified


def test_soft_margin_clamps_inside_the_bounds() -> None:
    result = filter_command(array(1.0, 2.0, 1.0), array(0, 1, 1), limits(PositionLimit(margin=0.1)))
    assert result.command is not None
    np.testing.assert_allclose(result.command, [0.8, 1.8, 1.0], rtol=1e-6)
    assert result.modified
    assert result.violations == ("position",)


def test_term_range_narrows_but_never_widens() -> None:
    compiled = limits(PositionLimit(terms={"hip": Range(low=-9.0, high=0.5), "knee": Range(low=1.0)}))
    np.testing.assert_array_equal(compiled.low, array(-1.0, 1.0, 1.0))
    np.testing.assert_array_equal(compiled.high, array(0.5, 2.0, 2.0))


def test_rate_limit_is_per_second_and_per_term() -> None:
    rate = RateLimit(max_per_second={"hip": 2.0, "default": 1.0})
    result = filter_command(array(1.0, 2.0, 0.05), ZERO, limits(rate=rate))
    assert result.command is not None
    np.testing.assert_allclose(result.command, [0.2, 0.1, 0.05], rtol=1e-6)
    assert result.violations == ("rate",)


def test_term_without_a_rate_is_not_limited() -> None:
    result = filter_command(array(1.0, 2.0, 2.0), ZERO, limits(rate=RateLimit(max_per_second={"knee": 1.0})))
    assert result.command is not None
    np.testing.assert_allclose(result.command, [1.0, 0.1, 0.1], rtol=1e-6)


@pytest.mark.parametrize(
    ("mode", "sent", "modified", "violations", "stops"),
    [
        ("off", 1.5, False, (), False),
        ("warn", 1.5, False, ("position",), False),
        ("clamp", 1.0, True, ("position",), False),
        ("stop", None, False, ("position",), True),
    ],
)
def test_position_modes(
    mode: ClampMode, sent: float | None, modified: bool, violations: tuple[str, ...], stops: bool
) -> None:
    result = filter_command(array(1.5, 1.0, 1.0), array(1, 1, 1), limits(PositionLimit(mode=mode)))
    assert (result.command is None) == stops
    if result.command is not None:
        assert result.command[0] == sent
    assert (result.modified, result.violations, bool(result.stop)) == (modified, violations, stops)


@pytest.mark.parametrize("mode", ["off", "warn", "clamp", "stop"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_never_passes_in_any_mode(mode: ClampMode, bad: float) -> None:
    compiled = limits(PositionLimit(mode=mode), RateLimit(mode=mode, max_per_second={"default": 1.0}))
    previous = array(0.3, 0.4, 0.5)
    result = filter_command(array(0.3, bad, 0.5), previous, compiled)
    assert result.command is not None
    np.testing.assert_array_equal(result.command, previous)
    assert result.modified
    assert result.violations == ("nan",)


def test_non_finite_previous_command_stops() -> None:
    result = filter_command(ZERO, array(0, np.nan, 0), limits())
    assert result.command is None
    assert "not finite" in result.stop


@given(
    command=hnp.arrays(np.float32, 3, elements=st.floats(width=32)),
    previous=hnp.arrays(np.float32, 3, elements=st.floats(-3, 3, width=32)),
    margin=st.floats(0, 0.4),
    per_second=st.floats(0.1, 100),
)
def test_clamped_commands_are_finite_smooth_and_come_back_inside(
    command: np.ndarray, previous: np.ndarray, margin: float, per_second: float
) -> None:
    compiled = limits(PositionLimit(margin=margin), RateLimit(max_per_second={"default": per_second}))
    result = filter_command(command, previous, compiled)
    assert result.command is not None
    assert np.isfinite(result.command).all()
    step = np.abs(result.command.astype(np.float64) - previous)
    assert (step <= per_second * SPEC.control_dt * (1 + 1e-5) + 1e-6).all()
    was_inside = (previous >= compiled.low) & (previous <= compiled.high)
    is_inside = (result.command >= compiled.low) & (result.command <= compiled.high)
    assert (is_inside | ~was_inside).all()
    distance = np.maximum(compiled.low - result.command, result.command - compiled.high)
    before = np.maximum(compiled.low - previous, previous - compiled.high)
    assert (distance <= np.maximum(before, 0)).all(), "a command moved away from the allowed range"
    assert result.modified == (not np.array_equal(result.command, command))


def test_watch_counts_consecutive_readings() -> None:
    watch = TermWatch(SafetyConfig(watch=(WatchedTerm("velocity", 2.0, ticks=2),)), SPEC)
    fast, slow = array(9, 9, 0, -2.5), array(9, 9, 0, 1)
    assert watch.check(fast) == (("velocity",), "")
    assert watch.check(slow) == ((), "")
    assert watch.check(fast) == (("velocity",), "")
    violations, stop = watch.check(fast)
    assert violations == ("velocity",)
    assert stop == "velocity is 2.5, limit 2"


def test_watch_modes_and_nan() -> None:
    config = SafetyConfig(watch=(WatchedTerm("velocity", 2.0, mode="warn"), WatchedTerm("position", 1.0, mode="off")))
    assert TermWatch(config, SPEC).check(array(5, 5, np.nan, 0)) == (("velocity",), "")
    stopping = TermWatch(SafetyConfig(watch=(WatchedTerm("velocity", 2.0),)), SPEC)
    assert stopping.check(array(0, 0, 0, np.nan))[1]


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (SafetyConfig(position=PositionLimit(margin=0.5)), "margin"),
        (SafetyConfig(position=PositionLimit(terms={"hup": Range()})), "did you mean 'hip'"),
        (SafetyConfig(position=PositionLimit(terms={"hip": Range(low=2.0)})), "no command is allowed"),
        (SafetyConfig(rate=RateLimit(max_per_second={"elbow": 1.0})), "unknown term 'elbow'"),
        (SafetyConfig(rate=RateLimit(max_per_second={"hip": 0.0})), "must be positive"),
    ],
)
def test_senseless_limits_are_refused(config: SafetyConfig, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        compile_limits(config, SPEC)


@pytest.mark.parametrize(
    ("item", "text"),
    [(WatchedTerm("velocty", 1.0), "did you mean 'velocity'"), (WatchedTerm("velocity", 0.0), "max_abs")],
)
def test_senseless_watches_are_refused(item: WatchedTerm, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        TermWatch(SafetyConfig(watch=(item,)), SPEC)
