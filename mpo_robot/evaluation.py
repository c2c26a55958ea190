"""Roll out a policy and summarise its returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mpo_robot.specs import PolicySpec
from mpo_robot.types import Environment, FloatArray


class Evaluation(NamedTuple):
    """Returns (undiscounted) of a number of episodes."""

    returns: npt.NDArray[np.float64]
    lengths: npt.NDArray[np.int64]

    def summary(self) -> dict[str, float]:
        """Columns of evaluations.csv."""
        return {
            "return_mean": float(self.returns.mean()),
            "return_std": float(self.returns.std()),
            "return_min": float(self.returns.min()),
            "return_max": float(self.returns.max()),
            "episodes": len(self.returns),
        }


def evaluated_action(spec: PolicySpec) -> str:
    """What an evaluation takes of the policy's distribution, in words."""
    return "mean action" if spec.num_actions is None else "most probable action"


def evaluate(
    environment: Environment, act: Callable[[FloatArray], npt.ArrayLike], episodes: int, first_seed: int
) -> Evaluation:
    """Run `episodes` episodes with `act(observation) -> action`; episode i is reset with seed `first_seed + i`."""
    returns, lengths = [], []
    for index in range(episodes):
        observation, _ = environment.reset(seed=first_seed + index)
        total, steps, ended = 0.0, 0, False
        while not ended:
            result = environment.step(act(observation))
            observation = result.observation
            total += result.reward
            steps += 1
            ended = result.terminated or result.truncated
        returns.append(total)
        lengths.append(steps)
    return Evaluation(np.array(returns), np.array(lengths, np.int64))
