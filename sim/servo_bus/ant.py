"""`AntBody`: the MuJoCo ant that the emulated servos move, and what its IMU feels.

Each servo is mounted on a joint with a direction and an offset, as a real one is screwed on:
joint angle = direction * (servo angle - offset), in rad.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mujoco
import numpy as np

from mpo_robot.errors import ConfigError
from mpo_robot.types import FloatArray
from sim.servo_ant import JOINTS, STALL_TORQUE, STAND, START_HEIGHT, build_servo_ant
from sim.servo_bus.servo import EmulatedServo, ShaftState

STALL_CURRENT = 0.8  # A, of the emulated model; the current is that share of it which the torque is of the stall torque


@dataclass(frozen=True)
class Mount:
    """How a servo is screwed on.

    Attributes:
        joint: Name of the ant's joint.
        id: Of the servo on the bus.
        direction: 1, or -1 if the servo turns the other way than the joint.
        offset: Servo angle in rad at joint angle 0.
    """

    joint: str
    id: int
    direction: int = 1
    offset: float = 0.0

    def __post_init__(self) -> None:
        if self.joint not in JOINTS:
            raise ConfigError(f"servos: unknown joint {self.joint!r}; the ant has {', '.join(JOINTS)}")
        if not 0 <= self.id <= 252 or self.direction not in (-1, 1):
            raise ConfigError(f"servos: {self.joint} needs an id of 0 to 252 and a direction of 1 or -1")


class AntBody:
    """Physics of the ant, advanced in whole steps.

    Attributes:
        model: The compiled model.
        data: Its state.
        step_s: Seconds per physics step.
    """

    def __init__(self, mounts: tuple[Mount, ...]) -> None:
        """Stand the ant on the floor, motors off.

        Raises:
            ConfigError: two servos with one id or on one joint, or a joint without a servo.
        """
        if sorted(mount.joint for mount in mounts) != sorted(JOINTS) or len({mount.id for mount in mounts}) != 8:
            raise ConfigError("servos: each of the ant's eight joints needs one servo, each with its own id")
        self.model = build_servo_ant()
        self.data = mujoco.MjData(self.model)
        self.step_s = float(self.model.opt.timestep)
        self._mounts = mounts
        self._actuators = [JOINTS.index(mount.joint) for mount in mounts]
        self._driven, self._control = [True] * len(JOINTS), [0.0] * len(JOINTS)
        self._gain, self._bias = self.model.actuator_gainprm.copy(), self.model.actuator_biasprm.copy()
        self.data.qpos[2] = START_HEIGHT
        self.data.qpos[7:] = STAND
        mujoco.mj_forward(self.model, self.data)

    def step(self, servos: Mapping[int, EmulatedServo]) -> None:
        """One physics step with each servo driving toward its target, or turning freely with its motor off."""
        for mount, index in zip(self._mounts, self._actuators):
            servo = servos[mount.id]
            servo.follow(self.step_s)
            if servo.torque_enabled != self._driven[index]:
                self._driven[index] = servo.torque_enabled
                self.model.actuator_gainprm[index] = self._driven[index] * self._gain[index]
                self.model.actuator_biasprm[index] = self._driven[index] * self._bias[index]
            self._control[index] = mount.direction * (servo.target - mount.offset)
        self.data.ctrl[:] = self._control
        mujoco.mj_step(self.model, self.data)

    def shaft(self, mount: Mount) -> ShaftState:
        """What the sensors of a servo see."""
        index = JOINTS.index(mount.joint)
        angle = mount.direction * float(self.data.qpos[7 + index]) + mount.offset
        current = mount.direction * float(self.data.actuator_force[index]) * STALL_CURRENT / STALL_TORQUE
        return ShaftState(angle, mount.direction * float(self.data.qvel[6 + index]), current)

    def imu(self) -> FloatArray:
        """Orientation of the torso as quaternion w, x, y, z, and its angular velocity in its own frame, rad/s, [7]."""
        return np.concatenate([self.data.qpos[3:7], self.data.qvel[3:6]]).astype(np.float32)
