"""Evaluation: returns, lengths, seeds, summary."""

import numpy as np
import pytest

from mpo_robot.evaluation import Evaluation, evaluate
from tests.support.point_environment import PointEnvironment


class Recorder(PointEnvironment):
    """Notes its seeds, and what it rewarded in each episode."""

    def __init__(self):
        super().__init__(length=5)
        self.seeds, self.rewards = [], []

    def reset(self, seed=None):
        self.seeds.append(seed)
        self.rewards.append([])
        return super().reset(seed)

    def step(self, action):
        result = super().step(action)
        self.rewards[-1].append(result.reward)
        return result


def test_returns_are_sums_over_whole_episodes_with_consecutive_seeds():
    environment = Recorder()
    seen = []

    def act(observation):
        seen.append(observation.copy())
        return np.array([3.0, -3.0])  # out of bounds on purpose: clipping is the environment's part

    result = evaluate(environment, act, episodes=3, first_seed=100)
    assert environment.seeds == [100, 101, 102]
    assert result.returns.tolist() == pytest.approx([sum(rewards) for rewards in environment.rewards])
    assert result.lengths.tolist() == [5, 5, 5]
    assert len(seen) == 15  # the final observation is not acted on
    assert seen[0][2] == seen[5][2] == 0.0
    assert all((action == [3.0, -3.0]).all() for action in environment.actions)


def test_the_same_seeds_give_the_same_returns():
    runs = [evaluate(PointEnvironment(), lambda observation: -observation[:2], 4, 7) for _ in range(2)]
    assert runs[0].returns.tolist() == runs[1].returns.tolist()
    assert (
        evaluate(PointEnvironment(), lambda observation: -observation[:2], 4, 8).returns.tolist()
        != runs[0].returns.tolist()
    )


def test_summary_by_hand():
    result = Evaluation(np.array([1.0, 2.0, 6.0]), np.array([5, 5, 5]))
    assert result.summary() == {
        "return_mean": 3.0,
        "return_std": pytest.approx(np.sqrt(14 / 3)),
        "return_min": 1.0,
        "return_max": 6.0,
        "episodes": 3,
    }
