"""Command safety: a pure filter between whatever chose a command and the robot.

Order: NaN guard, position limit, rate limit. The rate limit is last, so that no limit can cause a jump. NaN and
infinity never pass, whatever the configuration. Shapes: O observation size, A action size.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from mpo_robot.errors import ConfigError
from mpo_robot.specs import PolicySpec, TermSpec

FloatArray = npt.NDArray[np.float32]
ClampMode = Literal["off", "warn", "clamp", "stop"]
WatchMode = Literal["off", "warn", "stop"]


@dataclass(frozen=True)
class Range:
    """Allowed interval of a command term, in its unit; null keeps the bound of the policy spec."""

    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class PositionLimit:
    """Where commands may be.

    Attributes:
        mode: What happens outside: nothing, a counted warning, clamping, or a stop.
        margin: Soft margin inside the spec's command bounds, as a fraction of the range, at each end.
        terms: Narrower intervals for single command terms, by name.
    """

    mode: ClampMode = "clamp"
    margin: float = 0.0
    terms: dict[str, Range] = field(default_factory=dict)


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


@dataclass(frozen=True)
class WatchedTerm:
    """A limit on something measured, for example joint velocity, torque, tilt or temperature.

    Attributes:
        term: Name of an observation term.
        max_abs: Largest magnitude of any of its scalars, in its unit.
        mode: What happens beyond it. `stop` stops the robot; a measurement cannot be clamped.
        ticks: Consecutive readings beyond the limit before a stop.
    """

    term: str
    max_abs: float
    mode: WatchMode = "stop"
    ticks: int = 1


@dataclass(frozen=True)
class SafetyConfig:
    """Limits of a robot. See docs/safety.md.

    Attributes:
        position: Limit on command values.
        rate: Limit on command changes.
        watch: Limits on measured terms.
        applied_tolerance: A robot that reports a command which differs from the one sent by no more than this
            fraction of the half range (the resolution of a servo, for example) did not modify the action.
    """

    position: PositionLimit = field(default_factory=PositionLimit)
    rate: RateLimit = field(default_factory=RateLimit)
    watch: tuple[WatchedTerm, ...] = ()
    applied_tolerance: float = 0.0


@dataclass(frozen=True)
class CommandLimits:
    """`SafetyConfig` as arrays for one spec; all [A], physical units. `max_change` is per control period."""

    position_mode: ClampMode
    low: FloatArray
    high: FloatArray
    rate_mode: ClampMode
    max_change: FloatArray


class Filtered(NamedTuple):
    """Result of `filter_command`.

    Attributes:
        command: float32 [A] that may be sent, always finite; None if nothing may be sent.
        modified: It differs from what was asked.
        violations: Names of the limits that were violated: `nan`, `position`, `rate`.
        stop: Reason to stop the robot now, or empty.
    """

    command: FloatArray | None
    modified: bool
    violations: tuple[str, ...]
    stop: str


def compile_limits(config: SafetyConfig, spec: PolicySpec) -> CommandLimits:
    """Arrays of limits for a spec.

    Raises:
        ConfigError: an unknown term, an empty interval, or an interval outside the spec's bounds.
    """
    position, rate = config.position, config.rate
    if not 0.0 <= position.margin < 0.5:
        raise ConfigError(f"safety.position.margin must be in [0, 0.5), got {position.margin}")
    _check_names("safety.position.terms", position.terms, spec.command)
    _check_names("safety.rate.max_per_second", rate.max_per_second, spec.command, extra=("default",))
    inset = np.float32(position.margin) * (spec.command_high - spec.command_low)
    low, high = spec.command_low + inset, spec.command_high - inset
    max_change = np.full(spec.action_size, np.inf, np.float32)
    for term, part in term_slices(spec.command):
        narrower = position.terms.get(term.name, Range())
        if narrower.low is not None:
            low[part] = np.maximum(low[part], np.float32(narrower.low))
        if narrower.high is not None:
            high[part] = np.minimum(high[part], np.float32(narrower.high))
        if not (low[part] < high[part]).all():
            raise ConfigError(f"safety.position: no command is allowed for term {term.name!r}")
        per_second = rate.max_per_second.get(term.name, rate.max_per_second.get("default"))
        if per_second is not None:
            if not per_second > 0:
                raise ConfigError(f"safety.rate.max_per_second.{term.name} must be positive, got {per_second}")
            max_change[part] = per_second * spec.control_dt
    return CommandLimits(position.mode, low, high, rate.mode, max_change)


def filter_command(command: FloatArray, previous: FloatArray, limits: CommandLimits) -> Filtered:
    """Make a command safe.

    Args:
        command: [A] asked for, physical units; may hold anything.
        previous: [A] applied in the previous period; must be finite for anything to pass.
        limits: From `compile_limits`.

    Returns:
        The command to send and what was found. Pure: equal arguments give equal results.
    """
    if not np.isfinite(previous).all():
        return Filtered(None, True, ("nan",), "the previous command is not finite, so no safe change is known")
    violations: list[str] = []
    result, stop = command, ""
    if not np.isfinite(command).all():
        violations.append("nan")
        result = previous.copy()
    for name, mode, low, high in (
        ("position", limits.position_mode, limits.low, limits.high),
        ("rate", limits.rate_mode, previous - limits.max_change, previous + limits.max_change),
    ):
        if mode == "off":
            continue
        clamped = np.clip(result, low, high)
        if np.array_equal(clamped, result):
            continue
        violations.append(name)
        if mode == "clamp":
            result = clamped
        elif mode == "stop":
            stop = stop or f"command {result.tolist()} violates the {name} limit"
    modified = bool(violations) and not np.array_equal(result, command)
    return Filtered(None if stop else result, modified, tuple(violations), stop)


class TermWatch:
    """Checks measured terms against `SafetyConfig.watch`. Deterministic; counts consecutive violations."""

    def __init__(self, config: SafetyConfig, spec: PolicySpec) -> None:
        """Raises ConfigError for an unknown term or a senseless number."""
        _check_names("safety.watch", {item.term: item for item in config.watch}, spec.observation)
        for item in config.watch:
            if not item.max_abs > 0 or item.ticks < 1:
                raise ConfigError(f"safety.watch: term {item.term!r} needs max_abs > 0 and ticks >= 1")
        parts = {term.name: part for term, part in term_slices(spec.observation)}
        self._watched = [(item, parts[item.term]) for item in config.watch if item.mode != "off"]
        self._counts = [0] * len(self._watched)

    def check(self, observation: FloatArray) -> tuple[tuple[str, ...], str]:
        """(names of terms beyond their limit, reason to stop or empty) for an observation [O]. NaN is beyond."""
        violations, stop = [], ""
        for index, (item, part) in enumerate(self._watched):
            worst = float(np.abs(observation[part]).max())
            if worst <= item.max_abs:
                self._counts[index] = 0
                continue
            self._counts[index] += 1
            violations.append(item.term)
            if item.mode == "stop" and self._counts[index] >= item.ticks:
                stop = stop or f"{item.term} is {worst:.4g}, limit {item.max_abs:.4g}"
        return tuple(violations), stop


def term_slices(terms: tuple[TermSpec, ...]) -> list[tuple[TermSpec, slice]]:
    """Each term with its place in the flat vector."""
    result, start = [], 0
    for term in terms:
        result.append((term, slice(start, start + term.size)))
        start += term.size
    return result


def _check_names(path: str, named: Mapping[str, Any], terms: tuple[TermSpec, ...], extra: tuple[str, ...] = ()) -> None:
    known = [term.name for term in terms] + list(extra)
    for name in named:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"the robot has {', '.join(known)}"
            raise ConfigError(f"{path}: unknown term {name!r}: {hint}")
