"""Faults of the emulated bus, drawn from a seed: noise on the wire, and servos that break at a given time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mpo_robot.errors import ConfigError
from sim.servo_bus.servo import EmulatedServo
from sim.servo_bus.servo_table import OVERLOAD


@dataclass(frozen=True)
class ServoFault:
    """Something that happens to one servo.

    Attributes:
        id: Of the servo.
        kind: `dead` unplugs it; `hot` lets its temperature rise until it shuts down; `overload` raises that hardware
            error once, which takes a reboot to clear.
        at_s: Seconds after a motor of the bus was switched on for the first time.
        degrees_per_s: How fast a hot servo gets hotter.
    """

    id: int
    kind: Literal["dead", "hot", "overload"]
    at_s: float = 0.0
    degrees_per_s: float = 10.0

    def __post_init__(self) -> None:
        if self.at_s < 0 or self.degrees_per_s <= 0:
            raise ConfigError("faults.servos: at_s must not be negative and degrees_per_s must be positive")


@dataclass(frozen=True)
class FaultConfig:
    """Which faults.

    Attributes:
        bit_error_rate: Probability per byte, in both directions, that one of its bits is flipped.
        loss: Probability per packet, in both directions, that it vanishes.
        servos: Servos that break.
        seed: Of the noise.
    """

    bit_error_rate: float = 0.0
    loss: float = 0.0
    servos: tuple[ServoFault, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.bit_error_rate < 1 and 0 <= self.loss < 1):
            raise ConfigError("faults.bit_error_rate and faults.loss are probabilities below 1")
        if self.seed < 0:
            raise ConfigError(f"faults.seed must not be negative, got {self.seed}")


class WireNoise:
    """Noise on the wire; equal seeds and equal traffic give equal noise."""

    def __init__(self, config: FaultConfig) -> None:
        self._config = config
        self._random = np.random.default_rng(config.seed)

    def loses_packet(self) -> bool:
        """Whether the next packet vanishes."""
        return self._config.loss > 0 and self._random.random() < self._config.loss

    def spoil(self, data: bytes) -> bytes:
        """The bytes as they arrive."""
        if self._config.bit_error_rate <= 0 or not data:
            return data
        hit = self._random.random(len(data)) < self._config.bit_error_rate
        flips = np.where(hit, 1 << self._random.integers(0, 8, len(data)), 0)
        return bytes(np.frombuffer(data, np.uint8) ^ flips.astype(np.uint8))


class ServoFaults:
    """Lets the servos break when their time has come."""

    def __init__(self, config: FaultConfig) -> None:
        self._pending = list(config.servos)
        self._hot: list[ServoFault] = []
        self._start: float | None = None

    def advance(self, now: float, dt: float, servos: dict[int, EmulatedServo]) -> None:
        """What happens within the last `dt` seconds."""
        if self._start is None:
            if not any(servo.torque_enabled for servo in servos.values()):
                return
            self._start = now
        for fault in [fault for fault in self._pending if now - self._start >= fault.at_s]:
            self._pending.remove(fault)
            if fault.kind == "dead":
                servos[fault.id].dead = True
            elif fault.kind == "overload":
                servos[fault.id].fail(OVERLOAD)
            else:
                self._hot.append(fault)
        for fault in self._hot:
            servos[fault.id].temperature += fault.degrees_per_s * dt
