"""Randomised parameters that are fields of `mjModel`.

Each binder finds the elements of a term and returns how its draws change the model. A draw is applied to the values
in the model at that moment, which the randomiser has put back to their defaults before.
"""

from __future__ import annotations

from collections.abc import Callable

import mujoco
import numpy as np

from sim.bound_term import BoundTerm, refuse, require_above_minimum
from sim.distributions import Array, combine
from sim.randomization_config import RandomizationTerm
from sim.selection import element_names, select

_FREE, _BALL = int(mujoco.mjtJoint.mjJNT_FREE), int(mujoco.mjtJoint.mjJNT_BALL)
_DOFS = {_FREE: 6, _BALL: 3}


def choose(model: mujoco.MjModel, term: RandomizationTerm, usual: list[int]) -> tuple[list[int], tuple[str, ...]]:
    """Indices and names of the elements a term selects; `usual` if it selects none by name."""
    names = element_names(model, term.info.element)
    indices = select(term.select, names, f"randomization of {term.parameter}") if term.select else usual
    if not indices:
        raise refuse(term, f"this model has no {term.info.element} to which it applies")
    return indices, tuple(names[index] for index in indices)


def scalar_joints(model: mujoco.MjModel) -> list[int]:
    """Hinges and slides: what `joint` terms mean unless a floating base is selected by name."""
    return [index for index in range(model.njnt) if int(model.jnt_type[index]) not in _DOFS]


def joint_dofs(model: mujoco.MjModel, joint: int) -> list[int]:
    """Indices of a joint's degrees of freedom."""
    start = int(model.jnt_dofadr[joint])
    return list(range(start, start + _DOFS.get(int(model.jnt_type[joint]), 1)))


def _columns(term: RandomizationTerm, usual: tuple[int, ...], size: int) -> list[int]:
    columns = list(term.components if term.components is not None else usual)
    if max(columns) >= size:
        raise refuse(term, f"components go from 0 to {size - 1}, got {max(columns)}")
    return columns


def _width(term: RandomizationTerm, columns: list[int]) -> int:
    """A plain `scale` multiplies all components by one factor: it changes a size, not a direction or a shape."""
    return 1 if term.resolved_operation == "scale" and term.components is None else len(columns)


def _field(
    term: RandomizationTerm, field: str, array: Array, rows: list[int], owners: list[int], labels: tuple[str, ...],
    columns: list[int], derived: bool = False,
) -> BoundTerm:  # fmt: skip
    """Term on `array[rows, columns]`; row i belongs to element `owners[i]`."""
    place, operation = np.ix_(rows, columns), term.resolved_operation
    require_above_minimum(term, [labels[owner] for owner in owners] if labels else [field], array[place])

    def apply(draws: Array) -> None:
        present = array[place]
        array[place] = combine(operation, present, np.broadcast_to(draws[owners], present.shape))

    return BoundTerm(term, labels, _width(term, columns), apply, (field,), derived)


def bind_mass(model: mujoco.MjModel, term: RandomizationTerm) -> BoundTerm:
    """Body mass; the inertia is scaled with it, as if the density changed."""
    rows, labels = choose(model, term, [i for i in range(1, model.nbody) if model.body_mass[i] > 0])
    for row, label in zip(rows, labels):
        if model.body_mass[row] <= 0:
            raise refuse(term, f"{label} has no mass of its own")
    require_above_minimum(term, labels, model.body_mass[rows])
    operation = term.resolved_operation

    def apply(draws: Array) -> None:
        present = model.body_mass[rows]
        wanted = combine(operation, present, draws[:, 0])
        model.body_mass[rows] = wanted
        model.body_inertia[rows] *= (wanted / present)[:, None]

    return BoundTerm(term, labels, 1, apply, ("body_mass", "body_inertia"), derived=True)


def bind_inertia(model: mujoco.MjModel, term: RandomizationTerm) -> BoundTerm:
    """Principal moments of inertia, mass unchanged; one factor per body keeps them possible."""
    rows, labels = choose(model, term, [i for i in range(1, model.nbody) if model.body_mass[i] > 0])
    columns = _columns(term, (0, 1, 2), 3)
    return _field(term, "body_inertia", model.body_inertia, rows, list(range(len(rows))), labels, columns, True)


