"""Soft actor-critic with a learned temperature (Haarnoja et al. 2018b).

The replay holds the squashed action and its density (docs/decisions/0015-baselines.md says why). As published with
`returns: td_zero`; the other estimators get the soft value E[Q - temperature log pi] of the next state as well.
Axes: B sequences, L steps, S = B * (L + 1) states, A action size.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from mpo_robot.acting import FloatArray, NumpyActor, SampledAction
from mpo_robot.actor_critic import TensorBatch
from mpo_robot.continuous import ContinuousActorCritic
from mpo_robot.duals import MIN_RAW_ALPHA, positive
from mpo_robot.losses.gaussian import Gaussian
from mpo_robot.losses.policy_gradient import entropy_temperature_loss, soft_policy_gradient
from mpo_robot.losses.squashed_gaussian import LARGEST_ACTION, squashed_log_prob, squashed_log_prob_of
from mpo_robot.mpo_config import LearnerConfig
from mpo_robot.networks import GaussianPolicy, inverse_softplus
from mpo_robot.replay import SequenceBatch
from mpo_robot.return_estimator import critic_targets


class EntropyTemperature(nn.Module):
    """One temperature, softplus(raw) + 1e-8, raw kept above a floor from which it can rise again."""

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.raw_temperature = nn.Parameter(torch.full((1,), inverse_softplus(initial)))

    @property
    def temperature(self) -> Tensor:
        """[1]."""
        return positive(self.raw_temperature)


class SquashedMean(nn.Module):
    """What is exported: the squashed action is no Gaussian, so there is nothing to sample from."""

    distribution = "none"

    def __init__(self, policy: GaussianPolicy) -> None:
        super().__init__()
        self.policy = policy

    def mean_and_stddev(self, observation: Tensor) -> Gaussian:
        """tanh of the mean, and the standard deviation carried through tanh to first order; each [S, A]."""
        mean, stddev = self.policy.mean_and_stddev(observation)
        action = mean.tanh()
        return Gaussian(action, stddev * (1.0 - action.square()))


class SquashedActor:
    """Acts with tanh of a Gaussian; actions, densities and evaluations are all in the squashed space."""

    def __init__(self, policy: GaussianPolicy) -> None:
        self._gaussian = NumpyActor(policy)

    def distribution(self, observation: FloatArray) -> tuple[FloatArray, FloatArray]:
        """tanh of the mean, and the standard deviation carried through tanh to first order; each [A]."""
        mean, stddev = self._gaussian.distribution(observation)
        action = np.tanh(mean)
        return action, stddev * (np.float32(1.0) - np.square(action))

    def sample(self, observation: FloatArray, noise: FloatArray, noise_scale: float = 1.0) -> SampledAction:
        """tanh(mean + stddev noise) and the log density of exactly the float32 numbers that are returned.

        `noise_scale` multiplies the stddev.
        """
        mean, stddev = self._gaussian.distribution(observation)
        stddev = stddev * np.float32(noise_scale)
        limit = np.float32(LARGEST_ACTION)
        action = np.clip(np.tanh(mean + stddev * noise), -limit, limit).astype(np.float32, copy=False)
        exact = action.astype(np.float64)
        standardized = (np.arctanh(exact) - mean) / stddev
        log_density = -0.5 * standardized**2 - np.log(stddev.astype(np.float64)) - 0.5 * np.log(2.0 * np.pi)
        return SampledAction(action, float((log_density - np.log1p(-(exact**2))).sum()))


class Metrics(NamedTuple):
    """Scalars of one update, by name in `metrics.csv`; values of returns and Q in units of reward."""

    loss_critic: float
    loss_policy: float
    loss_temperature: float
    temperature: float
    entropy: float
    stddev_mean: float
    q_mean: float
    q_min: float
    q_max: float
    return_target_mean: float
    trace_coefficient_mean: float


class SAC(ContinuousActorCritic):
    """Soft actor-critic. There is no target policy in it: the online one is evaluated."""

    metric_names = Metrics._fields
    online_policy: GaussianPolicy
    duals: EntropyTemperature

    def __init__(self, observation_size: int, action_size: int, config: LearnerConfig, seed: int) -> None:
        super().__init__(observation_size, action_size, config, seed)
        wanted = config.sac.target_entropy
        self.target_entropy = -float(action_size) if wanted is None else wanted

    @staticmethod
    def make_policy(observation_size: int, action_size: int, config: LearnerConfig) -> GaussianPolicy:
        """An untrained policy; tanh comes after the noise here, so its mean has none."""
        return GaussianPolicy(observation_size, action_size, replace(config.policy, tanh_mean=False))

    @staticmethod
    def make_duals(action_size: int, config: LearnerConfig) -> EntropyTemperature:
        """The temperature."""
        return EntropyTemperature(config.sac.init_temperature)

    def make_actor(self, policy: GaussianPolicy) -> SquashedActor:
        """The squashed Gaussian in NumPy."""
        return SquashedActor(policy)

    def exported_policy(self) -> SquashedMean:
        """tanh of the mean, as in evaluations."""
        return SquashedMean(cast(GaussianPolicy, self.averaged_policy))

    def project(self) -> None:
        """Keep the raw temperature above its floor."""
        with torch.no_grad():
            self.duals.raw_temperature.clamp_(min=MIN_RAW_ALPHA)

    def backward(self, batch: SequenceBatch, reward_scale: float = 1.0, want_metrics: bool = False) -> Metrics | None:
        """First half of `update`: all losses, and their gradients in the parameters' `grad`."""
        tensors = TensorBatch.of(batch, reward_scale)
        weights = self.state_weights(tensors)
        observation = tensors.observation.flatten(0, 1)
        policy = self.online_policy(observation)
        pre_squash = policy.mean + policy.stddev * self.noise(*policy.mean.shape)
        action, log_prob = pre_squash.tanh(), squashed_log_prob(policy.mean, policy.stddev, pre_squash)
        temperature = self.duals.temperature
        # One action per state serves the critic's target and the policy.
        target_q, q_taken = self.target_values(tensors, action.detach().unsqueeze(0))
        value = target_q[0] - temperature.detach() * log_prob.detach()
        mean, stddev = (tensors.before(item.detach()) for item in policy)
        taken_log_prob = squashed_log_prob_of(mean, stddev, tensors.action)
        targets = critic_targets(self.config, tensors, taken_log_prob, value, q_taken)
        loss_critic = self.critic_loss(tensors, targets.returns)
        q_values, slope = self.slope(observation, action)
        policy_loss = soft_policy_gradient(action, log_prob, q_values, slope, temperature, weights)
        loss_temperature = entropy_temperature_loss(temperature, log_prob, self.target_entropy, weights)
        loss = loss_critic + policy_loss.loss + loss_temperature
        self.require_finite(loss)
        loss.backward()
        if not want_metrics:
            return None
        return Metrics(
            loss_critic=float(loss_critic.detach()),
            loss_policy=-float(policy_loss.objective),
            loss_temperature=float(loss_temperature.detach()),
            temperature=float(temperature.detach()),
            entropy=-float(weights @ log_prob.detach()),
            stddev_mean=float(policy.stddev.detach().mean()),
            **self.value_metrics(tensors, target_q, *targets, reward_scale)._asdict(),
        )
