from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deploy.safety import (
    AccelerationLimit,
    ClampMode,
    CommandLimits,
    PositionLimit,
    Range,
    RateLimit,
    SafetyConfig,
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


def limits(
    position: PositionLimit | None = None,
    rate: RateLimit | None = None,
    acceleration: AccelerationLimit | None = None,
    command_dt: float | None = None,
) -> CommandLimits:
    config = SafetyConfig(position or PositionLimit(), rate or RateLimit(), acceleration or AccelerationLimit())
    return compile_limits(config, SPEC, command_dt)


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


@pytest.mark.parametrize("limit", [RateLimit, AccelerationLimit])
@pytest.mark.parametrize("mode", ["warn", "fault", "stop"])
def test_a_chosen_mode_without_a_number_limits_nothing_and_is_refused(limit, mode) -> None:
    with pytest.raises(ConfigError, match=f"mode {mode} limits nothing without safety"):
        limit(mode=mode)


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
        ("fault", None, False, ("position",), True),
        ("stop", None, False, ("position",), True),  # the older word
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


HARD = {"terms": {"knee": Range(low=0.25)}}  # -1 to 1 for the hip, 0.25 to 2 for the knee
ANYTHING = hnp.arrays(np.float32, 3, elements=st.floats(width=32) | st.floats(-3, 3, width=32))


@given(
    command=ANYTHING,
    previous=ANYTHING,
    before=st.none() | ANYTHING,
    modes=st.tuples(*[st.sampled_from(["off", "warn", "clamp", "fault", "stop"])] * 3),
    margin=st.floats(0, 0.4),
    per_second=st.floats(0.1, 1e6),
    acceleration=st.floats(0.1, 1e6),
)
@settings(max_examples=500)
def test_no_command_leaves_the_hard_limits_whatever_was_applied_before(
    command: np.ndarray,
    previous: np.ndarray,
    before: np.ndarray | None,
    modes: tuple[ClampMode, ClampMode, ClampMode],
    margin: float,
    per_second: float,
    acceleration: float,
) -> None:
    position, rate, acceleration_mode = modes
    compiled = limits(
        PositionLimit(position, margin, **HARD),
        RateLimit(rate, {"default": per_second}),
        AccelerationLimit(acceleration_mode, {"default": acceleration}),
    )
    result = filter_command(command, previous, compiled, before)
    assert (result.command is None) == bool(result.stop)
    if result.command is not None:
        assert np.isfinite(result.command).all()
        assert result.modified == (not np.array_equal(result.command, command))
        if position not in ("off", "warn"):
            assert (result.command >= array(-1.0, 0.25, 0.25)).all()
            assert (result.command <= array(1.0, 2.0, 2.0)).all()


def test_wild_applied_command_is_no_base_for_the_next() -> None:
    compiled = limits(rate=RateLimit(max_per_second={"default": 2.0}))
    result = filter_command(ZERO, array(50, 50, -50), compiled)
    assert result.command is not None
    np.testing.assert_allclose(result.command, [0.8, 1.8, 0.0], rtol=1e-6)


@given(
    command=hnp.arrays(np.float32, 3, elements=st.floats(width=32)),
    previous=hnp.arrays(np.float32, 3, elements=st.floats(0.25, 1, width=32)),
    margin=st.floats(0, 0.4),
    per_second=st.floats(0.1, 100),
)
def test_clamped_commands_are_finite_smooth_and_come_back_inside(
    command: np.ndarray, previous: np.ndarray, margin: float, per_second: float
) -> None:
    compiled = limits(PositionLimit(margin=margin, **HARD), RateLimit(max_per_second={"default": per_second}))
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


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (SafetyConfig(position=PositionLimit(margin=0.5)), "margin"),
        (SafetyConfig(position=PositionLimit(terms={"hup": Range()})), "did you mean 'hip'"),
        (SafetyConfig(position=PositionLimit(terms={"hip": Range(low=2.0)})), "no command is allowed"),
        (SafetyConfig(rate=RateLimit(max_per_second={"elbow": 1.0})), "unknown term 'elbow'"),
        (SafetyConfig(rate=RateLimit(max_per_second={"hip": 0.0})), "must be positive"),
        (SafetyConfig(rate=RateLimit(max_per_second={"hip": np.inf})), "must be positive and finite"),
        (SafetyConfig(rate=RateLimit(max_per_second={"hip": 1e300})), "is left out"),
        (SafetyConfig(acceleration=AccelerationLimit(max_per_second2={"elbow": 1.0})), "unknown term 'elbow'"),
        (SafetyConfig(acceleration=AccelerationLimit(max_per_second2={"default": -1.0})), "must be positive"),
    ],
)
def test_senseless_limits_are_refused(config: SafetyConfig, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        compile_limits(config, SPEC)


@pytest.mark.parametrize("tolerance", [-1.0, 1.0, np.inf, np.nan])
def test_tolerance_that_makes_no_sense_is_refused(tolerance: float) -> None:
    with pytest.raises(ConfigError, match=r"applied_tolerance must be in \[0, 1\)"):
        SafetyConfig(applied_tolerance=tolerance)


def test_limits_of_changes_are_per_motor_command() -> None:
    compiled = limits(
        rate=RateLimit(max_per_second={"default": 4.0}),
        acceleration=AccelerationLimit(max_per_second2={"hip": 40.0}),
        command_dt=0.025,
    )
    np.testing.assert_allclose(compiled.max_change, 0.1)
    assert compiled.max_change_of_change is not None
    np.testing.assert_allclose(compiled.max_change_of_change, [0.025, np.inf, np.inf])


@pytest.mark.parametrize(
    ("mode", "sent", "violations", "stops"),
    [
        ("off", 0.5, (), False),
        ("warn", 0.5, ("acceleration",), False),
        ("clamp", 0.3, ("acceleration",), False),
        ("fault", None, ("acceleration",), True),
    ],
)
def test_acceleration_counts_from_the_last_change(
    mode: ClampMode, sent: float | None, violations: tuple[str, ...], stops: bool
) -> None:
    compiled = limits(acceleration=AccelerationLimit(mode, {"hip": 10.0}))
    # The last change was 0.1 per command, the limit is 10 * 0.1^2 = 0.1 more or less: from 0.1 to 0.3 at most.
    result = filter_command(array(0.5, 1, 1), array(0.1, 1, 1), compiled, array(0.0, 1, 1))
    assert (result.command is None) == stops
    if result.command is not None:
        np.testing.assert_allclose(result.command, [sent, 1, 1], rtol=1e-6)
    assert result.violations == violations


def test_without_a_command_before_the_robot_was_at_rest() -> None:
    compiled = limits(acceleration=AccelerationLimit(max_per_second2={"hip": 10.0}))
    result = filter_command(array(0.5, 1, 1), array(0.1, 1, 1), compiled)
    assert result.command is not None
    np.testing.assert_allclose(result.command, [0.2, 1, 1], rtol=1e-6)


@given(
    targets=hnp.arrays(np.float32, (40, 3), elements=st.floats(-3, 3, width=32)),
    start=hnp.arrays(np.float32, 3, elements=st.floats(0, 1, width=32)),
    acceleration=st.floats(0.5, 200),
    per_second=st.floats(0.5, 50),
    margin=st.floats(0, 0.4),
)
def test_any_targets_give_commands_within_position_rate_and_acceleration(
    targets: np.ndarray, start: np.ndarray, acceleration: float, per_second: float, margin: float
) -> None:
    compiled = limits(
        PositionLimit(margin=margin),
        RateLimit(max_per_second={"default": per_second}),
        AccelerationLimit(max_per_second2={"default": acceleration}),
    )
    before = previous = np.clip(start, compiled.low, compiled.high)
    for target in targets:
        result = filter_command(target, previous, compiled, before)
        assert result.command is not None
        command = result.command
        assert ((command >= compiled.low) & (command <= compiled.high)).all(), "ran through a position limit"
        change, last = command.astype(np.float64) - previous, previous.astype(np.float64) - before
        assert (np.abs(change) <= per_second * SPEC.control_dt + 1e-5).all()
        assert (np.abs(change - last) <= acceleration * SPEC.control_dt**2 * (1 + 1e-4) + 2e-6).all()
        before, previous = previous, command
