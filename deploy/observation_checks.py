"""Is a reading fit to act on? Checks for NaN, age, order and frozen sensors; a deterministic state machine."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from deploy.frozen_check import CheckMode, FrozenCheck, FrozenWatch
from deploy.robot import Measurement
from mpo_robot.errors import ConfigError
from mpo_robot.specs import PolicySpec

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
    """A reading must be newer than the one before; an equal time means the driver has nothing new.

    In the real-time pace its time must not be ahead of the clock by more than `max_ahead_s` either: such a reading is
    no measurement, and the ones after it are not compared with it.
    """

    mode: CheckMode = "fallback"
    max_ahead_s: float = 0.005


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
        order: Not newer than the reading before, or from the future.
        frozen: The same numbers again and again, though the commands change.
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
        if min(self.stale.max_age_s, self.order.max_ahead_s, self.fault_after) < 0:
            raise ConfigError("observation: stale.max_age_s, order.max_ahead_s and fault_after must not be negative")

    def for_robot(self, is_simulated: bool) -> ObservationConfig:
        """The same with a mode for frozen sensors, if none was given: `warn` in simulation, else `fault`."""
        mode = self.frozen.mode or ("warn" if is_simulated else "fault")
        return replace(self, frozen=replace(self.frozen, mode=mode))


class Verdict(NamedTuple):
    """Result for one reading: `usable` for a policy, names of the `faults` found, reason to stop the robot or empty."""

    usable: bool
    faults: tuple[str, ...]
    stop: str


class ObservationMonitor:
    """Checks the readings of one episode in turn.

    Args:
        config: What to check. A frozen sensor without a mode is a fault.
        spec: Interface of the robot; its period is the default age limit.
        check_age: False where the robot's clock is not the machine's (fast pace).

    Raises:
        ConfigError: an unknown term.
    """

    def __init__(self, config: ObservationConfig, spec: PolicySpec, check_age: bool) -> None:
        self._config = config
        self._frozen = FrozenWatch(config.frozen, spec)
        self._max_age_ns = round((config.stale.max_age_s or spec.control_dt) * 1e9)
        self._max_ahead_ns = round(config.order.max_ahead_s * 1e9)
        self._check_age = check_age
        self._is_first = True
        self._newest_ns: int | None = None
        self._unfit = 0

    def check(self, measurement: Measurement, now_ns: int, command: npt.NDArray[np.float32] | None = None) -> Verdict:
        """Verdict for the next reading.

        Args:
            measurement: The reading.
            now_ns: Monotonic time just after it was read.
            command: [A] applied last, which tells a frozen sensor from a robot at rest; None: unknown.
        """
        config = self._config
        found: list[tuple[str, str]] = []
        if not np.isfinite(measurement.observation).all():
            found.append(("non_finite", config.non_finite.mode))
        age_ns, frozen = now_ns - measurement.monotonic_ns, ""
        if self._check_age and age_ns > self._max_age_ns and not self._is_first:
            found.append(("stale", config.stale.mode))
        self._is_first = False
        if self._check_age and age_ns < -self._max_ahead_ns:
            found.append(("future", config.order.mode))
        elif self._newest_ns is not None and measurement.monotonic_ns <= self._newest_ns:
            found.append(("order", config.order.mode))
        else:  # a new reading: the only kind that can repeat the one before
            self._newest_ns = measurement.monotonic_ns
            frozen = self._frozen.check(measurement.observation, command)
        if frozen:
            found.append(("frozen", config.frozen.mode or "fault"))
        faults = [(name, mode) for name, mode in found if mode != "off"]
        usable = all(mode == "warn" for _, mode in faults)
        self._unfit = 0 if usable else self._unfit + 1
        failed = next((name for name, mode in faults if mode in _FAULTS), "")
        stop = f"observation check {failed!r} failed" if failed else ""
        if failed == "frozen":
            stop += f": {frozen}"
        if not stop and 0 < config.fault_after <= self._unfit:
            stop = f"{self._unfit} unfit readings in a row, the last one: {', '.join(name for name, _ in faults)}"
        return Verdict(usable, tuple(name for name, _ in faults), stop)
