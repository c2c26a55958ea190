"""`LeRobotView`: one of our robots as one of lerobot's. The other way round is in `deploy.lerobot_adapter`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from deploy.robot import Robot, RobotError
from mpo_robot.specs import TermSpec


class LeRobotView:
    """One of our robots behind the members of lerobot's `Robot`, by shape; `as_lerobot` makes it one by class, too.

    Names are those of the spec's terms, with `.0`, `.1`... where a term has several scalars. Commands are clipped to
    the spec's bounds and NaN is refused; the other limits of the control loop are not in force.
    """

    name = "mpo_robot"
    config_class: Any = None

    def __init__(self, robot: Robot, id: str | None = None) -> None:
        """Wrap an unconnected robot; `id` tells robots of one kind apart."""
        self.id, self.robot_type = id, self.name
        self.calibration: dict[str, Any] = {}
        self._robot, self._connected = robot, False
        self._observation_names = _names(robot.spec.observation)
        self._action_names = _names(robot.spec.command)

    @property
    def observation_features(self) -> dict[str, type]:
        """Every scalar of the observation is a float."""
        return dict.fromkeys(self._observation_names, float)

    @property
    def action_features(self) -> dict[str, type]:
        """Every scalar of the command is a float, in its physical unit."""
        return dict.fromkeys(self._action_names, float)

    @property
    def is_connected(self) -> bool:
        """Whether `connect` has succeeded."""
        return self._connected

    @property
    def is_calibrated(self) -> bool:
        """Always: directions and offsets are in the driver's configuration."""
        return True

    def calibrate(self) -> None:
        """Nothing to do."""

    def configure(self) -> None:
        """Nothing to do."""

    def connect(self, calibrate: bool = True) -> None:
        """Connect and bring the robot to its start pose. On a failure it is stopped."""
        try:
            self._robot.connect()
            self._robot.start_episode()
        except BaseException:
            self._end()
            raise
        self._connected = True

    def get_observation(self) -> dict[str, Any]:
        """The newest reading; NaN marks a failed sensor."""
        self._require_connected()
        return dict(zip(self._observation_names, self._robot.read().observation.tolist()))

    def send_action(self, action: Mapping[str, Any]) -> dict[str, Any]:
        """Send a command; returns what was really applied.

        Raises:
            ValueError: a name is missing, or a value is not finite; nothing was sent.
        """
        self._require_connected()
        if missing := [name for name in self._action_names if name not in action]:
            raise ValueError(f"the action lacks {', '.join(missing)}")
        command = np.array([float(action[name]) for name in self._action_names], np.float32)
        if not np.isfinite(command).all():
            raise ValueError(f"the action is not finite: {command}")
        spec = self._robot.spec
        applied = self._robot.send_command(np.clip(command, spec.command_low, spec.command_high))
        return dict(zip(self._action_names, applied.tolist()))

    def disconnect(self) -> None:
        """Motors off, connection closed."""
        self._connected = False
        self._end()

    def _end(self) -> None:
        try:
            self._robot.stop()
        finally:
            self._robot.disconnect()

    def _require_connected(self) -> None:
        if not self._connected:
            raise ConnectionError(f"{self.name} is not connected: call connect() first")


def as_lerobot(robot: Robot, id: str | None = None) -> LeRobotView:
    """A `LeRobotView` that is also an instance of lerobot's `Robot`.

    Raises:
        RobotError: lerobot is not installed.
    """
    try:
        base: Any = importlib.import_module("lerobot.robots").Robot
    except ImportError as error:
        raise RobotError(f"lerobot cannot be imported ({error}): pip install 'mpo-robot[lerobot]'") from error
    return cast(LeRobotView, type("MpoRobotView", (LeRobotView, base), {})(robot, id))


def _names(terms: tuple[TermSpec, ...]) -> list[str]:
    """One name per scalar."""
    names: list[str] = []
    for term in terms:
        names += [term.name] if term.size == 1 else [f"{term.name}.{index}" for index in range(term.size)]
    return names
