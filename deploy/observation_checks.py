"""Is a reading fit to act on? Checks for NaN, age, order and frozen sensors; a deterministic state machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from deploy.robot import Measurement
from mpo_robot.errors import ConfigError

CheckMode = Literal["off", "warn", "fallback", "fault", "stop"]
_FAULTS = ("fault", "stop")


@dataclass(frozen=True)
class StaleCheck:
    """Age of a reading when its tick starts. `max_age_s` 0 stands for one control period. Real-time pace only.

    The first reading of an episode is exempt: the robot was at rest when `start_episode` took it.
    """

    mode: CheckMode = "fallback"
    max_age_s: float = 0.0


@dataclass(frozen=True)
class OrderCheck:
    """A reading must be newer than the one before; an equal time means the driver has nothing new."""

    mode: CheckMode = "fallback"


@dataclass(frozen=True)
class FrozenCheck:
    """All numbers the same, bit for bit, for `ticks` readings in a row: real sensors have noise."""

    mode: CheckMode = "warn"
    ticks: int = 25


@dataclass(frozen=True)
class NonFiniteCheck:
    """NaN or infinity in a reading. It never reaches a policy: the mode can only choose between fallback and fault."""

    mode: Literal["fallback", "fault", "stop"] = "fallback"


@dataclass(frozen=True)
class ObservationConfig:
    """Checks of readings.

    `warn` counts; `fallback` goes down the ladder for this tick; `fault` stops the robot until a human re-arms it.
    `stop` is the older word for `fault`.

    Attributes:
        stale: Older than a period.
        order: Not newer than the reading before.
        frozen: The same numbers again and again.
        non_finite: NaN or infinity.
        fault_after: Unfit readings in a row (checks with mode `fallback`) that are a fault, whatever the ladder would
            still do; 0 leaves it to the ladder.
    """

    stale: StaleCheck = field(default_factory=StaleCheck)
    order: OrderCheck = field(default_factory=OrderCheck)
    frozen: FrozenCheck = field(default_factory=FrozenCheck)
    non_finite: NonFiniteCheck = field(default_factory=NonFiniteCheck)
    fault_after: int = 25

    def __post_init__(self) -> None:
        if min(self.stale.max_age_s, self.fault_after) < 0 or self.frozen.ticks < 1:
            raise ConfigError(
                "observation: stale.max_age_s and fault_after must not be negative, frozen.ticks at least 1"
            )


class Verdict(NamedTuple):
    """Result for one reading: `usable` for a policy, names of the `faults` found, reason to stop the robot or empty."""

    usable: bool
    faults: tuple[str, ...]
    stop: str


class ObservationMonitor:
    """Checks the readings of one episode in turn.

    Args:
        config: What to check.
        control_dt: Period in seconds, the default age limit.
        check_age: False where the robot's clock is not the machine's (fast pace).
    """

    def __init__(self, config: ObservationConfig, control_dt: float, check_age: bool) -> None:
        self._config = config
        self._max_age_ns = round((config.stale.max_age_s or control_dt) * 1e9)
        self._check_age = check_age
        self._newest_ns: int | None = None
        self._last: npt.NDArray[np.float32] | None = None
        self._repeats = 0
        self._unfit = 0

    def check(self, measurement: Measurement, now_ns: int) -> Verdict:
        """Verdict for the next reading; `now_ns` is the monotonic time just after it was read."""
        config = self._config
        found: list[tuple[str, str]] = []
        if not np.isfinite(measurement.observation).all():
            found.append(("non_finite", config.non_finite.mode))
        newest_ns = self._newest_ns
        is_late = now_ns - measurement.monotonic_ns > self._max_age_ns
        if self._check_age and newest_ns is not None and is_late:
            found.append(("stale", config.stale.mode))
        if newest_ns is not None and measurement.monotonic_ns <= newest_ns:
            found.append(("order", config.order.mode))
        else:
            self._newest_ns = measurement.monotonic_ns
        if self._is_frozen(measurement.observation):
            found.append(("frozen", config.frozen.mode))
        faults = [(name, mode) for name, mode in found if mode != "off"]
        usable = all(mode == "warn" for _, mode in faults)
        self._unfit = 0 if usable else self._unfit + 1
        stop = next((f"observation check {name!r} failed" for name, mode in faults if mode in _FAULTS), "")
        if not stop and 0 < config.fault_after <= self._unfit:
            stop = f"{self._unfit} unfit readings in a row, the last one: {', '.join(name for name, _ in faults)}"
        return Verdict(usable, tuple(name for name, _ in faults), stop)

    def _is_frozen(self, observation: npt.NDArray[np.float32]) -> bool:
        same = self._last is not None and self._last.tobytes() == observation.tobytes()
        self._repeats = self._repeats + 1 if same else 0
        self._last = observation
        return self._repeats >= self._config.frozen.ticks
