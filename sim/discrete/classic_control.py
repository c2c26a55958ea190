"""Gymnasium's classic control tasks with discrete actions: `gymnasium:CartPole-v1` and its kind.

The classes are made directly, without `gymnasium.make`, as in `sim.gymnasium_backend`; dynamics and rewards are theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.envs.registration import load_env_creator

from mpo_robot.specs import TermSpec
from mpo_robot.types import FloatArray, StepResult
from sim.discrete.game import Game

_CART_POLE = (("cart_position", "m"), ("cart_velocity", "m/s"), ("pole_angle", "rad"), ("pole_velocity", "rad/s"))
_ACROBOT = (("cos_1", "1"), ("sin_1", "1"), ("cos_2", "1"), ("sin_2", "1"), ("joint_1", "rad/s"), ("joint_2", "rad/s"))
# Name and unit of each scalar of the observation, and seconds per step (MountainCar has no unit of time).
TASKS: dict[str, tuple[tuple[tuple[str, str], ...], float]] = {
    "CartPole-v0": (_CART_POLE, 0.02),
    "CartPole-v1": (_CART_POLE, 0.02),
    "Acrobot-v1": (_ACROBOT, 0.2),
    "MountainCar-v0": ((("position", "1"), ("velocity", "1")), 1.0),
}


class ClassicControl(Game):
    """One task of `TASKS`."""

    def __init__(self, task: str):
        names, self.control_dt = TASKS[task]
        spec = gymnasium.spec(task)
        assert isinstance(spec.entry_point, str)
        self._environment: Any = load_env_creator(spec.entry_point)(**spec.kwargs)
        self.observation_terms = tuple(TermSpec(name, 1, unit) for name, unit in names)
        self.num_actions = int(self._environment.action_space.n)
        self.episode_steps = spec.max_episode_steps
        self._seed: int | None = None

    def seed(self, seed: int) -> None:
        """Seed the next reset, as `reset(seed=...)` would."""
        self._seed = seed

    def reset(self) -> tuple[FloatArray, dict[str, Any]]:
        """Start state as the task draws it."""
        seed, self._seed = self._seed, None
        observation, info = self._environment.reset(seed=seed)
        return observation, info

    def step(self, action: int) -> StepResult:
        """One step of the task."""
        observation, reward, terminated, truncated, info = self._environment.step(action)
        return StepResult(observation, float(reward), bool(terminated), bool(truncated), info)

    def get_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """The vector these tasks call `state`, and the generator."""
        state = self._environment.state
        arrays = {} if state is None else {"state": np.array(state)}
        return {"random": self._environment.np_random.bit_generator.state, "seed": self._seed}, arrays

    def set_state(self, values: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Inverse of `get_state`."""
        self._environment.np_random.bit_generator.state = values["random"]
        self._seed = values["seed"]
        self._environment.state = arrays.get("state")
        if hasattr(self._environment, "steps_beyond_terminated"):
            self._environment.steps_beyond_terminated = None  # an episode that has ended is not stepped

    def close(self) -> None:
        """Close the environment."""
        self._environment.close()
