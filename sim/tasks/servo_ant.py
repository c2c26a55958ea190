"""`servo:ant-walk`: the ant with position servos runs along x, seeing what its real counterpart measures.

Observation, commands, units and period are those of `configs/robots/dynamixel_ant.yaml`: joint angles and velocities
from the servos, orientation and angular velocity from an IMU, one goal angle per joint.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt

from mpo_robot.specs import TermSpec
from sim.backend import quiet_loading
from sim.dm_control_backend import DmControlBackend, headless_import
from sim.servo_ant import JOINTS, STAND, START_HEIGHT, servo_ant_spec

with headless_import():
    from dm_control.mujoco import Physics
    from dm_control.rl import control

Array = npt.NDArray[np.float64]

CONTROL_DT, TIME_LIMIT_S = 0.02, 20.0
TARGET_SPEED = 1.0  # m/s, for reward 1
TERMS = (
    TermSpec("joint_position", len(JOINTS), "rad"),
    TermSpec("joint_velocity", len(JOINTS), "rad/s"),
    TermSpec("orientation", 4, "1"),
    TermSpec("angular_velocity", 3, "rad/s"),
)


class ServoAntTask:
    """A task of the control suite's kind: run forward; on its back the ant has failed."""

    def __init__(self) -> None:
        self.random = np.random.RandomState(0)

    def initialize_episode(self, physics: Any) -> None:
        """Stand near the start pose."""
        physics.data.qpos[2] = START_HEIGHT
        physics.data.qpos[7:] = np.array(STAND) + self.random.uniform(-0.1, 0.1, len(JOINTS))
        physics.data.qvel[:] = 0.05 * self.random.standard_normal(physics.model.nv)
        physics.data.ctrl[:] = STAND

    def before_step(self, action: Any, physics: Any) -> None:
        """Set the goals."""
        physics.data.ctrl[:] = action

    def after_step(self, physics: Any) -> None:
        """Nothing."""

    def get_observation(self, physics: Any) -> OrderedDict[str, Array]:
        """What servos and IMU measure: joints; the torso's quaternion w, x, y, z; its turning in its own frame."""
        position, velocity = physics.data.qpos, physics.data.qvel
        parts = (position[7:], velocity[6:], position[3:7], velocity[3:6])
        return OrderedDict((term.name, part) for term, part in zip(TERMS, parts))

    def get_reward(self, physics: Any) -> float:
        """Forward speed over `TARGET_SPEED`, from 0 to 1, as far as the torso is upright."""
        return min(1.0, max(0.0, float(physics.data.qvel[0]) / TARGET_SPEED)) * max(0.0, self.upright(physics))

    def get_termination(self, physics: Any) -> float | None:
        """0 if the ant is on its side or back."""
        return 0.0 if self.upright(physics) < 0.2 else None

    @staticmethod
    def upright(physics: Any) -> float:
        """Cosine of the angle between the torso's up axis and the vertical."""
        _, x, y, _ = physics.data.qpos[3:7]
        return float(1 - 2 * (x * x + y * y))


def make_servo_ant() -> DmControlBackend:
    """The backend of `servo:ant-walk`."""
    with quiet_loading():
        physics = Physics.from_xml_string(servo_ant_spec().to_xml())
    backend = DmControlBackend(control.Environment(physics, ServoAntTask(), TIME_LIMIT_S, CONTROL_DT))
    assert tuple(mujoco.mj_id2name(backend.model, mujoco.mjtObj.mjOBJ_ACTUATOR, i) for i in range(8)) == JOINTS
    backend.observation_terms = TERMS
    return backend
