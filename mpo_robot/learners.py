"""`make_learner`: the one way from a configuration to a learner."""

from __future__ import annotations

from mpo_robot.actor_critic import ActorCritic
from mpo_robot.categorical_learner import CategoricalLearner
from mpo_robot.learner import Learner
from mpo_robot.mpo_config import LearnerConfig
from mpo_robot.specs import PolicySpec

ALGORITHMS = {"mpo": Learner}


def make_learner(spec: PolicySpec, config: LearnerConfig, seed: int) -> ActorCritic:
    """An untrained learner of `config.algorithm` for policies of this spec; `seed` sets its networks and its sampling.

    Raises:
        ConfigError: the algorithm does not fit the task's actions.
    """
    if spec.num_actions is not None:
        return CategoricalLearner(spec, config, seed)
    return ALGORITHMS["mpo"](spec.observation_size, spec.action_size, config, seed)
