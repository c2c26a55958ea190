"""The ant of Gymnasium with a position servo at each of its eight joints, instead of torque motors.

The model behind the emulated motor bus and the task `servo:ant-walk`. Armature, damping and strength are a servo's:
the original's motors of 150 N m accelerate a rotor of 1 kg m^2, far from anything a small servo does.
"""

from __future__ import annotations

from pathlib import Path

import gymnasium.envs.mujoco
import mujoco
import numpy as np

from sim.backend import quiet_loading

PHYSICS_DT = 0.005  # s
STIFFNESS = 40.0  # N m/rad, of a servo's position control
DAMPING = 2.0  # N m s/rad, of the same
STALL_TORQUE = 12.0  # N m
JOINTS = ("hip_1", "ankle_1", "hip_2", "ankle_2", "hip_3", "ankle_3", "hip_4", "ankle_4")
STAND = (0.0, 1.0, 0.0, -1.0, 0.0, -1.0, 0.0, 1.0)  # rad, the start pose of Gymnasium's ant
_HIP, _ANKLE, _MIRRORED = (-0.5, 0.5), (0.55, 1.2), (-1.2, -0.55)
LIMITS = (_HIP, _ANKLE, _HIP, _MIRRORED, _HIP, _MIRRORED, _HIP, _ANKLE)  # rad, of commands; the joints stop a bit later
START_HEIGHT = 0.55  # m, of the torso in that pose
_ARMATURE, _JOINT_DAMPING = 0.05, 0.2


def servo_ant_spec() -> mujoco.MjSpec:
    """The uncompiled model. Actuators are named like their joints, in the order of `JOINTS`; controls are in rad."""
    path = Path(gymnasium.envs.mujoco.__file__).parent / "assets" / "ant.xml"
    spec = mujoco.MjSpec.from_file(str(path))
    spec.option.timestep = PHYSICS_DT
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    for motor in list(spec.actuators):
        spec.delete(motor)
    for name, limits in zip(JOINTS, LIMITS):
        joint = spec.joint(name)
        joint.armature = _ARMATURE
        joint.damping = np.array([_JOINT_DAMPING, 0.0, 0.0])
        servo = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        servo.set_to_position(kp=STIFFNESS, kv=DAMPING)
        servo.ctrllimited, servo.ctrlrange = 1, np.array(limits)
        servo.forcelimited, servo.forcerange = 1, np.array([-STALL_TORQUE, STALL_TORQUE])
    return spec


def build_servo_ant() -> mujoco.MjModel:
    """The compiled model of `servo_ant_spec`."""
    with quiet_loading():
        return servo_ant_spec().compile()
