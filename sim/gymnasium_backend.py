"""MuJoCo tasks of Gymnasium, `-v4` and `-v5`.

The classes are made directly, without `gymnasium.make`: its wrappers check types and print a deprecation notice at
`-v4`, and its time limit resets nothing but hides the environment. The dynamics and rewards are the class's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import mujoco
import numpy as np
import numpy.typing as npt
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.envs.registration import load_env_creator, registry

from mpo_robot.errors import ConfigError
from mpo_robot.specs import TermSpec
from mpo_robot.types import FloatArray
from sim.backend import Backend, PeriodResult, plain_attributes, quiet_loading

_CONSTANT = frozenset({"fullpath", "width", "height", "init_qpos", "init_qvel", "frame_skip", "render_mode"})
# Classes whose observation is joint positions and velocities as they are, unless they add contact forces, and is used
# for nothing but being returned. (Walker2d and Hopper clip velocities; InvertedPendulum terminates by its observation.)
_POSITION_AND_VELOCITY = frozenset({"AntEnv", "HalfCheetahEnv", "SwimmerEnv"})


def known_tasks() -> dict[str, str]:
    """Ids of the registered MuJoCo tasks that a class stands behind."""
    return {
        name: name
        for name, spec in registry.items()
        if isinstance(spec.entry_point, str) and spec.entry_point.startswith("gymnasium.envs.mujoco.")
    }


class GymnasiumBackend(Backend):
    """One `MujocoEnv`; its own `step` is called, so rewards and infos are Gymnasium's."""

    def __init__(self, task: str):
        spec = gymnasium.spec(task)
        assert isinstance(spec.entry_point, str)
        try:
            with quiet_loading():
                environment = load_env_creator(spec.entry_point)(**spec.kwargs)
        except ImportError as error:
            raise ConfigError(f"gymnasium:{task} cannot be used here: {error}") from error
        assert isinstance(environment, MujocoEnv)
        self._environment = environment
        self.model, self.data = environment.model, environment.data
        self.physics_steps = int(environment.frame_skip)
        self.episode_periods = spec.max_episode_steps
        self._seed: int | None = None
        # Every task steps through this method, which is therefore the place to put delays and pushes. The check of the
        # action's shape that it makes is the environment's.
        environment.do_simulation = self._simulate  # type: ignore[method-assign]
        # A constant that the tasks compute from the model once or twice per step.
        environment.__class__ = type(type(environment).__name__, (type(environment),), {"dt": environment.dt})
        observation, _ = environment.reset()
        self._describe_observation(np.asarray(observation))
        if type(environment).__name__ in _POSITION_AND_VELOCITY:
            self._shorten_observation(np.asarray(observation))

    def _describe_observation(self, observation: npt.NDArray[np.float64]) -> None:
        structure = getattr(self._environment, "observation_structure", None) or {}
        parts = {name: size for name, size in structure.items() if size and not name.startswith("skipped_")}
        if sum(parts.values()) != observation.size:
            parts = self._position_and_velocity(observation) or {"observation": observation.size}
        self.observation_terms = tuple(TermSpec(name, int(size), unit="SI") for name, size in parts.items())

    def _position_and_velocity(self, observation: npt.NDArray[np.float64]) -> dict[str, int]:
        """Sizes of qpos and qvel if the observation is just these two, as in most `-v4` tasks; else nothing."""
        position, velocity = self.data.qpos, self.data.qvel
        kept = observation.size - velocity.size
        plain = 0 < kept <= position.size and np.array_equal(
            observation, np.concatenate([position[position.size - kept :], velocity])
        )
        return {"qpos": kept, "qvel": velocity.size} if plain else {}

    def _shorten_observation(self, observation: npt.NDArray[np.float64]) -> None:
        """Have the task's observation, where it is just positions and velocities, made in fewer NumPy calls."""
        kept = self._position_and_velocity(observation).get("qpos")
        if kept is None:
            return
        position, velocity, size = self.data.qpos[self.data.qpos.size - kept :], self.data.qvel, observation.size

        def observe() -> FloatArray:
            flat = np.empty(size, np.float32)
            flat[:kept] = position
            flat[kept:] = velocity
            return flat

        self._environment._get_obs = observe  # type: ignore[attr-defined]

    def seed(self, seed: int) -> None:
        """Seed the next reset, as `reset(seed=...)` would."""
        self._seed = seed

    def reset(self) -> tuple[FloatArray, dict[str, Any]]:
        """Start state as the task draws it."""
        seed, self._seed = self._seed, None
        observation, info = self._environment.reset(seed=seed)
        return observation.astype(np.float32, copy=False), info

    def step(self, command: FloatArray) -> PeriodResult:
        """One control period as the task steps it."""
        observation, reward, terminated, truncated, info = self._environment.step(command)
        return observation.astype(np.float32, copy=False), float(reward), bool(terminated), bool(truncated), info

    def _simulate(self, control: npt.NDArray[Any], steps: int) -> None:
        self.data.ctrl[:] = control
        if self.advance is None:
            mujoco.mj_step(self.model, self.data, steps)
        else:
            self.advance()
        mujoco.mj_rnePostConstraint(self.model, self.data)

    def write_control(self, command: FloatArray) -> None:
        """Commands are controls."""
        self.data.ctrl[:] = command

    def run_physics(self, steps: int) -> None:
        """Plain steps; like the tasks themselves, body positions lag one physics step behind the joints."""
        mujoco.mj_step(self.model, self.data, steps)

    def observe(self) -> FloatArray:
        """Observation of the present state."""
        mujoco.mj_rnePostConstraint(self.model, self.data)
        return np.asarray(self._environment._get_obs(), np.float32)  # type: ignore[attr-defined]

    def refresh_start(self) -> None:
        """As `MujocoEnv.set_state` does after a reset."""
        mujoco.mj_forward(self.model, self.data)

    def refresh_running(self) -> None:
        """Nothing: `mj_step` recomputes all, and body positions must keep their lag, from which rewards are made."""

    def task_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """The environment's attributes (a goal, for example) and its generator."""
        values, arrays = plain_attributes(self._environment, _CONSTANT)
        generator = self._environment.np_random.bit_generator.state
        return {"attributes": values, "random": generator, "seed": self._seed}, arrays

    def set_task_state(self, values: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Inverse of `task_state`."""
        self._environment.np_random.bit_generator.state = values["random"]
        self._seed = values["seed"]
        for name, value in values["attributes"].items():
            setattr(self._environment, name, value)
        for name, array in arrays.items():
            setattr(self._environment, name, array.copy())

    def restore_derived(self) -> None:
        """Contacts of the saved state; the saved derived quantities are put over it afterwards."""
        mujoco.mj_forward(self.model, self.data)

    def close(self) -> None:
        """Close the environment."""
        self._environment.close()
