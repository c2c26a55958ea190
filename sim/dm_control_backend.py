"""Tasks of the dm_control suite, and others of the same shape."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import mujoco  # before dm_control, so that the headless import below leaves mujoco's own renderer alone
import numpy as np
import numpy.typing as npt

from mpo_robot.specs import TermSpec
from mpo_robot.types import FloatArray
from sim.backend import Backend, PeriodResult, plain_attributes, quiet_loading

_RENDERER_VARIABLE = "MUJOCO_GL"
_NOTHING = np.zeros(0, np.float32)


@contextlib.contextmanager
def headless_import() -> Iterator[None]:
    """Let dm_control be imported without looking for OpenGL, unless the user chose a renderer."""
    headless = _RENDERER_VARIABLE not in os.environ and "dm_control" not in sys.modules
    if headless:
        os.environ[_RENDERER_VARIABLE] = "disable"
    try:
        yield
    finally:
        if headless:
            del os.environ[_RENDERER_VARIABLE]


@lru_cache(maxsize=1)
def load_suite() -> Any:
    """The `dm_control.suite` module."""
    with headless_import():
        from dm_control import suite
    return suite


def known_tasks() -> dict[str, tuple[str, str]]:
    """`DOMAIN-TASK` to (domain, task) for the whole suite."""
    return {f"{domain}-{task}": (domain, task) for domain, task in load_suite().ALL_TASKS}


def make_suite_task(domain: str, task: str) -> DmControlBackend:
    """A task of the suite."""
    # The LQR models are random: a fixed seed gives every environment of this task the same model.
    with quiet_loading():
        environment = load_suite().load(domain, task, task_kwargs={"random": np.random.RandomState(0)})
    return DmControlBackend(environment)


class DmControlBackend(Backend):
    """A `dm_control.rl.control.Environment`, stepped by this class in the order of its own `step`."""

    def __init__(self, environment: Any):
        physics = environment.physics
        # A task that draws its terrain asks for a rendering context to upload it to; nothing is rendered here.
        physics.__class__ = type("HeadlessPhysics", (type(physics),), {"contexts": None})
        self._physics, self._task = physics, environment.task
        self.model, self.data = physics.model.ptr, physics.data.ptr
        self.physics_steps = environment._n_sub_steps
        limit = environment._step_limit
        self.episode_periods = None if math.isinf(limit) else max(1, math.ceil(limit - 1e-9))
        self._restarts = self.model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4
        self._task.random.seed(None)
        self._describe_observation(environment.reset().observation)

    def _describe_observation(self, observation: Mapping[str, Any]) -> None:
        terms, self._layout, start = [], [], 0
        for name, value in observation.items():
            size, dimensions = int(np.size(value)), np.ndim(value)
            if size:
                terms.append(TermSpec(name, size, unit="SI"))
            self._layout.append((slice(start, start + size), dimensions > 1))
            start += size
        self.observation_terms = tuple(terms)
        self._size = start

    def seed(self, seed: int) -> None:
        """Seed the task's generator, as `suite.load(..., task_kwargs={"random": seed})` would."""
        self._task.random.seed(seed % 2**32)

    def reset(self) -> tuple[FloatArray, dict[str, Any]]:
        """Start state as the task draws it."""
        with self._physics.reset_context():
            self._task.initialize_episode(self._physics)
        return self.observe(), {}

    def step(self, command: FloatArray) -> PeriodResult:
        """One control period; terminated and truncated as the task's discount says."""
        task, physics = self._task, self._physics
        task.before_step(command, physics)
        if self.advance is None:
            self.run_physics(self.physics_steps)
        else:
            self.advance()
        task.after_step(physics)
        reward = float(task.get_reward(physics))
        discount = task.get_termination(physics)
        ended = discount is not None
        observation = self.observe() if self.wants_observation else _NOTHING
        return observation, reward, ended and discount == 0.0, ended and discount != 0.0, {}

    def write_control(self, command: FloatArray) -> None:
        """Let the task place the command."""
        self._task.before_step(command, self._physics)

    def run_physics(self, steps: int) -> None:
        """Same calls as `Physics.step`: positions and velocities are up to date before and after."""
        model, data = self.model, self.data
        if self._restarts:
            mujoco.mj_step(model, data, steps)
        else:
            mujoco.mj_step2(model, data)
            if steps > 1:
                mujoco.mj_step(model, data, steps - 1)
        mujoco.mj_step1(model, data)

    def observe(self) -> FloatArray:
        """Observation terms in the task's order, flattened."""
        flat = np.empty(self._size, np.float32)
        values = self._task.get_observation(self._physics).values()
        for value, (place, nested) in zip(values, self._layout):
            flat[place] = value.ravel() if nested else value
        return flat

    def refresh_start(self) -> None:
        """As dm_control does after a reset: forward without actuation."""
        self._physics.after_reset()

    def refresh_running(self) -> None:
        """The first half of a step, with which `run_physics` expects to be preceded."""
        mujoco.mj_step1(self.model, self.data)

    def task_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """The task's attributes and its generator."""
        values, arrays = plain_attributes(self._task)
        generator = self._task.random.get_state(legacy=False)
        arrays["random_key"] = np.asarray(generator["state"]["key"])
        random = [int(generator["state"]["pos"]), int(generator["has_gauss"]), float(generator["gauss"])]
        return {"attributes": values, "random": random}, arrays

    def set_task_state(self, values: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Inverse of `task_state`."""
        position, has_gauss, gauss = values["random"]
        self._task.random.set_state(("MT19937", arrays["random_key"], position, has_gauss, gauss))
        for name, value in values["attributes"].items():
            setattr(self._task, name, value)
        for name, array in arrays.items():
            if name != "random_key":
                setattr(self._task, name, array.copy())

    def restore_derived(self) -> None:
        """The first half of a step: constraints of the saved state."""
        mujoco.mj_step1(self.model, self.data)

    def close(self) -> None:
        """Nothing is held but memory."""
