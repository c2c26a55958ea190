"""`make_learner`: the one way from a configuration to a learner."""

from __future__ import annotations

from mpo_robot.actor_critic import ActorCritic
from mpo_robot.baselines.ddpg import DDPG
from mpo_robot.baselines.epg import EPG
from mpo_robot.baselines.sac import SAC
from mpo_robot.categorical_learner import CategoricalLearner
from mpo_robot.errors import ConfigError
from mpo_robot.learner import Learner
from mpo_robot.mpo_config import LearnerConfig
from mpo_robot.specs import PolicySpec

ALGORITHMS = {"mpo": Learner, "sac": SAC, "ddpg": DDPG, "epg": EPG}


def make_learner(spec: PolicySpec, config: LearnerConfig, seed: int) -> ActorCritic:
    """An untrained learner of `config.algorithm` for policies of this spec; `seed` sets its networks and its sampling.

    Raises:
        ConfigError: the algorithm does not fit the task's actions.
    """
    if config.algorithm == "ppo":
        raise ConfigError("ppo learns from its own rollouts only: it has no replay, and logs are nothing to it")
    if spec.num_actions is not None:
        if config.algorithm != "mpo":
            raise ConfigError(
                f"learner.algorithm {config.algorithm} needs continuous actions, this task's are discrete"
            )
        return CategoricalLearner(spec, config, seed)
    return ALGORITHMS[config.algorithm](spec.observation_size, spec.action_size, config, seed)
