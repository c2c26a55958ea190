"""The MPO learner: one update from one batch of sequences.

Axes: B sequences, L steps, S = B * (L + 1) states, N sampled actions, A action size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mpo_robot.acting import NumpyActor
from mpo_robot.actor_critic import TensorBatch
from mpo_robot.continuous import ContinuousActorCritic
from mpo_robot.duals import Duals
from mpo_robot.losses.distributional import n_step_bootstrap, project_pmf
from mpo_robot.losses.estep import EStep, nonparametric_estep, out_of_bounds_cost
from mpo_robot.losses.exact_dual import exact_temperature
from mpo_robot.losses.families import FAMILIES, detached, weighted_moments
from mpo_robot.losses.mstep import MStep
from mpo_robot.mpo_config import LearnerConfig
from mpo_robot.networks import GaussianPolicy
from mpo_robot.policy_update import parametric_update, policy_mstep
from mpo_robot.replay import SequenceBatch
from mpo_robot.return_estimator import carries_trace, critic_targets, discounts, return_horizon

CRITIC_SAMPLES = 2  # actions per state in an update of the critics alone


class TargetPass(NamedTuple):
    """What the target networks say about a batch; no gradient.

    The same sampled actions serve the E-step and E_pi Q of the Retrace target.
    """

    policy: Any  # `Gaussian` or `FullGaussian` of S states
    noise: Tensor  # [N, S, A]
    actions: Tensor  # [N, S, A], not clipped
    q_values: Tensor  # [N, S]
    returns: Tensor  # [B, L]
    coefficients: Tensor  # [B, L]
    critic_target: Tensor  # the returns, or [B, L, K] distributions for a C51 critic


class Losses(NamedTuple):
    """Losses of one update, and what they are made of."""

    total: Tensor
    critic: Tensor
    mstep: MStep
    estep: EStep
    online: Any  # the online policy's distributions
    target: TargetPass
    state_weights: Tensor  # [S], sum 1


class Metrics(NamedTuple):
    """Scalars of one update, by name in `metrics.csv`. Values of returns and Q are in units of reward."""

    loss_critic: float
    loss_policy_mean: float
    loss_policy_stddev: float
    loss_penalty: float
    temperature: float
    penalty_temperature: float
    kl_q_rel: float
    kl_mean_rel: float
    kl_mean_rel_max: float
    kl_stddev_rel: float
    alpha_mean: float
    alpha_stddev: float
    entropy: float
    stddev_mean: float
    q_mean: float
    q_min: float
    q_max: float
    return_target_mean: float
    trace_coefficient_mean: float
    out_of_bounds_mean: float


class Learner(ContinuousActorCritic):
    """MPO. Inputs are batches with observations already normalised and rewards in reward units."""

    metric_names = Metrics._fields
    online_policy: GaussianPolicy
    target_policy: GaussianPolicy
    duals: Duals

    def __init__(self, observation_size: int, action_size: int, config: LearnerConfig, seed: int) -> None:
        super().__init__(observation_size, action_size, config, seed)
        self._family = FAMILIES[config.policy.covariance]
        self._losses, self._critic_alone = self.losses, self.critic_alone
        if config.compile:
            self._losses = torch.compile(self.losses, dynamic=False, fullgraph=True)
            self._critic_alone = torch.compile(self.critic_alone, dynamic=False, fullgraph=True)

    @staticmethod
    def make_duals(action_size: int, config: LearnerConfig) -> Duals:
        """Temperatures and multipliers."""
        return Duals(action_size, config.mpo)

    def make_actor(self, policy: GaussianPolicy) -> NumpyActor:
        """The Gaussian in NumPy."""
        return NumpyActor(policy)

    def project(self) -> None:
        """Keep the dual variables in their range, and a fixed temperature what the settings say."""
        self.duals.clamp_()
        if self.config.mpo.temperature_update == "fixed":  # a resumed run may have learned it before
            self.duals.set_temperatures_(torch.full((2,), self.config.mpo.init_temperature))

    def backward(self, batch: SequenceBatch, reward_scale: float = 1.0, want_metrics: bool = False) -> Metrics | None:
        """First half of `update`: all losses, and their gradients in the parameters' `grad`."""
        tensors = TensorBatch.of(batch, reward_scale)
        noise = self._noise(tensors)
        if not self.improves_policy:
            loss = self._critic_alone(tensors, noise[:CRITIC_SAMPLES])
            self.require_finite(loss)
            loss.backward()
            return self._metrics(self._losses(tensors, noise), tensors, reward_scale) if want_metrics else None
        losses = self._losses(tensors, noise)
        self.require_finite(losses.total)
        losses.total.backward()
        return self._metrics(losses, tensors, reward_scale) if want_metrics else None

    def _noise(self, batch: TensorBatch) -> Tensor:
        """Standard-normal noise [N, S, A] of the sampled actions."""
        return self.noise(self.config.mpo.num_samples, batch.policy_state.numel(), batch.action.shape[-1])

    def losses(self, batch: TensorBatch, noise: Tensor) -> Losses:
        """Everything of one update that is a function of tensors: one graph for `torch.compile`.

        Args:
            batch: Normalised observations, rewards in the critic's unit.
            noise: [N, S, A] behind the sampled actions.
        """
        target = self.target_pass(batch, noise)
        loss_critic = self.critic_loss(batch, target.critic_target)
        state_weights = self.state_weights(batch)
        observation = batch.observation.flatten(0, 1)
        online = self.online_policy(observation)
        if self.config.mpo.variational == "parametric":
            mstep, loss_duals, estep = self._parametric_improvement(observation, online, target, state_weights)
        else:
            mstep, loss_duals, estep = self._expectation_maximization(online, target, state_weights)
        loss_duals = loss_duals + mstep.penalty_mean.loss_alpha + mstep.penalty_stddev.loss_alpha
        loss_penalty = mstep.penalty_mean.loss_kl + mstep.penalty_stddev.loss_kl
        total = loss_critic + mstep.loss_policy_mean + mstep.loss_policy_stddev + loss_penalty + loss_duals
        return Losses(total, loss_critic, mstep, estep, online, target, state_weights)

    def critic_alone(self, batch: TensorBatch, noise: Tensor) -> Tensor:
        """The critics' part of `losses`; states are valued by as many actions as there is noise for."""
        return self.critic_loss(batch, self.target_pass(batch, noise).critic_target)

    def _expectation_maximization(
        self, online: Any, target: TargetPass, state_weights: Tensor
    ) -> tuple[MStep, Tensor, EStep]:
        """M-step, sum of the temperatures' dual losses, and E-step of the task objective."""
        mpo, duals = self.config.mpo, self.duals
        cost = out_of_bounds_cost(target.actions) if mpo.action_penalization else None
        temperature, penalty_temperature = self._temperatures(target.q_values, cost, state_weights)
        estep = nonparametric_estep(target.q_values, temperature, mpo.epsilon, state_weights)
        weights, objectives, loss_duals = estep.normalized_weights, 1.0, estep.loss_temperature
        if cost is not None:
            penalty = nonparametric_estep(cost, penalty_temperature, mpo.epsilon_penalty, state_weights)
            # A second objective with weights that sum to 1 of their own: the likelihood terms weigh 2 in total.
            weights, objectives = weights + penalty.normalized_weights, 2.0
            loss_duals = loss_duals + penalty.loss_temperature
        moments = weighted_moments(self._family, weights, target.noise, objectives, mpo.center_weights)
        mstep = policy_mstep(self._family, online, target.policy, moments, duals, mpo, state_weights)
        return mstep, loss_duals, estep

    def _parametric_improvement(
        self, observation: Tensor, online: Any, target: TargetPass, state_weights: Tensor
    ) -> tuple[MStep, Tensor, EStep]:
        """As `_expectation_maximization`, for an online policy that is itself the variational distribution."""
        mpo = self.config.mpo
        policy, actions, values = target.policy, target.actions, target.q_values
        if mpo.parametric_estimator == "likelihood_ratio":
            policy = detached(online)
            actions = self._family.sample(policy, target.noise)
            values = self.target_critic.target_values(observation, actions.clamp(-1.0, 1.0))
        if mpo.action_penalization:
            values = values + out_of_bounds_cost(actions)
        sample = (policy, target.noise, values)
        mstep = parametric_update(self._family, online, target.policy, *sample, self.duals, mpo, state_weights)
        no_estep = EStep(torch.full_like(values, 1.0 / len(values)), values.new_zeros(()))
        return mstep, no_estep.loss_temperature, no_estep

    def _temperatures(self, q_values: Tensor, cost: Tensor | None, state_weights: Tensor) -> tuple[Tensor, Tensor]:
        """Temperatures of the task objective and of the penalty, [1]; only learned ones take part in the dual loss."""
        mpo, duals = self.config.mpo, self.duals
        if mpo.temperature_update == "exact":
            values = q_values.unsqueeze(0) if cost is None else torch.stack([q_values, cost])
            bounds = torch.tensor([mpo.epsilon, mpo.epsilon_penalty])[: len(values)]
            exact = exact_temperature(values, bounds, state_weights)
            if self.improves_policy:  # for metrics, and for whoever learns it from here on
                duals.set_temperatures_(exact)
            return exact[:1], exact[1:]
        if mpo.temperature_update != "learned":
            return duals.temperature.detach(), duals.penalty_temperature.detach()
        return duals.temperature, duals.penalty_temperature

    @torch.no_grad()
    def target_pass(self, batch: TensorBatch, noise: Tensor) -> TargetPass:
        """Sample actions, value them, and form the critic's targets. Arguments as in `losses`."""
        observation = batch.observation.flatten(0, 1)
        policy = self.target_policy(observation)
        actions = self._family.sample(policy, noise)
        critic_target = None
        if self.config.critic.head == "c51":  # never with retrace, which alone needs the value of the action taken
            q_values, *distribution = self.target_critic.target_distribution(observation, actions.clamp(-1.0, 1.0))
            q_taken, critic_target = torch.zeros_like(batch.reward), self._distribution_target(batch, *distribution)
        else:
            q_values, q_taken = self.target_values(batch, actions)
        before = type(policy)(*(batch.before(item) for item in policy))
        log_probs = self._family.log_prob(before, batch.action)
        targets = critic_targets(self.config, batch, log_probs, q_values.mean(dim=0), q_taken)
        critic_target = targets.returns if critic_target is None else critic_target
        return TargetPass(policy, noise, actions, q_values, *targets, critic_target)

    def _distribution_target(self, batch: TensorBatch, pmf: Tensor, atoms: Tensor) -> Tensor:
        """Distributions [B, L, K] that a C51 critic learns, from those of all states, [S, K], on `atoms`."""
        horizon = return_horizon(self.config, batch.reward.shape[1])
        bootstrap = n_step_bootstrap(batch.reward, discounts(self.config, batch), carries_trace(batch), horizon)
        index = bootstrap.step.unsqueeze(-1).expand(-1, -1, pmf.shape[-1])
        return project_pmf(batch.after(pmf).gather(1, index), bootstrap.reward, bootstrap.discount, atoms)

    @torch.no_grad()
    def _metrics(self, losses: Losses, batch: TensorBatch, reward_scale: float) -> Metrics:
        mpo, mstep, target, online = self.config.mpo, losses.mstep, losses.target, losses.online
        kl_mean = mstep.penalty_mean.kl / mpo.epsilon_mean
        kl_q = float(losses.state_weights @ losses.estep.kl_nonparametric)
        outside = (target.actions.abs() > 1.0).any(dim=-1)
        return Metrics(
            loss_critic=float(losses.critic),
            loss_policy_mean=float(mstep.loss_policy_mean),
            loss_policy_stddev=float(mstep.loss_policy_stddev),
            loss_penalty=float(mstep.penalty_mean.loss_kl + mstep.penalty_stddev.loss_kl),
            temperature=float(self.duals.temperature),
            penalty_temperature=float(self.duals.penalty_temperature),
            kl_q_rel=kl_q / mpo.epsilon,
            kl_mean_rel=float(kl_mean.mean()),
            kl_mean_rel_max=float(kl_mean.max()),
            kl_stddev_rel=float((mstep.penalty_stddev.kl / mpo.epsilon_stddev).mean()),
            alpha_mean=float(self.duals.alpha_mean.mean()),
            alpha_stddev=float(self.duals.alpha_stddev.mean()),
            entropy=float(self._family.entropy(online).mean()),
            stddev_mean=float(self._family.stddev(online).mean()),
            out_of_bounds_mean=float(outside.float().mean()),
            **self.value_metrics(batch, target.q_values, target.returns, target.coefficients, reward_scale)._asdict(),
        )
