"""What makes no sense in the settings of a training: it learns nothing or too low values, a setting changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mpo_robot.config import differences
from mpo_robot.mpo_config import LearnerConfig
from mpo_robot.training_config import TrainingConfig


@dataclass(frozen=True)
class Idle:
    """Settings that change nothing in some trainings.

    Attributes:
        keys: Their names; the name of a section stands for all settings in it.
        when: Whether a learner's settings, with discrete actions or without, leave them without an effect.
        why: The reason, and what does it instead.
        but: Names of settings in `keys` that do have an effect.
    """

    keys: tuple[str, ...]
    when: Callable[[LearnerConfig, bool], bool]
    why: str
    but: tuple[str, ...] = ()

    def covers(self, key: str) -> bool:
        """Whether `key` is one of the settings."""
        return _is_one_of(key, self.keys) and not _is_one_of(key, self.but)


def _is_one_of(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _section(algorithm: str) -> Idle:
    reason = f"unless learner.algorithm is {algorithm}"
    return Idle((f"learner.{algorithm}",), lambda learner, discrete: learner.algorithm != algorithm, reason)


def _mpo(*names: str) -> tuple[str, ...]:
    return tuple(f"learner.mpo.{name}" for name in names)


_PPO_TAKES = (
    "learner.algorithm",
    "learner.discount",
    "learner.return_scale_bound",
    "learner.policy.hidden_sizes",
    "learner.policy.init_stddev",
    "learner.critic.hidden_sizes",
    "learner.ppo",
)
_REPLAY = (
    "warmup_steps",
    "updates_per_step",
    "environment_threads",
    "noise_color",
    "white_noise_steps",
    "noise_scale_min",
    "replay_capacity",
    "replay_bytes",
)
_GAUSSIAN = ("learner.policy.init_stddev", "learner.policy.min_stddev", "learner.policy.tanh_mean")

# The first that fits a setting gives the reason.
IDLE = (
    Idle(
        ("learner",),
        lambda learner, discrete: learner.algorithm == "ppo",
        "on ppo, whose settings are learner.ppo",
        but=_PPO_TAKES,
    ),
    Idle(
        tuple(f"training.{name}" for name in _REPLAY),
        lambda learner, discrete: learner.algorithm == "ppo",
        "on ppo, which learns from its own rollouts: see learner.ppo.rollout_steps and epochs",
    ),
    *(_section(algorithm) for algorithm in ("mpo", "sac", "ddpg", "epg", "ppo")),
    Idle(
        ("learner.compile",),
        lambda learner, discrete: learner.algorithm != "mpo" or discrete,
        "unless learner.algorithm is mpo and the actions are continuous",
    ),
    Idle(
        ("learner.learning_rate_duals",),
        lambda learner, discrete: learner.algorithm in ("ddpg", "epg"),
        "on ddpg and epg, which have neither temperature nor multipliers",
    ),
    Idle(
        ("learner.policy.tanh_mean",),
        lambda learner, discrete: learner.algorithm in ("sac", "ddpg"),
        "on sac and ddpg, which squash the action itself",
    ),
    Idle(
        _GAUSSIAN,
        lambda learner, discrete: learner.algorithm == "ddpg",
        "on ddpg, which explores with learner.ddpg.noise_stddev",
    ),
    Idle(
        ("learner.ddpg.num_samples",),
        lambda learner, discrete: learner.returns != "retrace",
        "without returns: retrace, which alone evaluates the exploring policy",
    ),
    Idle(
        ("training.noise_scale_min",),
        lambda learner, discrete: discrete,
        "on discrete actions, whose noise only picks among them",
    ),
    Idle(
        (*_GAUSSIAN, "learner.policy.covariance"),
        lambda learner, discrete: discrete,
        "on discrete actions, whose policy is no Gaussian",
    ),
    *(
        Idle(
            _mpo(*names), lambda learner, discrete: discrete, f"on discrete actions: set learner.categorical.{instead}"
        )
        for names, instead in (
            (("epsilon",), "epsilon"),
            (("epsilon_mean", "epsilon_stddev"), "epsilon_policy"),
            (("init_temperature",), "init_temperature"),
            (("init_alpha_mean", "init_alpha_stddev"), "init_alpha"),
        )
    ),
    Idle(
        ("learner.mpo",),
        lambda learner, discrete: discrete,
        "on discrete actions, which are all summed over: of learner.mpo only temperature_update, kl_form and "
        "variational apply",
        but=_mpo("temperature_update", "kl_form", "variational"),
    ),
    Idle(("learner.categorical",), lambda learner, discrete: not discrete, "on continuous actions: set learner.mpo"),
    Idle(
        (
            *_mpo("temperature_update", "init_temperature", "epsilon", "epsilon_penalty", "center_weights"),
            "learner.categorical.epsilon",
            "learner.categorical.init_temperature",
        ),
        lambda learner, discrete: learner.mpo.variational == "parametric",
        "with variational: parametric, which has no E-step; its bounds are those of the M-step",
    ),
    Idle(
        _mpo("parametric_estimator"),
        lambda learner, discrete: learner.mpo.variational == "nonparametric",
        "without variational: parametric",
    ),
    Idle(
        (*_mpo("epsilon", "epsilon_penalty"), "learner.categorical.epsilon"),
        lambda learner, discrete: learner.mpo.temperature_update == "fixed",
        "with temperature_update: fixed, under which the E-step has no bound: set init_temperature",
    ),
    Idle(
        (*_mpo("init_temperature"), "learner.categorical.init_temperature"),
        lambda learner, discrete: learner.mpo.temperature_update == "exact",
        "with temperature_update: exact, which finds the temperature of each batch from epsilon",
    ),
    Idle(
        _mpo("epsilon_penalty"),
        lambda learner, discrete: not learner.mpo.action_penalization,
        "without action_penalization",
    ),
    Idle(
        _mpo("epsilon_stddev", "init_alpha_stddev"),
        lambda learner, discrete: learner.mpo.mstep == "single",
        "with mstep: single, whose one KL has epsilon_mean and init_alpha_mean",
    ),
    Idle(
        (*_mpo("epsilon_mean", "epsilon_stddev", "per_dim_constraining"), "learner.categorical.epsilon_policy"),
        lambda learner, discrete: learner.mpo.kl_form == "price",
        "with kl_form: price, under which the multipliers stay as they begin (init_alpha)",
    ),
    Idle(
        ("learner.return_horizon",),
        lambda learner, discrete: (learner.return_horizon or 0) >= learner.sequence_length,
        "from learner.sequence_length on, where every return is bootstrapped: lower the one or raise the other",
    ),
    Idle(
        ("learner.retrace_lambda",),
        lambda learner, discrete: learner.returns not in ("retrace", "td_lambda"),
        "unless learner.returns is retrace or td_lambda",
    ),
    Idle(
        ("learner.retrace_lambda",),
        lambda learner, discrete: learner.sequence_length == 1,
        "with sequence_length 1: every return is bootstrapped after one step",
    ),
    Idle(
        ("learner.retrace_lambda",),
        lambda learner, discrete: learner.return_horizon == 1,
        "with return_horizon 1: every return is bootstrapped after one step",
    ),
    Idle(
        ("learner.learning_rate_duals",),
        lambda learner, discrete: (
            learner.algorithm == "mpo"
            and learner.mpo.kl_form == "price"
            and learner.mpo.temperature_update != "learned"
        ),
        "with kl_form: price and a temperature that is not learned: no multiplier is left to learn",
    ),
    Idle(
        ("learner.critic.aggregate",),
        lambda learner, discrete: learner.critic.num_critics == 1,
        "with critic.num_critics 1",
    ),
    Idle(
        ("learner.critic.num_atoms", "learner.critic.value_bound"),
        lambda learner, discrete: learner.critic.head == "scalar",
        "with critic.head: scalar, which has no support",
    ),
    Idle(
        ("learner.learning_rate_end", "learner.learning_rate_end_critic"),
        lambda learner, discrete: learner.learning_rate_decay_steps is None,
        "while learning_rate_decay_steps is null: the rates are constant",
    ),
    Idle(
        ("learner.learning_rate_decay_steps",),
        lambda learner, discrete: learner.learning_rate_end == 1.0 and learner.learning_rate_end_critic == 1.0,
        "with learning_rate_end and learning_rate_end_critic 1: the rates are constant",
    ),
)


def objections(training: TrainingConfig, learner: LearnerConfig, num_actions: int | None) -> Iterator[str]:
    """What makes no sense in these settings, one sentence each with a way out.

    Args:
        num_actions: Number of discrete actions of the task; None if they are continuous.
    """
    yield from _no_learning(training, learner)
    yield from _no_bound(learner, num_actions)
    yield from _biased_values(learner)
    for key, why in idle_settings(training, learner, num_actions is not None).items():
        yield f"{key} has no effect {why}; remove it"


def idle_settings(training: TrainingConfig, learner: LearnerConfig, discrete: bool) -> dict[str, str]:
    """Settings at another value than their default that change nothing, and why."""
    given = {"training": training, "learner": learner}
    result: dict[str, str] = {}
    for key in differences({"training": TrainingConfig(), "learner": LearnerConfig()}, given):
        reasons = [rule.why for rule in IDLE if rule.covers(key) and rule.when(learner, discrete)]
        result |= {key: reasons[0]} if reasons else {}
    if training.environment_threads > 1 and training.environments == 1:
        result.setdefault("training.environment_threads", "with one environment: set training.environments")
    return result


def _no_learning(training: TrainingConfig, learner: LearnerConfig) -> Iterator[str]:
    if learner.algorithm == "ppo":
        return
    if training.warmup_steps >= training.total_steps:
        yield (
            f"nothing would be learnt: training.warmup_steps {training.warmup_steps} must be below "
            f"training.total_steps {training.total_steps}"
        )
    elif (training.total_steps - training.warmup_steps + 1) * training.updates_per_step < 1.0:
        yield (
            f"nothing would be learnt: training.updates_per_step {training.updates_per_step} makes no whole update in "
            f"the {training.total_steps - training.warmup_steps} steps after the warm-up"
        )
    if training.total_steps < learner.sequence_length:
        yield (
            f"nothing would be learnt: training.total_steps {training.total_steps} must be at least "
            f"learner.sequence_length {learner.sequence_length}"
        )
    if training.replay_capacity <= learner.sequence_length:
        yield (
            f"nothing would be learnt: training.replay_capacity {training.replay_capacity} must be above "
            f"learner.sequence_length {learner.sequence_length}, or no sequence fits the replay"
        )


def _biased_values(learner: LearnerConfig) -> Iterator[str]:
    critic, bound = learner.critic, learner.return_scale_bound
    if critic.head != "scalar" and bound is not None and bound > critic.largest_value:
        yield (
            f"learner.return_scale_bound {bound} is above {critic.largest_value:.4g}, the largest value that "
            f"{critic.num_atoms} atoms within +-{critic.value_bound} represent without bias: raise "
            "learner.critic.value_bound (or num_atoms)"
        )


def _no_bound(learner: LearnerConfig, num_actions: int | None) -> Iterator[str]:
    mpo = learner.mpo
    if learner.algorithm != "mpo" or mpo.temperature_update == "fixed" or mpo.variational == "parametric":
        return
    if num_actions is not None:
        bounds, count, what = {"learner.categorical.epsilon": learner.categorical.epsilon}, num_actions, "actions"
    else:
        bounds, count, what = {"learner.mpo.epsilon": mpo.epsilon}, mpo.num_samples, "learner.mpo.num_samples"
        if mpo.action_penalization:
            bounds["learner.mpo.epsilon_penalty"] = mpo.epsilon_penalty
    for key, bound in bounds.items():
        if bound >= math.log(count):
            yield (
                f"{key} {bound} bounds nothing: weights on {count} {what} differ from equal ones by at most "
                f"log {count} = {math.log(count):.2f} nats; set it lower"
            )
