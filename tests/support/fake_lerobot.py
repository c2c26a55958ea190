"""A robot that follows lerobot's public `Robot` interface, without lerobot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(kw_only=True)
class FakeArmConfig:
    """As a robot's `config_class`."""

    port: str
    id: str | None = None
    camera: bool = True


class FakeArm:
    """Two joints in degrees that are at once where they are sent, a gripper, a camera. Strict about its state."""

    config_class = FakeArmConfig
    name = "fake_arm"

    def __init__(self, config: FakeArmConfig) -> None:
        if config.port == "refused":
            raise ValueError("no such port")
        self.config, self.id = config, config.id
        self.positions = {"pan.pos": 10.0, "lift.pos": -20.0, "gripper.pos": 50.0}
        self.sent: list[dict[str, float]] = []
        self.calls: list[str] = []
        self.calibrated = True
        self.lost: set[str] = set()
        self._connected = False

    @property
    def observation_features(self) -> dict[str, Any]:
        return {**dict.fromkeys(self.positions, float), **({"front": (4, 6, 3)} if self.config.camera else {})}

    @property
    def action_features(self) -> dict[str, Any]:
        return dict.fromkeys(self.positions, float)

    @property
    def is_connected(self) -> bool:
        return self._connected

    @property
    def is_calibrated(self) -> bool:
        return self.calibrated

    def calibrate(self) -> None:
        raise AssertionError("calibration waits for a human")

    def configure(self) -> None:
        pass

    def connect(self, calibrate: bool = True) -> None:
        if self._connected:
            raise ConnectionError("already connected")
        if calibrate:
            self.calibrate()
        self.calls.append("connect")
        self._connected = True

    def get_observation(self) -> dict[str, Any]:
        self._require()
        image = [[[0] * 3] * 6] * 4
        return {name: value for name, value in self.positions.items() if name not in self.lost} | {"front": image}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        self._require()
        assert set(action) == set(self.positions)
        assert all(math.isfinite(value) for value in action.values())
        self.positions = {name: max(-90.0, min(90.0, value)) for name, value in action.items()}
        self.sent.append(dict(self.positions))
        return dict(self.positions)

    def disconnect(self) -> None:
        self._require()
        self.calls.append("disconnect")
        self._connected = False

    def _require(self) -> None:
        if not self._connected:
            raise ConnectionError("not connected")
