"""What the baselines share beyond `ActorCritic`: networks, targets of the critic, its slope, metrics.

Axes: B sequences, L steps, S = B * (L + 1) states, N sampled actions, A action size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mpo_robot.actor_critic import ActorCritic, TensorBatch
from mpo_robot.losses.returns import off_policy_returns
from mpo_robot.mpo_config import LearnerConfig
from mpo_robot.networks import CriticEnsemble
from mpo_robot.return_estimator import configured_traces


class Targets(NamedTuple):
    """Targets of the critic, without gradient."""

    returns: Tensor  # [B, L]
    coefficients: Tensor  # [B, L]


class ValueMetrics(NamedTuple):
    """Metrics that every baseline has, in units of reward."""

    q_mean: float
    q_min: float
    q_max: float
    return_target_mean: float
    trace_coefficient_mean: float


class Baseline(ActorCritic):
    """An actor-critic with a critic ensemble and any policy network.

    Args:
        make_policy: Builds the policy; called with torch's random state set by `seed`.
        observation_size: O.
        action_size: A.
        config: As for every learner.
        duals: Temperatures, or a module without parameters.
        seed: Seeds networks and sampling.
    """

    def __init__(
        self,
        make_policy: Callable[[], nn.Module],
        observation_size: int,
        action_size: int,
        config: LearnerConfig,
        duals: nn.Module,
        seed: int,
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            policy = make_policy()
            self.online_critic = CriticEnsemble(observation_size, action_size, config.critic)
        super().__init__(config, policy, self.online_critic, duals, seed)
        self.online_policy = policy
        self.target_policy = self._target_modules["policy"]
        target_critic = self._target_modules["critic"]
        assert isinstance(target_critic, CriticEnsemble)
        self.target_critic = target_critic

    def noise(self, *shape: int) -> Tensor:
        """Standard-normal noise of the learner's own generator."""
        return torch.randn(*shape, generator=self.generator)

    @torch.no_grad()
    def target_values(self, batch: TensorBatch, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Target critic's values [N, S] of actions [N, S, A], and [B, L] of the actions taken.

        The latter are zeros where the configured returns do not use them.
        """
        observation = batch.observation.flatten(0, 1)
        sequences, steps = batch.reward.shape
        if self.config.returns != "retrace":
            values = self.target_critic.target_values(observation, actions.clamp(-1.0, 1.0))
            return values, torch.zeros_like(batch.reward)
        taken = functional.pad(batch.action, (0, 0, 0, 1)).flatten(0, 1).unsqueeze(0)  # its bootstrap rows are not used
        values = self.target_critic.target_values(observation, torch.cat([actions, taken]).clamp(-1.0, 1.0))
        return values[:-1], values[-1].view(sequences, steps + 1)[:, :-1]

    @torch.no_grad()
    def targets(
        self, batch: TensorBatch, log_probs: Tensor, value: Tensor, q_taken: Tensor, reward_scale: float
    ) -> Targets:
        """Returns of the configured estimator.

        Args:
            batch: The batch.
            log_probs: [B, L] log-probability of the actions taken under the policy that is evaluated, nats.
            value: [S] expected value of that policy in every state.
            q_taken: [B, L] value of the actions taken.
            reward_scale: Rewards are divided by it.
        """
        sequences, steps = batch.reward.shape
        next_value = value.view(sequences, steps + 1)[:, 1:]
        discount_t = self.config.discount * (1.0 - batch.terminated)
        traces = configured_traces(self.config, batch, log_probs, next_value, q_taken)
        returns = off_policy_returns(batch.reward / reward_scale, discount_t, next_value, *traces)
        return Targets(returns, traces.coefficients)

    def critic_loss(self, batch: TensorBatch, returns: Tensor) -> Tensor:
        """Mean loss of all critics against the targets over the rows that are transitions."""
        observation = batch.observation[:, :-1].flatten(0, 1)
        action = batch.action.clamp(-1.0, 1.0).flatten(0, 1)
        error = self.online_critic.error(observation, action, returns.flatten())  # [B * L]
        weights = batch.is_transition.flatten()
        return (weights * error).sum() / weights.sum().clamp(min=1.0)

    def slope(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Q [S] of the online critics (combined) and dQ/da [S, A]; the critics' own gradients stay as they are."""
        leaf = action.detach().requires_grad_()
        q_values = self.online_critic.combine(self.online_critic(observation, leaf))
        (slope,) = torch.autograd.grad(q_values.sum(), leaf)
        return q_values.detach(), slope

    @staticmethod
    def state_weights(batch: TensorBatch) -> Tensor:
        """[S] weights of the states in which a policy acts, sum 1."""
        weights = batch.policy_state.flatten()
        return weights / weights.sum()

    @staticmethod
    def before(values: Tensor, batch: TensorBatch) -> Tensor:
        """[S, ...] to [B, L, ...]: the states before each step."""
        sequences, steps = batch.reward.shape
        return values.unflatten(0, (sequences, steps + 1))[:, :-1]

    @staticmethod
    def value_metrics(batch: TensorBatch, q_values: Tensor, targets: Targets, reward_scale: float) -> ValueMetrics:
        """Summary of target values [N, S] and of the critic's targets."""
        rows = batch.is_transition / batch.is_transition.sum().clamp(min=1.0)
        return ValueMetrics(
            q_mean=float(q_values.mean()) * reward_scale,
            q_min=float(q_values.min()) * reward_scale,
            q_max=float(q_values.max()) * reward_scale,
            return_target_mean=float((targets.returns * rows).sum()) * reward_scale,
            trace_coefficient_mean=float((targets.coefficients * rows).sum()),
        )
