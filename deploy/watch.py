"""Limits on what a robot measures: velocity, torque or current, workspace, tilt, battery, temperature.

Each limit says by how much a reading exceeds it; its mode says what follows. Deterministic. Shapes: O observation size.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from deploy.robot import Measurement
from mpo_robot.errors import ConfigError
from mpo_robot.specs import PolicySpec, TermSpec

FloatArray = npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]
LimitMode = Literal["off", "warn", "clamp", "fault", "stop"]
INFO_PREFIX = "info."


@dataclass(frozen=True)
class WatchedTerm:
    """A limit on something measured. Exactly one of `max_abs`, `low` and/or `high`, and `tilt_deg` is given.

    Attributes:
        term: Name of an observation term, or `info.NAME` for `Measurement.info["NAME"]` (a number or a list of numbers;
            `info.health.voltage` looks one level deeper). A value that is not there counts as beyond the limit.
        max_abs: Largest magnitude of any of its scalars, in its unit.
        mode: What happens beyond it: `warn` counts; `clamp` draws the command toward the safe pose (see `soft_zone`);
            `fault` stops the robot until a human re-arms it. `stop` is the older word for `fault`.
        ticks: Consecutive readings beyond the limit before a fault.
        low: Smallest value: one number, or one for each scalar (a battery's voltage, the corner of a box).
        high: Largest value, likewise.
        tilt_deg: Largest angle between the robot's up axis and the vertical. The term is then the direction of
            gravity in the robot's frame (3 scalars) or the orientation as a quaternion w, x, y, z (4).
        soft_zone: For `clamp`: how far beyond the limit, in its unit (degrees for a tilt), nothing is left of the
            policy's command and the safe pose alone is sent. Between, the share falls linearly.
    """

    term: str
    max_abs: float | None = None
    mode: LimitMode = "fault"
    ticks: int = 1
    low: float | tuple[float, ...] | None = None
    high: float | tuple[float, ...] | None = None
    tilt_deg: float | None = None
    soft_zone: float = 0.0


class WatchResult(NamedTuple):
    """What one reading means.

    Attributes:
        violations: Names of the terms beyond their limit.
        fault: Reason to stop the robot now, or empty.
        authority: Share of the policy's command that is left, 0 to 1; the rest is the safe pose.
    """

    violations: tuple[str, ...]
    fault: str
    authority: float


class TermWatch:
    """Checks the readings of one episode against `safety.watch`; counts consecutive violations."""

    def __init__(self, watched: Iterable[WatchedTerm], spec: PolicySpec) -> None:
        """Raises ConfigError for an unknown term or a senseless number."""
        self._limits = [_Limit(item, spec) for item in watched]
        self._limits = [limit for limit in self._limits if limit.item.mode != "off"]

    def check(self, measurement: Measurement) -> WatchResult:
        """Result for the next reading. NaN, and a value that is missing, are beyond every limit."""
        violations: list[str] = []
        fault, authority = "", 1.0
        for limit in self._limits:
            excess = limit.excess(measurement)
            if excess <= 0.0:
                limit.count = 0
                continue
            limit.count += 1
            item = limit.item
            violations.append(item.term)
            if item.mode in ("fault", "stop") and limit.count >= item.ticks:
                fault = fault or limit.describe(measurement)
            elif item.mode == "clamp":
                authority = min(authority, max(0.0, 1.0 - excess / item.soft_zone))
        return WatchResult(tuple(violations), fault, authority)


def draw_back(command: FloatArray, safe_pose: FloatArray, authority: float) -> FloatArray:
    """Command [A] of which the share `authority` is left: 1 is the command itself, 0 the safe pose."""
    if authority >= 1.0:
        return command
    if authority <= 0.0:
        return safe_pose.copy()
    mixed = safe_pose + np.float32(authority) * (command - safe_pose)
    return np.minimum(np.maximum(mixed, np.minimum(command, safe_pose)), np.maximum(command, safe_pose))


class _Limit:
    """One limit, compiled for a spec."""

    def __init__(self, item: WatchedTerm, spec: PolicySpec) -> None:
        self.item, self.count = item, 0
        size = self._find(spec)
        _check_numbers(item)
        if item.tilt_deg is not None and size not in (3, 4, None):
            raise ConfigError(
                f"safety.watch: tilt_deg needs gravity (3 scalars) or a quaternion (4), {item.term!r} has {size}"
            )
        for name, bound in (("low", item.low), ("high", item.high)):
            if isinstance(bound, tuple) and size is not None and len(bound) != size:
                raise ConfigError(f"safety.watch: {name} of {item.term!r} has {len(bound)} numbers, the term {size}")
        self._low = np.asarray(-math.inf if item.low is None else item.low, np.float64)
        self._high = np.asarray(math.inf if item.high is None else item.high, np.float64)
        if item.max_abs is not None:
            self._low, self._high = np.asarray(-item.max_abs), np.asarray(item.max_abs)
        elif not (self._low < self._high).all():
            raise ConfigError(f"safety.watch: low of {item.term!r} must be below high")

    def _find(self, spec: PolicySpec) -> int | None:
        """Look up where the values come from; their number, if it is known."""
        name = self.item.term
        self._path = tuple(name.removeprefix(INFO_PREFIX).split(".")) if name.startswith(INFO_PREFIX) else ()
        self._slice = slice(0)
        if self._path:
            return None
        check_names("safety.watch", [name], spec.observation, hint="or info.NAME for what the driver reports beside")
        self._slice = {term.name: part for term, part in term_slices(spec.observation)}[name]
        return self._slice.stop - self._slice.start

    def excess(self, measurement: Measurement) -> float:
        """How far the reading is beyond the limit, in its unit; not positive if within; infinite for NaN."""
        values = self._values(measurement)
        worst = math.nan
        if values.size and self.item.tilt_deg is not None:
            worst = tilt_degrees(values) - self.item.tilt_deg
        elif values.size and self._low.size in (1, values.size) and self._high.size in (1, values.size):
            worst = float(np.maximum(self._low - values, values - self._high).max())
        return math.inf if math.isnan(worst) else worst

    def describe(self, measurement: Measurement) -> str:
        """The violation in words."""
        item, values = self.item, self._values(measurement)
        if not values.size:
            return f"{item.term} is not in the robot's readings"
        if item.tilt_deg is not None:
            return f"the tilt by {item.term} is {tilt_degrees(values):.4g} degrees, limit {item.tilt_deg:.4g}"
        if item.max_abs is not None:
            return f"{item.term} is {float(np.abs(values).max()):.4g}, limit {item.max_abs:.4g}"
        text = ", ".join(f"{value:.4g}" for value in values)
        return f"{item.term} is {text}, allowed from {_show(self._low)} to {_show(self._high)}"

    def _values(self, measurement: Measurement) -> Values:
        value: Any = measurement.observation[self._slice]
        if self._path:
            value = measurement.info
            for key in self._path:
                value = value.get(key) if isinstance(value, dict) else None
        if value is None:
            return np.empty(0)
        try:
            return np.atleast_1d(np.asarray(value, np.float64)).ravel()
        except (TypeError, ValueError):  # text, or a ragged list
            return np.empty(0)


def tilt_degrees(values: Values) -> float:
    """Angle between the robot's up axis and the vertical, in degrees; NaN where the values give no direction.

    Args:
        values: Direction of gravity in the robot's frame (x, y, z; any length), or a quaternion (w, x, y, z).
    """
    norm = float(np.linalg.norm(values))
    if values.size not in (3, 4) or not norm > 1e-6 or not math.isfinite(norm):
        return math.nan
    unit = values / norm
    upright = -unit[2] if values.size == 3 else 1.0 - 2.0 * (unit[1] ** 2 + unit[2] ** 2)
    return math.degrees(math.acos(min(1.0, max(-1.0, float(upright)))))


def term_slices(terms: tuple[TermSpec, ...]) -> list[tuple[TermSpec, slice]]:
    """Each term with its place in the flat vector."""
    result: list[tuple[TermSpec, slice]] = []
    start = 0
    for term in terms:
        result.append((term, slice(start, start + term.size)))
        start += term.size
    return result


def check_names(
    path: str, named: Iterable[str], terms: tuple[TermSpec, ...], extra: tuple[str, ...] = (), hint: str = ""
) -> None:
    """Raise ConfigError for a name that is neither a term's nor in `extra`; `hint` says what else there is."""
    known = [term.name for term in terms] + list(extra)
    for name in named:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            advice = f"did you mean {near[0]!r}?" if near else f"the robot has {', '.join(known)}"
            raise ConfigError(f"{path}: unknown term {name!r}: {advice}" + (f" {hint}" if hint and not near else ""))


def _check_numbers(item: WatchedTerm) -> None:
    kinds = (item.max_abs is not None, item.low is not None or item.high is not None, item.tilt_deg is not None)
    if sum(kinds) != 1:
        raise ConfigError(
            f"safety.watch: term {item.term!r} needs exactly one of max_abs, low and/or high, and tilt_deg"
        )
    if (item.max_abs is not None and not item.max_abs > 0) or item.ticks < 1:
        raise ConfigError(f"safety.watch: term {item.term!r} needs max_abs > 0 and ticks >= 1")
    for name in ("max_abs", "low", "high", "soft_zone"):
        if not np.isfinite(np.asarray(getattr(item, name) or 0.0, np.float64)).all():
            raise ConfigError(f"safety.watch: {name} of {item.term!r} must be finite; leave out what has no limit")
    if item.tilt_deg is not None and not 0 < item.tilt_deg <= 180:
        raise ConfigError(f"safety.watch: tilt_deg of {item.term!r} must be in (0, 180], got {item.tilt_deg}")
    if item.mode == "clamp" and not item.soft_zone > 0:
        raise ConfigError(
            f"safety.watch: term {item.term!r} with mode clamp needs soft_zone > 0: how far beyond the limit the "
            "safe pose alone is sent"
        )


def _show(bound: Values) -> str:
    return ", ".join(f"{value:.4g}" for value in np.atleast_1d(bound))
