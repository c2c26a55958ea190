"""Deep deterministic policy gradient (Lillicrap et al. 2016) with fixed Gaussian exploration noise.

As published with `returns: td_zero` (or `n_step`): the target is the target critic's value of the target policy's
action. With `returns: retrace` the exploring policy N(target policy's action, noise_stddev^2) is evaluated instead: a
deterministic policy has no importance ratios. Axes: B sequences, L steps, S = B * (L + 1) states, N sampled actions,
A action size.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mpo_robot.acting import FloatArray, NumpyActor, run_layers
from mpo_robot.actor_critic import TensorBatch
from mpo_robot.continuous import ContinuousActorCritic
from mpo_robot.losses.gaussian import Gaussian, log_prob
from mpo_robot.losses.policy_gradient import deterministic_policy_gradient
from mpo_robot.mpo_config import LearnerConfig
from mpo_robot.networks import PolicyConfig, hidden_layers
from mpo_robot.replay import SequenceBatch
from mpo_robot.return_estimator import critic_targets


class DeterministicPolicy(nn.Module):
    """tanh of a network, and the constant standard deviation of the noise that exploration adds."""

    def __init__(self, observation_size: int, action_size: int, config: PolicyConfig, noise_stddev: float) -> None:
        super().__init__()
        self.config = config
        self.action_size = action_size
        self.noise_stddev = noise_stddev
        self.torso = nn.Sequential(*hidden_layers(observation_size, config.hidden_sizes, config.layer_norm))
        self.head = nn.Linear(config.hidden_sizes[-1], action_size)
        with torch.no_grad():
            self.head.weight.mul_(0.01)
            self.head.bias.zero_()

    def forward(self, observation: Tensor) -> Gaussian:
        """Action and standard deviation of the noise, each [S, A], of a normalised observation [S, O]."""
        action = self.head(self.torso(observation)).tanh()
        return Gaussian(action, torch.full_like(action, self.noise_stddev))

    mean_and_stddev = forward


class NoisyActor(NumpyActor):
    """The deterministic action plus Gaussian noise of one standard deviation; clipped at the environment only."""

    def __init__(self, policy: DeterministicPolicy) -> None:
        super().__init__(policy)  # type: ignore[arg-type]  # the same layers and another head
        self._stddev = np.full(policy.action_size, policy.noise_stddev, np.float32)

    def _parameters(self, observation: FloatArray) -> tuple[FloatArray, FloatArray]:
        output = self._head_weight @ run_layers(self._layers, observation) + self._head_bias
        return np.tanh(output), self._stddev


class Metrics(NamedTuple):
    """Scalars of one update, by name in `metrics.csv`; values of returns and Q in units of reward."""

    loss_critic: float
    loss_policy: float
    saturated_mean: float  # share of action components within 1 % of a bound
    q_mean: float
    q_min: float
    q_max: float
    return_target_mean: float
    trace_coefficient_mean: float


class DDPG(ContinuousActorCritic):
    """Deterministic policy gradient through the online critics (their minimum or mean, `critic.aggregate`)."""

    metric_names = Metrics._fields
    online_policy: DeterministicPolicy

    @staticmethod
    def make_policy(observation_size: int, action_size: int, config: LearnerConfig) -> DeterministicPolicy:
        """An untrained policy."""
        return DeterministicPolicy(observation_size, action_size, config.policy, config.ddpg.noise_stddev)

    def make_actor(self, policy: DeterministicPolicy) -> NoisyActor:
        """Policy and noise in NumPy."""
        return NoisyActor(policy)

    def backward(self, batch: SequenceBatch, reward_scale: float = 1.0, want_metrics: bool = False) -> Metrics | None:
        """First half of `update`: all losses, and their gradients in the parameters' `grad`."""
        tensors = TensorBatch.of(batch, reward_scale)
        observation = tensors.observation.flatten(0, 1)
        with torch.no_grad():
            target = self.target_policy(observation)
            actions = target.mean.unsqueeze(0)
            if self.config.returns == "retrace":
                actions = actions + target.stddev * self.noise(self.config.ddpg.num_samples, *target.mean.shape)
            q_target, q_taken = self.target_values(tensors, actions)
            mean, stddev = (tensors.before(item) for item in target)
            targets = critic_targets(
                self.config, tensors, log_prob(mean, stddev, tensors.action), q_target.mean(dim=0), q_taken
            )
        loss_critic = self.critic_loss(tensors, targets.returns)
        action = self.online_policy(observation).mean
        q_values, slope = self.slope(observation, action)
        policy = deterministic_policy_gradient(action, q_values, slope, self.state_weights(tensors))
        loss = loss_critic + policy.loss
        self.require_finite(loss)
        loss.backward()
        if not want_metrics:
            return None
        return Metrics(
            loss_critic=float(loss_critic.detach()),
            loss_policy=-float(policy.objective),
            saturated_mean=float((action.detach().abs() > 0.99).float().mean()),
            **self.value_metrics(tensors, q_target, *targets, reward_scale)._asdict(),
        )
