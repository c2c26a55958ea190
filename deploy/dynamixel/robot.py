"""`DynamixelRobot`: servos on a bus, and a source of the body's state, as a robot of the control loop.

Shapes: O observation size, J joints (the size of a command).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from deploy.dynamixel.body import BodySource
from deploy.dynamixel.bus import BusError, StoppedError
from deploy.dynamixel.config import BodyConfig, DynamixelConfig
from deploy.dynamixel.servos import ServoGroup
from deploy.loading import load_name
from deploy.robot import FloatArray, Measurement, RobotError
from mpo_robot.config import build
from mpo_robot.specs import PolicySpec


class DynamixelRobot:
    """Satisfies `deploy.robot.Robot`. Commands are joint angles in rad.

    A reading needs an answer of at least one servo to count as new. Values of servos that have been silent for longer
    than the age limit, and of a body source likewise, are NaN; the control loop's checks then act. Rewards are NaN: no
    servo knows them. `info` holds `temperature` [J] in degrees Celsius and `voltage` [J] in V, for `safety.watch`.
    """

    def __init__(self, config: DynamixelConfig, clock: Callable[[], int] = time.monotonic_ns) -> None:
        """Nothing is opened yet.

        Raises:
            RobotError: the body source cannot be loaded.
        """
        self._config, self._clock = config, clock
        self._servos = ServoGroup(config, clock)
        self._bus = self._servos.bus
        self._body = None if config.body is None else load_body(config.body)
        self._body_size = 0 if self._body is None else sum(term.size for term in self._body.terms)
        self._spec = config.spec(() if self._body is None else self._body.terms)
        self._time_ns = 0

    @property
    def spec(self) -> PolicySpec:
        """Interface of a policy for this robot."""
        return self._spec

    @property
    def bus_errors(self) -> dict[str, int]:
        """Answers that did not come in time, and packets that came damaged, since the robot was made."""
        return {"missing": self._bus.missing, "damaged": self._bus.damaged}

    def connect(self) -> None:
        """Open the bus, compare the servos with the configuration, leave them off.

        Raises:
            RobotError: no such port, or servos that do not fit the configuration.
            BusError: a servo does not answer.
        """
        self._bus.open()
        self._servos.check()
        if self._body is not None:
            self._body.open()

    def start_episode(self, seed: int | None = None) -> Measurement:
        """Reboot servos with a hardware error, switch on, go to the home pose. `seed` changes nothing.

        Raises:
            StoppedError: `stop` was called meanwhile.
            BusError: a servo fails.
        """
        self._servos.stopped = False
        self._servos.recover()
        self._servos.go_home()
        return self.read()._replace(reward=0.0)

    def send_command(self, command: FloatArray) -> FloatArray:
        """Set the goals [J], rad; the goals that the servos got, within the joints' limits and in their resolution.

        After `stop` nothing is sent, and the safe pose is returned.
        """
        if not np.isfinite(command).all():
            raise ValueError(f"the command is not finite: {command}")
        try:
            return self._servos.send(command).astype(np.float32)
        except StoppedError:
            return self.safe_pose_command()

    def read(self) -> Measurement:
        """One sync read of all servos, and the newest state of the body.

        Raises:
            BusError: the port failed, or a servo has a hardware error.
        """
        self._time_ns = self._servos.read() or self._time_ns
        parts = {
            "joint_position": self._servos.position,
            "joint_velocity": self._servos.velocity,
            "joint_effort": self._servos.effort,
        }
        observed = [parts[name] for name in self._config.observe]
        observation = np.concatenate([*observed, self._body_values()]).astype(np.float32)
        info = {"temperature": self._servos.temperature.tolist(), "voltage": self._servos.voltage.tolist()}
        return Measurement(observation, self._time_ns, math.nan, False, False, info)

    def safe_pose_command(self) -> FloatArray:
        """The home pose [J], rad."""
        return self._servos.home.astype(np.float32)

    def stop(self) -> None:
        """Motors off.

        Raises:
            BusError: a servo says that it is still on, or the port failed.
        """
        self._servos.stopped = True  # also unconnected
        if self._bus.is_open:
            self._servos.torque_off()

    def disconnect(self) -> None:
        """Motors off, bus closed."""
        try:
            self.stop()
        finally:
            self._bus.close()
            if self._body is not None:
                self._body.close()

    def _body_values(self) -> FloatArray:
        reading = None if self._body is None else self._body.read()
        if reading is None or self._clock() - reading.monotonic_ns > self._config.age_limit_s * 1e9:
            return np.full(self._body_size, np.nan, np.float32)
        return reading.values


def load_body(config: BodyConfig) -> BodySource:
    """Body source from `package.module:Factory`; modules in the working directory are found.

    Raises:
        RobotError: it cannot be imported, or does not take the options.
    """
    factory = load_name(config.module, "body.module")
    try:
        return factory(**config.options)
    except TypeError as error:
        raise RobotError(f"body.module {config.module!r} does not take body.options: {error}") from error


def make_robot(**options: Any) -> DynamixelRobot:
    """Factory for robot files; the options are the fields of `DynamixelConfig`."""
    return DynamixelRobot(build(DynamixelConfig, options, "robot.options."))


__all__ = ["BusError", "DynamixelRobot", "load_body", "make_robot"]
