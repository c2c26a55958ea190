"""The `PolicySpec` of a simulated task, read from its compiled model."""

from __future__ import annotations

import math

import mujoco

from mpo_robot.specs import PolicySpec, TermSpec

_UNBOUNDED = 1e6


def build_spec(model: mujoco.MjModel, observation: tuple[TermSpec, ...], control_dt: float) -> PolicySpec:
    """Interface of a policy: the task's observation terms, one command term per actuator, and the real period.

    An actuator without a control range (the LQR tasks have none, or 1e10) gets [-1, 1] in its own control unit,
    because a policy needs finite bounds.
    """
    names = actuator_names(model)
    commands = []
    for index in range(model.nu):
        low, high = (float(x) for x in model.actuator_ctrlrange[index])
        bounded = model.actuator_ctrllimited[index] and low < high and max(abs(low), abs(high)) < _UNBOUNDED
        low, high = (low, high) if bounded else (-1.0, 1.0)
        commands.append(TermSpec(names[index], 1, unit=_unit(model, index), low=(low,), high=(high,)))
    return PolicySpec(observation=observation, command=tuple(commands), control_dt=control_dt)


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
