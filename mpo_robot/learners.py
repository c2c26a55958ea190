"""`make_learner`: the one way from a configuration to a learner; `require_fitting`: whether there is one.

`make_return_scale`: the unit of its critic.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

from mpo_robot.actor_critic import ActorCritic
from mpo_robot.baselines.ddpg import DDPG
from mpo_robot.baselines.epg import EPG
from mpo_robot.baselines.sac import SAC
from mpo_robot.categorical_learner import CategoricalLearner
from mpo_robot.errors import ConfigError, first_line
from mpo_robot.learner import Learner
from mpo_robot.mpo_config import LearnerConfig
from mpo_robot.normalization import ReturnScale
from mpo_robot.specs import PolicySpec

ALGORITHMS = {"mpo": Learner, "sac": SAC, "ddpg": DDPG, "epg": EPG}


def make_learner(spec: PolicySpec, config: LearnerConfig, seed: int, planned_updates: int | None = None) -> ActorCritic:
    """An untrained learner of `config.algorithm` for policies of this spec.

    Args:
        spec: The task's observations and actions, and its control period, for `discount: auto`.
        config: Its settings.
        seed: Of its networks and its sampling.
        planned_updates: Updates of the whole training: what `learning_rate_decay_steps: auto` stands for.

    Raises:
        ConfigError: the algorithm does not fit the task's actions.
    """
    if config.learning_rate_decay_steps == "auto":
        config = replace(config, learning_rate_decay_steps=planned_updates)
    config = replace(config, discount=config.discount_at(spec.control_dt))
    if config.algorithm == "ppo":
        raise ConfigError("ppo learns from its own rollouts only: it has no replay, and logs are nothing to it")
    if spec.num_actions is not None:
        if config.algorithm != "mpo":
            raise ConfigError(
                f"learner.algorithm {config.algorithm} needs continuous actions, this task's are discrete"
            )
        return CategoricalLearner(spec, config, seed)
    return ALGORITHMS[config.algorithm](spec.observation_size, spec.action_size, config, seed)


def make_return_scale(spec: PolicySpec, config: LearnerConfig) -> ReturnScale | None:
    """The scale of the critic's rewards, before the first of them; None where they are learnt as they are."""
    bound = config.return_scale_bound
    return None if bound is None else ReturnScale(config.discount_at(spec.control_dt), bound)


def require_fitting(spec: PolicySpec, config: LearnerConfig, environments: int) -> None:
    """Refuse a learner that cannot be made for this task, before anything is written or trained.

    Raises:
        ConfigError: what does not fit, and what would.
    """
    if config.algorithm != "ppo":
        try:
            make_learner(spec, config, seed=0)
        except (MemoryError, RuntimeError) as error:
            raise ConfigError(
                f"no learner of these settings can be made here: {first_line(error)}. Lower hidden_sizes, num_critics, "
                "num_atoms or residual_expansion if it is the memory, or else the number that is too large"
            ) from error
        return
    if spec.num_actions is not None:
        raise ConfigError("learner.algorithm ppo needs continuous actions here, this task's are discrete")
    if environments > 1:
        raise ConfigError(
            f"learner.algorithm ppo collects from one environment here: training.environments is {environments}"
        )
    if find_spec("stable_baselines3") is None:
        raise ConfigError("learner.algorithm ppo needs stable_baselines3: pip install 'mpo-robot[train,baselines]'")
