"""Our environment contract as a Gymnasium environment, for learners of other packages. O observation, A action size."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from mpo_robot.normalization import ReturnScale, RunningNormalizer
from mpo_robot.types import Environment, FloatArray


class GymnasiumAdapter(gymnasium.Env[FloatArray, FloatArray]):
    """Our environment as Gymnasium's: observations normalised, rewards scaled, actions in [-1, 1].

    A truncated step is not a terminated one; the package adds the value of the final observation to it.
    """

    def __init__(
        self, environment: Environment, normalizer: RunningNormalizer | None, return_scale: ReturnScale | None
    ) -> None:
        spec = environment.spec
        self.environment, self.normalizer, self.return_scale = environment, normalizer, return_scale
        bound = np.full(spec.observation_size, np.inf, np.float32)
        self.observation_space = gymnasium.spaces.Box(-bound, bound)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (spec.action_size,))
        self.episode_return = 0.0
        self.finished_returns: list[float] = []

    def _seen(self, observation: FloatArray) -> FloatArray:
        if self.normalizer is None:
            return observation
        self.normalizer.update(observation)
        return self.normalizer(observation)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """First observation of an episode."""
        super().reset(seed=seed)
        self.episode_return = 0.0
        observation, _ = self.environment.reset(seed=seed)
        return self._seen(observation), {}

    def step(self, action: FloatArray) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        """One step."""
        result = self.environment.step(action)
        self.episode_return += result.reward
        ended = result.terminated or result.truncated
        reward = float(result.reward)
        if self.return_scale is not None:
            self.return_scale.update(reward, ended)
            reward /= self.return_scale.scale
        if ended:
            self.finished_returns.append(self.episode_return)
        return self._seen(result.observation), reward, result.terminated, result.truncated, {}
