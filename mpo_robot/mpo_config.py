"""Hyperparameters of MPO and of the learner. Values only; each field is explained where it is used most."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mpo_robot.baselines.config import DDPGConfig, EPGConfig, PPOConfig, SACConfig
from mpo_robot.categorical_config import CategoricalConfig
from mpo_robot.networks import CriticConfig, PolicyConfig

_HORIZON_S = 1.5  # 1 / (1 - discount) of the discount `auto`, in seconds
_AUTO_DISCOUNTS = 0.99, 0.995  # and its bounds


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


@dataclass(frozen=True)
class MPOConfig:
    """E-step and M-step.

    Attributes:
        num_samples: N, actions sampled per state from the target policy.
        epsilon: Bound on the E-step's KL(q || pi_target), nats.
        epsilon_mean: Bound on the mean's KL, nats; per dimension if `per_dim_constraining`.
        epsilon_stddev: Bound on the standard deviation's KL, nats; likewise.
        variational: `nonparametric` (an E-step with weights on the samples, then an M-step), or `parametric`: the
            online policy is improved by the gradient of its advantage under the bounds of the M-step, and there are no
            temperatures; what leaves [-1, 1] then costs its distance in units of the scaled return. Also for discrete
            actions, where the gradient is exact.
        parametric_estimator: Of that gradient from sampled actions: `importance`, with the target policy's samples
            that the critic uses too, or `likelihood_ratio` (the paper's algorithm 3), with samples of the online policy
            that the target critic values as well.
        mstep: `decoupled` bounds for mean and covariance, or a `single` KL of the whole Gaussian, which then has the
            multiplier and bound of the mean.
        kl_form: `bound` with learned multipliers, or `price`: multipliers that stay at their initial values (the
            maximum-a-posteriori form with a fixed lambda).
        per_dim_constraining: One bound and multiplier per action dimension, or one for their sum.
        action_penalization: Add the out-of-bounds objective that keeps the policy's mass inside [-1, 1].
        epsilon_penalty: E-step bound of that objective, nats.
        center_weights: Replace the sample moments of equal weights by their exact values, a control variate: with few
            samples and weights that are nearly equal most of the M-step's noise is theirs.
        temperature_update: How the E-step finds its temperature. `learned`: one gradient step on the dual per update;
            `exact`: the dual's minimum for each batch; `fixed`: stays `init_temperature` (the soft form, a regulariser
            instead of a bound; `epsilon` then has no effect).
        init_temperature: Initial temperatures (values, not raw parameters).
        init_alpha_mean: Initial multiplier of the mean's KL.
        init_alpha_stddev: Initial multiplier of the standard deviation's KL.
    """

    num_samples: int = 6
    epsilon: float = 0.1
    epsilon_mean: float = 0.01
    epsilon_stddev: float = 5e-6
    variational: str = "nonparametric"
    parametric_estimator: str = "importance"
    mstep: str = "decoupled"
    kl_form: str = "bound"
    per_dim_constraining: bool = True
    action_penalization: bool = True
    epsilon_penalty: float = 0.001
    center_weights: bool = True
    temperature_update: str = "learned"
    init_temperature: float = 1.0
    init_alpha_mean: float = 1.0
    init_alpha_stddev: float = 10.0

    def __post_init__(self) -> None:
        if self.num_samples < 2:
            raise ValueError(
                f"num_samples must be at least 2 (the weights of one sample carry nothing), got {self.num_samples}"
            )
        _one_of("variational", self.variational, ("nonparametric", "parametric"))
        _one_of("parametric_estimator", self.parametric_estimator, ("importance", "likelihood_ratio"))
        if self.variational == "parametric" and (self.mstep, self.kl_form) != ("decoupled", "bound"):
            raise ValueError("variational: parametric needs mstep: decoupled and kl_form: bound")
        _one_of("mstep", self.mstep, ("decoupled", "single"))
        _one_of("kl_form", self.kl_form, ("bound", "price"))
        _one_of("temperature_update", self.temperature_update, ("learned", "exact", "fixed"))
        for name in (
            "epsilon",
            "epsilon_mean",
            "epsilon_stddev",
            "epsilon_penalty",
            "init_temperature",
            "init_alpha_mean",
            "init_alpha_stddev",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


@dataclass(frozen=True)
class LearnerConfig:
    """Networks, returns, optimisers, target networks.

    Attributes:
        algorithm: What improves the policy: `mpo`, or a baseline on the same networks and data: `sac`, `ddpg`, `epg`
            (expected policy gradient); or `ppo`, by stable-baselines3.
        categorical: MPO for tasks with discrete actions; there `mpo` has no effect but for `temperature_update`,
            `kl_form` and `variational`.
        discount: Discount per action, which is several control steps with `environment.action_repeat`; `auto`: what
            looks 1.5 s ahead, at least 100 actions and at most 200 (`discount_at`). Too low, and gaining speed now
            outweighs the fall it ends in: with 0.99 and actions of 8 ms Hopper ran itself over.
        returns: Estimator of the critic's targets: `retrace`, or without importance ratios `td_lambda` and `n_step`
            (biased off-policy), or `td_zero`.
        retrace_lambda: Lambda of `retrace` and `td_lambda`; 0 gives one-step expected targets.
        return_horizon: n of `n_step`; for `retrace` the number of steps after which a return is bootstrapped. null:
            as many as the sequence holds.
        sequence_length: Steps per sampled sequence.
        batch_sequences: Sequences per update; `batch_sequences * sequence_length` transitions.
        learning_rate_policy: Adam's step size for the policy.
        learning_rate_critic: Adam's step size for the critics.
        learning_rate_duals: Adam's step size for temperatures and multipliers.
        learning_rate_decay_steps: Learner steps over which the rates of policy and critic fall linearly to
            `learning_rate_end` and `learning_rate_end_critic` times their value, and stay there: `auto` for all of the
            training's (of the new total where a run is continued with one), null to keep them constant.
        learning_rate_end: That factor of the policy's rate, in (0, 1].
        learning_rate_end_critic: That factor of the critics' rate, in (0, 1]; 1 keeps it constant.
        grad_clip_norm: Bound on the gradient norm of the policy and of the critics, each; null for no bound.
        target_update_period: Learner steps between hard copies to the target networks, or null.
        target_update_rate: Polyak rate per learner step, or null. Exactly one of the two is set.
        policy_average_updates: The policy that is evaluated, exported and served has the parameters of the online one,
            averaged over about so many updates (exponentially), or a tenth of those made so far where that is less (in
            the training, or since `learn` took over); null: it is the online one. What is learnt does not depend on
            it: the online policy collects.
        policy_update_period: Every how many updates of the critics the policy and the dual variables are updated too.
            In between `mpo` values states by two sampled actions, which takes 40 % less time. A period of 1 with
            half of `training.updates_per_step` updates the policy as often, and the critics half as often.
        compile: Compile the losses with `torch.compile`: about a fifth less time per update at the default size, for
            a minute at the start. Needs a C++ compiler. Only `mpo` on continuous actions does it.
        return_scale_bound: The critic learns rewards divided by a running scale, such that no sum of the collected
            rewards of an episode so far, older ones discounted more, is larger than this bound; values are about as
            large. null to learn plain rewards.
    """

    algorithm: str = "mpo"
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    mpo: MPOConfig = field(default_factory=MPOConfig)
    sac: SACConfig = field(default_factory=SACConfig)
    ddpg: DDPGConfig = field(default_factory=DDPGConfig)
    epg: EPGConfig = field(default_factory=EPGConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    categorical: CategoricalConfig = field(default_factory=CategoricalConfig)
    discount: float | Literal["auto"] = "auto"
    returns: str = "retrace"
    retrace_lambda: float = 0.95
    return_horizon: int | None = None
    sequence_length: int = 8
    batch_sequences: int = 16
    learning_rate_policy: float = 1e-3
    learning_rate_critic: float = 1e-3
    learning_rate_duals: float = 1e-2
    learning_rate_decay_steps: int | Literal["auto"] | None = "auto"
    learning_rate_end: float = 0.1
    learning_rate_end_critic: float = 1.0
    grad_clip_norm: float | None = 40.0
    target_update_period: int | None = None
    target_update_rate: float | None = 0.02
    return_scale_bound: float | None = 5.0
    policy_average_updates: int | None = 1000
    policy_update_period: int = 2
    compile: bool = False

    def __post_init__(self) -> None:
        _one_of("algorithm", self.algorithm, ("mpo", "sac", "ddpg", "epg", "ppo"))
        if self.algorithm != "mpo" and self.policy.covariance != "diagonal":
            raise ValueError(f"policy.covariance: {self.policy.covariance} is for mpo, set it to diagonal")
        if self.algorithm != "mpo" and self.critic.head == "c51":
            raise ValueError("critic.head: c51 is for mpo, set it to scalar or hl_gauss")
        if (self.target_update_period is None) == (self.target_update_rate is None):
            raise ValueError("set exactly one of target_update_period and target_update_rate, and the other to null")
        _one_of("returns", self.returns, ("retrace", "td_lambda", "n_step", "td_zero"))
        if self.return_horizon is not None and self.return_horizon < 1:
            raise ValueError(f"return_horizon must be at least 1 or null, got {self.return_horizon}")
        if self.return_horizon is not None and self.returns not in ("retrace", "n_step"):
            raise ValueError(f"return_horizon has no effect with returns: {self.returns}; set it to null")
        if self.critic.head == "c51" and self.returns not in ("td_zero", "n_step"):
            raise ValueError(
                f"a c51 critic cannot learn from returns: {self.returns}, whose corrections of the value are no "
                "distribution; use td_zero or n_step, or head: hl_gauss, which takes any scalar target"
            )
        if self.compile and self.mpo.temperature_update == "exact":
            raise ValueError(
                "compile cannot make one graph of temperature_update: exact, whose iterations end when they are exact "
                "enough; use a learned or fixed temperature, or compile: false"
            )
        if self.critic.head != "scalar" and self.return_scale_bound is None:
            raise ValueError(
                f"head: {self.critic.head} needs return_scale_bound, or its support of +-{self.critic.value_bound} has "
                "no relation to the returns"
            )
        if self.critic.head != "scalar" and (self.return_scale_bound or 0.0) > self.critic.value_bound:
            raise ValueError(
                f"return_scale_bound {self.return_scale_bound} is above the critic's value_bound "
                f"{self.critic.value_bound}: returns beyond the support would be cut off"
            )
        if not 0.0 <= self.retrace_lambda <= 1.0:
            raise ValueError(f"retrace_lambda must be in [0, 1], got {self.retrace_lambda}")
        if self.sequence_length < 1 or self.batch_sequences < 1:
            raise ValueError("sequence_length and batch_sequences must be at least 1")
        if isinstance(self.learning_rate_decay_steps, int) and self.learning_rate_decay_steps < 1:
            raise ValueError(
                f"learning_rate_decay_steps must be at least 1, auto or null, got {self.learning_rate_decay_steps}"
            )
        if self.discount != "auto" and not 0.0 < self.discount <= 1.0:
            raise ValueError(f"discount must be in (0, 1] or auto, got {self.discount}")
        for name in ("learning_rate_end", "learning_rate_end_critic"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in (0, 1], got {getattr(self, name)}")
        if self.target_update_period is not None and self.target_update_period < 1:
            raise ValueError(f"target_update_period must be at least 1, got {self.target_update_period}")
        if self.target_update_rate is not None and not 0.0 < self.target_update_rate <= 1.0:
            raise ValueError(f"target_update_rate must be in (0, 1], got {self.target_update_rate}")
        if self.policy_average_updates is not None and self.policy_average_updates < 1:
            raise ValueError(f"policy_average_updates must be at least 1 or null, got {self.policy_average_updates}")
        if self.policy_update_period < 1:
            raise ValueError(f"policy_update_period must be at least 1, got {self.policy_update_period}")
        if self.grad_clip_norm is not None and not self.grad_clip_norm > 0:
            raise ValueError(f"grad_clip_norm must be positive, or null for no bound; got {self.grad_clip_norm}")
        for name in ("learning_rate_policy", "learning_rate_critic", "learning_rate_duals"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def discount_at(self, control_dt: float | None = None) -> float:
        """The discount of a task whose actions last `control_dt` seconds.

        `auto` is 1 - control_dt / 1.5 s, at least 0.99 and at most 0.995: what has to be foreseen is so many seconds
        away, not so many actions; but less than 100 actions tell too little, and more than 200 are too much to learn
        (docs/experiments.md, "The discount has to look as far").

        Raises:
            ValueError: it is `auto`, and no period is given.
        """
        if self.discount != "auto":
            return self.discount
        if control_dt is None:
            raise ValueError("discount: auto needs the control period of a task; give a number")
        least, most = _AUTO_DISCOUNTS
        return min(most, max(least, 1.0 - control_dt / _HORIZON_S))