def bind_com(model: mujoco.MjModel, term: RandomizationTerm) -> BoundTerm:
    """Center of mass in the body's frame, m."""
    moving = [i for i in range(1, model.nbody) if model.body_mass[i] > 0 and not model.body_simple[i]]
    rows, labels = choose(model, term, moving)
    for row, label in zip(rows, labels):
        if row == 0 or model.body_simple[row]:
            raise refuse(
                term,
                f"MuJoCo compiled {label} as a simple body, whose center of mass is fixed to its frame; select others",
            )
    columns = _columns(term, (0, 1, 2), 3)
    return _field(term, "body_ipos", model.body_ipos, rows, list(range(len(rows))), labels, columns, True)


def bind_friction(model: mujoco.MjModel, term: RandomizationTerm) -> BoundTerm:
    """Friction coefficients of geoms, sliding by default."""
    rows, labels = choose(model, term, list(range(model.ngeom)))
    columns = _columns(term, (0,), 3)
    return _field(term, "geom_friction", model.geom_friction, rows, list(range(len(rows))), labels, columns)


def _joint_binder(field: str, derived: bool) -> Callable[[mujoco.MjModel, RandomizationTerm], BoundTerm]:
    def bind(model: mujoco.MjModel, term: RandomizationTerm) -> BoundTerm:
        joints, labels = choose(model, term, scalar_joints(model))
        pairs = [(dof, owner) for owner, joint in enumerate(joints) for dof in joint_dofs(model, joint)]
        array = getattr(model, field)[:, None]
        _columns(term, (0,), 1)
        rows, owners = [dof for dof, _ in pairs], [owner for _, owner in pairs]
        return _field(term, field, array, rows, owners, labels, [0], derived)

    return bind


def bind_gain(model: mujoco.MjModel, term: RandomizationTerm) -> BoundTerm:
    """Strength of an actuator: the gain and, in servos, the bias, so that the set point does not move."""
    rows, labels = choose(model, term, list(range(model.nu)))
    linear = (int(mujoco.mjtGain.mjGAIN_FIXED), int(mujoco.mjtGain.mjGAIN_AFFINE))
    biases = (int(mujoco.mjtBias.mjBIAS_NONE), int(mujoco.mjtBias.mjBIAS_AFFINE))
    for row, label in zip(rows, labels):
        if model.actuator_gaintype[row] not in linear or model.actuator_biastype[row] not in biases:
            raise refuse(term, f"{label} is a muscle or has a user-defined gain")
        if term.resolved_operation != "scale" and not model.actuator_gainprm[row, 0]:
            raise refuse(term, f"{label} has a gain of 0")
    require_above_minimum(term, labels, model.actuator_gainprm[rows, 0])
    operation = term.resolved_operation

    def apply(draws: Array) -> None:
        factor = draws
        if operation != "scale":
            present = model.actuator_gainprm[rows, :1]
            factor = combine(operation, present, draws) / present
        model.actuator_gainprm[rows] *= factor
        model.actuator_biasprm[rows] *= factor

    return BoundTerm(term, labels, 1, apply, ("actuator_gainprm", "actuator_biasprm"))


def bind_gravity(model: mujoco.MjModel, term: RandomizationTerm) -> BoundTerm:
    """Gravity vector, m/s^2; `abs` sets its vertical component unless told otherwise."""
    columns = _columns(term, (2,) if term.resolved_operation == "abs" else (0, 1, 2), 3)
    return _field(term, "opt.gravity", model.opt.gravity[None], [0], [0], (), columns)


MODEL_BINDERS: dict[str, Callable[[mujoco.MjModel, RandomizationTerm], BoundTerm]] = {
    "body_mass": bind_mass,
    "body_inertia": bind_inertia,
    "body_com": bind_com,
    "geom_friction": bind_friction,
    "joint_damping": _joint_binder("dof_damping", derived=False),
    "joint_armature": _joint_binder("dof_armature", derived=True),
    "joint_frictionloss": _joint_binder("dof_frictionloss", derived=False),
    "actuator_gain": bind_gain,
    "gravity": bind_gravity,
}
