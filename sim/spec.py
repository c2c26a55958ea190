"""The `PolicySpec` of a simulated task, read from its compiled model."""

from __future__ import annotations

import math

import mujoco
import numpy as np

from mpo_robot.specs import PolicySpec, TermSpec
from mpo_robot.types import FloatArray

_UNBOUNDED = 1e6


def build_spec(model: mujoco.MjModel, observation: tuple[TermSpec, ...], control_dt: float) -> PolicySpec:
    """Interface of a policy: the task's observation terms, one command term per actuator, and the real period.

    An actuator without a control range (the LQR tasks have none, or 1e10) gets [-1, 1] in its own control unit,
    because a policy needs finite bounds.
    """
    commands = []
    for index, name in enumerate(actuator_names(model)):
        low, high = _bounds(model, index)
        commands.append(TermSpec(name, 1, unit=_unit(model, index), low=(low,), high=(high,)))
    return PolicySpec(observation=observation, command=tuple(commands), control_dt=control_dt)


def rest_control(model: mujoco.MjModel, data: mujoco.MjData) -> FloatArray:
    """Controls that make no effort, within the bounds, [A]: zero, or for position servos the present position."""
    rest = np.zeros(model.nu, np.float32)
    for index in range(model.nu):
        if _unit(model, index) in ("rad", "m"):
            rest[index] = data.qpos[model.jnt_qposadr[model.actuator_trnid[index, 0]]]
    low, high = np.array([_bounds(model, index) for index in range(model.nu)], np.float32).T
    return np.clip(rest, low, high)


def _bounds(model: mujoco.MjModel, index: int) -> tuple[float, float]:
    low, high = (float(x) for x in model.actuator_ctrlrange[index])
    bounded = model.actuator_ctrllimited[index] and low < high and max(abs(low), abs(high)) < _UNBOUNDED
    return (low, high) if bounded else (-1.0, 1.0)


def actuator_names(model: mujoco.MjModel) -> list[str]:
    """A unique name for each control: the actuator's, else its joint's, else `actuator_INDEX`."""
    names: list[str] = []
    for index in range(model.nu):
        name = model.actuator(index).name
        if not name and model.actuator_trntype[index] == mujoco.mjtTrn.mjTRN_JOINT:
            name = model.joint(int(model.actuator_trnid[index, 0])).name
        names.append(name if name and name not in names else f"actuator_{index}")
    return names


def _unit(model: mujoco.MjModel, index: int) -> str:
    """Unit of a control: an angle or length for position servos, a rate for velocity servos, else 1 (gear scales)."""
    if model.actuator_trntype[index] != mujoco.mjtTrn.mjTRN_JOINT or model.actuator_dyntype[index] != 0:
        return "1"
    if model.actuator_biastype[index] != mujoco.mjtBias.mjBIAS_AFFINE:
        return "1"
    hinge = model.jnt_type[int(model.actuator_trnid[index, 0])] == mujoco.mjtJoint.mjJNT_HINGE
    gain, bias = float(model.actuator_gainprm[index, 0]), model.actuator_biasprm[index]
    if gain and math.isclose(gain, -float(bias[1])):
        return "rad" if hinge else "m"
    if gain and math.isclose(gain, -float(bias[2])):
        return "rad/s" if hinge else "m/s"
    return "1"
