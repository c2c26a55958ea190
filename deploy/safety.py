"""Command safety: a pure filter between whatever chose a command and the robot.

Order: NaN guard, position limit with its soft margin, acceleration limit, rate limit, hard position limits. The rate
limit comes after the soft ones, so that none of them can cause a jump; the acceleration limit brakes early enough not
to run through a position limit. Nothing leaves the hard limits, and NaN and infinity never pass, whatever the robot
says of its past commands. Limits on what is measured are in `deploy.watch`. Shapes: A action size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deploy.watch import LimitMode, WatchedTerm, check_names, term_slices
from mpo_robot.errors import ConfigError
from mpo_robot.specs import PolicySpec

__all__ = [
    "AccelerationLimit",
    "ClampMode",
    "CommandLimits",
    "Filtered",
    "PositionLimit",
    "Range",
    "RateLimit",
    "SafetyConfig",
    "WatchedTerm",
    "compile_limits",
    "filter_command",
]

FloatArray = npt.NDArray[np.float32]
ClampMode = LimitMode


@dataclass(frozen=True)
class Range:
    """Allowed interval of a command term, in its unit; null keeps the bound of the policy spec."""

    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class PositionLimit:
    """Where commands may be.

    Attributes:
        mode: What happens outside: `off` nothing, `warn` a counted warning, `clamp` clamping, `fault` a stop that a
            human must re-arm. `stop` is the older word for `fault`.
        margin: Soft margin inside the spec's command bounds, as a fraction of the range, at each end.
        terms: Narrower intervals for single command terms, by name.
    """

    mode: ClampMode = "clamp"
    margin: float = 0.0
    terms: dict[str, Range] = field(default_factory=dict)


def _require_numbers(section: str, mode: ClampMode, name: str, numbers: Mapping[str, float]) -> None:
    """Refuse a mode that someone chose for a limit without a number: nothing would be limited."""
    if mode not in ("off", "clamp") and not numbers:
        raise ConfigError(f"{section}.mode {mode} limits nothing without {section}.{name}, such as {{default: 2.0}}")


@dataclass(frozen=True)
class RateLimit:
    """How fast commands may change.

    Attributes:
        mode: What happens beyond the limit.
        max_per_second: Largest change per second of each command term, by name, in its unit; `default` stands for
            all terms not named. A term without a number is not limited.
    """

    mode: ClampMode = "clamp"
    max_per_second: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require_numbers("safety.rate", self.mode, "max_per_second", self.max_per_second)


@dataclass(frozen=True)
class AccelerationLimit:
    """How fast the rate of commands may change.

    Attributes:
        mode: What happens beyond the limit, as for a position.
        max_per_second2: Largest change of the rate per second, that is per second squared, of each command term, by
            name, in its unit; `default` stands for all terms not named. A term without a number is not limited.
    """

    mode: ClampMode = "clamp"
    max_per_second2: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require_numbers("safety.acceleration", self.mode, "max_per_second2", self.max_per_second2)


@dataclass(frozen=True)
class SafetyConfig:
    """Limits of a robot. See docs/safety.md.

    Attributes:
        position: Limit on command values.
        rate: Limit on command changes: velocity.
        acceleration: Limit on changes of that rate.
        watch: Limits on measured terms.
        applied_tolerance: A robot that reports a command which differs from the one sent by no more than this
            fraction of the half range (the resolution of a servo, for example) did not modify the action. One that
            lies beyond the hard position limits by more is a fault, as of a sensor.
    """

    position: PositionLimit = field(default_factory=PositionLimit)
    rate: RateLimit = field(default_factory=RateLimit)
    acceleration: AccelerationLimit = field(default_factory=AccelerationLimit)
    watch: tuple[WatchedTerm, ...] = ()
    applied_tolerance: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.applied_tolerance < 1.0:
            raise ConfigError(
                f"safety.applied_tolerance must be in [0, 1): a fraction of the half range, such as 0.001; "
                f"got {self.applied_tolerance}"
            )


@dataclass(frozen=True)
class CommandLimits:
    """`SafetyConfig` as arrays for one spec; all [A], physical units. Changes are per motor command.

    Attributes:
        position_mode: Of `low` and `high`.
        low: Lowest command, by the soft margin; a robot that starts below comes in at its limited rate.
        high: Highest command, likewise.
        hard_low: No command is ever below, unless `position_mode` is `off` or `warn`: the spec's bounds, narrowed by
            `position.terms` where these are enforced.
        hard_high: Nor above.
        rate_mode: Of `max_change`.
        max_change: From one command to the next.
        acceleration_mode: Of `max_change_of_change`.
        max_change_of_change: Between two such changes; None if no term is limited.
    """

    position_mode: ClampMode
    low: FloatArray
    high: FloatArray
    hard_low: FloatArray
    hard_high: FloatArray
    rate_mode: ClampMode
    max_change: FloatArray
    acceleration_mode: ClampMode
    max_change_of_change: npt.NDArray[np.float64] | None

    @cached_property
    def edges(self) -> tuple[FloatArray, FloatArray]:
        """What no command leaves: the hard limits, or what float32 can hold."""
        return (self.hard_low, self.hard_high) if _is_enforced(self.position_mode) else _FINITE


class Filtered(NamedTuple):
    """Result of `filter_command`.

    Attributes:
        command: float32 [A] that may be sent, always finite; None if nothing may be sent.
        modified: It differs from what was asked.
        violations: Names of the limits that were violated: `nan`, `position`, `acceleration`, `rate`.
        stop: Reason to stop the robot now, or empty.
    """

    command: FloatArray | None
    modified: bool
    violations: tuple[str, ...]
    stop: str


def compile_limits(config: SafetyConfig, spec: PolicySpec, command_dt: float | None = None) -> CommandLimits:
    """Arrays of limits for a spec.

    Args:
        config: The limits.
        spec: Interface of the robot.
        command_dt: Seconds from one motor command to the next; None: one control period.

    Raises:
        ConfigError: an unknown term, an empty interval, or an interval outside the spec's bounds.
    """
    position, dt = config.position, command_dt or spec.control_dt
    if not 0.0 <= position.margin < 0.5:
        raise ConfigError(f"safety.position.margin must be in [0, 0.5), got {position.margin}")
    check_names("safety.position.terms", position.terms, spec.command)
    narrow_low, narrow_high = spec.command_low.copy(), spec.command_high.copy()
    for term, part in term_slices(spec.command):
        narrower = position.terms.get(term.name, Range())
        if narrower.low is not None:
            narrow_low[part] = np.maximum(narrow_low[part], np.float32(narrower.low))
        if narrower.high is not None:
            narrow_high[part] = np.minimum(narrow_high[part], np.float32(narrower.high))
    inset = np.float32(position.margin) * (spec.command_high - spec.command_low)
    low, high = np.maximum(narrow_low, spec.command_low + inset), np.minimum(narrow_high, spec.command_high - inset)
    for term, part in term_slices(spec.command):
        if not (low[part] < high[part]).all():
            raise ConfigError(f"safety.position: no command is allowed for term {term.name!r}")
    is_enforced = _is_enforced(position.mode)
    rates = _per_term("safety.rate.max_per_second", config.rate.max_per_second, spec)
    accelerations = _per_term("safety.acceleration.max_per_second2", config.acceleration.max_per_second2, spec)
    return CommandLimits(
        position_mode=position.mode,
        low=low,
        high=high,
        hard_low=narrow_low if is_enforced else spec.command_low,
        hard_high=narrow_high if is_enforced else spec.command_high,
        rate_mode=config.rate.mode,
        max_change=(rates * dt).astype(np.float32),
        acceleration_mode=config.acceleration.mode,
        max_change_of_change=accelerations * dt**2 if np.isfinite(accelerations).any() else None,
    )


def _per_term(path: str, numbers: dict[str, float], spec: PolicySpec) -> npt.NDArray[np.float64]:
    """[A] numbers given by term name; infinity where none is given."""
    check_names(path, numbers, spec.command, extra=("default",))
    result = np.full(spec.action_size, np.inf)
    for term, part in term_slices(spec.command):
        number = numbers.get(term.name, numbers.get("default"))
        if number is not None:
            if not 0 < number <= float(_FINITE[1][0]):
                raise ConfigError(
                    f"{path}.{term.name} must be positive and finite, got {number}; a term without a limit is left out"
                )
            result[part] = number
    return result


def filter_command(
    command: FloatArray, previous: FloatArray, limits: CommandLimits, before: FloatArray | None = None
) -> Filtered:
    """Make a command safe.

    Args:
        command: [A] asked for, physical units; may hold anything.
        previous: [A] applied last; must be finite for anything to pass. What lies beyond the hard limits counts from
            their edge.
        limits: From `compile_limits`.
        before: [A] applied before that, for the acceleration limit, likewise; None: the robot was at rest.

    Returns:
        The command to send, which is within the hard limits whatever the arguments, and what was found. Pure: equal
        arguments give equal results.
    """
    before = previous if before is None else before
    if not (np.isfinite(previous).all() and np.isfinite(before).all()):
        return Filtered(None, True, ("nan",), "the previous command is not finite, so no safe change is known")
    previous, before = _clamp(previous, limits.edges), _clamp(before, limits.edges)
    violations: list[str] = []
    result, stop = command, ""
    if not np.isfinite(command).all():
        violations.append("nan")
        result = previous.copy()
    for name, mode in (
        ("position", limits.position_mode),
        ("acceleration", limits.acceleration_mode),
        ("rate", limits.rate_mode),
    ):
        if mode == "off":
            continue
        clamped = _clamp(result, _interval(name, previous, before, limits))
        if np.array_equal(clamped, result):
            continue
        violations.append(name)
        if mode == "clamp":
            result = clamped
        elif mode != "warn":
            stop = stop or f"command {result.tolist()} violates the {name} limit"
    if not stop:
        result = _clamp(result, limits.edges)
    modified = not np.array_equal(result, command)
    return Filtered(None if stop else result, modified, tuple(violations), stop)


def _is_enforced(mode: ClampMode) -> bool:
    return mode not in ("off", "warn")


def _clamp(values: FloatArray, interval: tuple[FloatArray, FloatArray]) -> FloatArray:
    return np.minimum(np.maximum(values, interval[0]), interval[1])


def _interval(
    name: str, previous: FloatArray, before: FloatArray, limits: CommandLimits
) -> tuple[FloatArray, FloatArray]:
    """Lowest and highest command [A] that one limit allows."""
    if name == "position":
        return limits.low, limits.high
    if name == "rate":
        return previous - limits.max_change, previous + limits.max_change
    if limits.max_change_of_change is None:
        return _ANYTHING
    return _acceleration_interval(previous, before, limits, limits.max_change_of_change)


def _acceleration_interval(
    previous: FloatArray, before: FloatArray, limits: CommandLimits, most: npt.NDArray[np.float64]
) -> tuple[FloatArray, FloatArray]:
    """Commands whose change differs from the last change by no more than `most`, and from which braking at that rate
    ends inside the position limits.

    In units of one command: a change v now, braked by a = `most` per command, moves on by less than v + v^2 / (2 a).
    Setting that equal to the distance d to the limit gives the largest v = a (sqrt(1 + 2 d / a) - 1); a change that
    obeys it leaves one that obeys it too. Where both cannot be had (the robot came in too fast), the position limit
    is kept and the acceleration limit is not.
    """
    now = previous.astype(np.float64)
    last = now - before
    low, high = now + last - most, now + last + most
    if limits.position_mode == "clamp":
        limited = np.isfinite(most)
        a = np.where(limited, most, 1.0)
        room_up, room_down = np.maximum(limits.high - now, 0.0), np.maximum(now - limits.low, 0.0)
        up = np.where(limited, a * (np.sqrt(1.0 + 2.0 * room_up / a) - 1.0), np.inf)
        down = np.where(limited, a * (np.sqrt(1.0 + 2.0 * room_down / a) - 1.0), np.inf)
        low, high = np.minimum(low, now + up), np.maximum(high, now - down)
        low, high = np.maximum(low, now - down), np.minimum(high, now + up)
    return low.astype(np.float32), high.astype(np.float32)


_FINITE: tuple[FloatArray, FloatArray] = (np.finfo(np.float32).min.reshape(1), np.finfo(np.float32).max.reshape(1))
_ANYTHING: tuple[FloatArray, FloatArray] = (np.full(1, -np.inf, np.float32), np.full(1, np.inf, np.float32))
