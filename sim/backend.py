"""What the environment asks of a simulator. Two exist: the dm_control suite and Gymnasium's MuJoCo tasks.

Both expose the raw `mujoco.MjModel` and `mujoco.MjData`, so that everything physical (randomisation, delays, pushes,
saving) is written once. Shapes: O observation size, A command size.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import mujoco
import numpy as np
import numpy.typing as npt

from mpo_robot.specs import TermSpec
from mpo_robot.types import FloatArray

# MuJoCo's counters of NaN, infinite or huge states, after which it resets itself. Any one means divergence.
BAD_STATE = slice(int(mujoco.mjtWarning.mjWARN_BADQPOS), int(mujoco.mjtWarning.mjWARN_BADQACC) + 1)


# What one control period returns: the fields of `StepResult`, before randomisation of the observation. A plain tuple,
# for it is made and taken apart at every step.
PeriodResult: TypeAlias = tuple[FloatArray, float, bool, bool, dict[str, Any]]


class Backend(abc.ABC):
    """One task of one simulator.

    Attributes:
        model: The compiled model; randomisation writes to it.
        data: The simulation state.
        observation_terms: Named parts of the observation, in order.
        physics_steps: Physics steps per control period (decimation).
        episode_periods: The task's own time limit in control periods; None if it has none.
        wants_observation: Whether `step` must return the observation; without, it may return an empty one.
        advance: If set, called instead of the simulator's own stepping, with the control in `data.ctrl`.
    """

    model: mujoco.MjModel
    data: mujoco.MjData
    observation_terms: tuple[TermSpec, ...]
    physics_steps: int
    episode_periods: int | None
    wants_observation: bool = True
    advance: Callable[[], None] | None = None

    @property
    def physics_dt(self) -> float:
        """Seconds per physics step."""
        return float(self.model.opt.timestep)

    @abc.abstractmethod
    def seed(self, seed: int) -> None:
        """Make the next reset and all after it repeatable."""

    @abc.abstractmethod
    def reset(self) -> tuple[FloatArray, dict[str, Any]]:
        """Put the task in a start state; the observation [O] and info."""

    @abc.abstractmethod
    def step(self, command: FloatArray) -> PeriodResult:
        """Advance one control period with a physical command [A] within the bounds."""

    @abc.abstractmethod
    def write_control(self, command: FloatArray) -> None:
        """Put a command [A] in `data.ctrl`, as `step` does before it advances."""

    @abc.abstractmethod
    def run_physics(self, steps: int) -> None:
        """Advance `steps` physics steps with the control in `data.ctrl`; the observation is then up to date."""

    @abc.abstractmethod
    def observe(self) -> FloatArray:
        """A new observation [O] of the present state."""

    @abc.abstractmethod
    def refresh_start(self) -> None:
        """Bring derived quantities up to date after the model or the pose was changed at a reset."""

    @abc.abstractmethod
    def refresh_running(self) -> None:
        """The same between two control periods, leaving alone what the task expects to lag behind."""

    @abc.abstractmethod
    def task_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """State outside the physics: JSON-able values (with the random generator) and arrays."""

    @abc.abstractmethod
    def set_task_state(self, values: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Inverse of `task_state`."""

    @abc.abstractmethod
    def restore_derived(self) -> None:
        """Recompute contacts and the like after `data` was given a saved state."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release the simulator. May be called twice."""


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep MuJoCo from printing (and logging to a file) remarks on a library's own model file."""
    previous = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(previous)


def plain_attributes(owner: Any, skip: frozenset[str] = frozenset()) -> tuple[dict[str, Any], dict[str, Any]]:
    """Numbers, text and numeric arrays among an object's attributes: what a task remembers between steps."""
    values: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    for name, value in vars(owner).items():
        if name in skip:
            continue
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            arrays[name] = value.copy()
        elif isinstance(value, (bool, int, float, str)):
            values[name] = value
        elif isinstance(value, np.generic) and value.dtype.kind in "biuf":
            values[name] = value.item()
    return values, arrays
