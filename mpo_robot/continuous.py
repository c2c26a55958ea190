"""`ContinuousActorCritic`: what the learners of continuous actions share beyond `ActorCritic`, MPO and the baselines.

Axes: B sequences, L steps, S = B * (L + 1) states, N sampled actions, A action size.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mpo_robot.actor_critic import ActorCritic, TensorBatch
from mpo_robot.mpo_config import LearnerConfig
from mpo_robot.networks import CriticEnsemble, GaussianPolicy


class ContinuousActorCritic(ActorCritic):
    """An actor-critic with a critic ensemble; a Gaussian policy and no duals unless a subclass makes others.

    Args:
        observation_size: O.
        action_size: A.
        config: As for every learner.
        seed: Seeds networks and sampling.
    """

    duals: nn.Module

    def __init__(self, observation_size: int, action_size: int, config: LearnerConfig, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            policy = self.make_policy(observation_size, action_size, config)
            self.online_critic = CriticEnsemble(observation_size, action_size, config.critic)
        self.duals = self.make_duals(action_size, config)
        super().__init__(config, policy, self.online_critic, self.duals, seed)
        self.online_policy = policy
        self.target_policy = self._target_modules["policy"]
        self.target_critic = cast(CriticEnsemble, self._target_modules["critic"])

    @staticmethod
    def make_policy(observation_size: int, action_size: int, config: LearnerConfig) -> nn.Module:
        """An untrained policy."""
        return GaussianPolicy(observation_size, action_size, config.policy)

    @staticmethod
    def make_duals(action_size: int, config: LearnerConfig) -> nn.Module:
        """Temperatures and multipliers; none here."""
        return nn.Module()

    def noise(self, *shape: int) -> Tensor:
        """Standard-normal noise of the learner's own generator."""
        return torch.randn(*shape, generator=self.generator)

    @torch.no_grad()
    def target_values(self, batch: TensorBatch, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Target critic's values [N, S] of actions [N, S, A], and [B, L] of the actions taken.

        The latter are zeros where the configured returns do not use them.
        """
        observation = batch.observation.flatten(0, 1)
        if self.config.returns != "retrace":
            values = self.target_critic.target_values(observation, actions.clamp(-1.0, 1.0))
            return values, torch.zeros_like(batch.reward)
        taken = functional.pad(batch.action, (0, 0, 0, 1)).flatten(0, 1).unsqueeze(0)  # its bootstrap rows are not used
        values = self.target_critic.target_values(observation, torch.cat([actions, taken]).clamp(-1.0, 1.0))
        return values[:-1], batch.before(values[-1])

    def critic_loss(self, batch: TensorBatch, target: Tensor) -> Tensor:
        """Mean loss of all critics over the rows that are transitions; targets [B, L], or [B, L, K] for C51."""
        observation = batch.observation[:, :-1].flatten(0, 1)
        action = batch.action.clamp(-1.0, 1.0).flatten(0, 1)
        error = self.online_critic.error(observation, action, target.flatten(0, 1))
        return self.transition_mean(batch, error.view_as(batch.reward))

    def slope(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Q [S] of the online critics (combined) and dQ/da [S, A]; the critics' own gradients stay as they are."""
        leaf = action.detach().requires_grad_()
        q_values = self.online_critic.combine(self.online_critic(observation, leaf))
        (slope,) = torch.autograd.grad(q_values.sum(), leaf)
        return q_values.detach(), slope
