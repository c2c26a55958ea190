"""Randomised parameters that act on the state: start pose and pushes."""

from __future__ import annotations

import mujoco
import numpy as np

from sim.bound_term import BoundTerm, refuse
from sim.distributions import Array, combine
from sim.model_terms import choose, joint_dofs, scalar_joints
from sim.randomization_config import RandomizationTerm

_FREE, _BALL = int(mujoco.mjtJoint.mjJNT_FREE), int(mujoco.mjtJoint.mjJNT_BALL)


def bind_pose(model: mujoco.MjModel, data: mujoco.MjData, term: RandomizationTerm) -> BoundTerm:
    """Joint positions at the start of an episode (rad, m), kept within the joints' ranges.

    A floating base selected by name is moved, not turned.
    """
    joints, names = choose(model, term, scalar_joints(model))
    addresses, labels, lows, highs = [], [], [], []
    for joint, name in zip(joints, names):
        kind, start = int(model.jnt_type[joint]), int(model.jnt_qposadr[joint])
        if kind == _BALL:
            raise refuse(term, f"{name} is a ball joint, whose position is a quaternion; select other joints")
        components = _components(term, (0, 1, 2) if kind == _FREE else (0,), 3 if kind == _FREE else 1)
        limited = kind != _FREE and bool(model.jnt_limited[joint])
        for component in components:
            addresses.append(start + component)
            labels.append(f"{name}[{component}]" if kind == _FREE else name)
            lows.append(float(model.jnt_range[joint, 0]) if limited else -np.inf)
            highs.append(float(model.jnt_range[joint, 1]) if limited else np.inf)
    operation = term.resolved_operation

    def apply(draws: Array) -> None:
        wanted = combine(operation, data.qpos[addresses], draws[:, 0])
        data.qpos[addresses] = np.clip(wanted, lows, highs)

    return BoundTerm(term, tuple(labels), 1, apply)


def bind_push_velocity(model: mujoco.MjModel, data: mujoco.MjData, term: RandomizationTerm) -> BoundTerm:
    """Jump of joint velocities (rad/s, m/s); of a floating base the linear ones."""
    _require_selection(term)
    joints, names = choose(model, term, [])
    dofs, labels = [], []
    for joint, name in zip(joints, names):
        own = joint_dofs(model, joint)
        for component in _components(term, tuple(range(min(3, len(own)))), len(own)):
            dofs.append(own[component])
            labels.append(name if len(own) == 1 else f"{name}[{component}]")

    def apply(draws: Array) -> None:
        data.qvel[dofs] += draws[:, 0]

    return BoundTerm(term, tuple(labels), 1, apply)


def bind_push_force(model: mujoco.MjModel, data: mujoco.MjData, term: RandomizationTerm) -> BoundTerm:
    """Force (N, components 0 to 2) and torque (N m, 3 to 5) on bodies, in world axes; horizontal force by default."""
    _require_selection(term)
    bodies, labels = choose(model, term, [])
    columns = _components(term, (0, 1), 6)
    place = np.ix_(bodies, columns)

    def apply(draws: Array) -> None:
        data.xfrc_applied[place] = draws

    return BoundTerm(term, labels, len(columns), apply)


def _require_selection(term: RandomizationTerm) -> None:
    if not term.select:
        raise refuse(term, f"name in `select` which {term.info.element} is pushed")


def _components(term: RandomizationTerm, usual: tuple[int, ...], size: int) -> list[int]:
    components = list(usual if term.components is None else term.components)
    if max(components) >= size:
        raise refuse(term, f"components go from 0 to {size - 1}, got {max(components)}")
    return components


STATE_BINDERS = {
    "initial_pose": bind_pose,
    "push_velocity": bind_push_velocity,
    "push_force": bind_push_force,
}
