"""Discrete learning without a simulator: an environment, a configuration, batches and learners."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mpo_robot.categorical_config import CategoricalConfig
from mpo_robot.categorical_learner import CategoricalLearner
from mpo_robot.replay import SequenceBatch, SequenceReplay
from mpo_robot.specs import PolicySpec, TermSpec
from mpo_robot.types import StepResult
from tests.support.learning import CONFIG, AllWindows, change
from tests.support.point_environment import PointEnvironment

SPEC = PolicySpec((TermSpec("position", 2, "m"), TermSpec("time", 1, "s")), (TermSpec.discrete("push", 4),), 0.1)
DISCRETE_CONFIG = change(
    CONFIG,
    categorical=CategoricalConfig(
        epsilon=0.1, epsilon_policy=0.0025, init_temperature=3.0, init_alpha=3.0, torso="mlp", observation_scale=1.0
    ),
)
_PUSHES = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]], np.float32)


class DiscretePoint(PointEnvironment):
    """`PointEnvironment` pushed in one of four directions."""

    @property
    def spec(self) -> PolicySpec:
        return SPEC

    def step(self, action: npt.ArrayLike) -> StepResult:
        (index,) = np.asarray(action)
        assert float(index).is_integer()
        return super().step(_PUSHES[int(index)])


def make_discrete_learner(seed: int = 0, **changes: Any) -> CategoricalLearner:
    """A learner whose online and target networks differ and whose policies are far from uniform."""
    learner = CategoricalLearner(SPEC, change(DISCRETE_CONFIG, **changes), seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        learner.online_policy.head.weight.mul_(100.0)
        for flat in (learner.flat["target_policy"], learner.flat["target_critic"]):
            flat.add_(0.3 * torch.randn(flat.shape, generator=generator))
    return learner


def make_discrete_batch(steps: int = 3) -> SequenceBatch:
    """Every window of some terminated and truncated episodes, borders included, some steps without a ratio."""
    rng = np.random.default_rng(3)
    replay = SequenceReplay(100, 3, 1)
    for length, terminated in ((4, True), (1, True), (5, False), (1, False), (6, True)):
        for _ in range(length):
            observation = rng.standard_normal(3).astype(np.float32)
            action = np.array([rng.integers(4)], np.float32)
            valid = bool(rng.uniform() < 0.7)
            log_prob = float(np.log(rng.uniform(0.05, 0.9))) if valid else float("nan")
            last = terminated and _ == length - 1
            replay.add(observation, action, log_prob, float(rng.standard_normal()), last, valid)
        replay.end_episode(rng.standard_normal(3).astype(np.float32), terminated)
    return replay.sample(AllWindows(), len(replay) - steps, steps)
