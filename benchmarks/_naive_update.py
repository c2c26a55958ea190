"""MPO written the plain way, with torch.distributions and one pass per question: what the learner is compared with.

It makes no use of mpo_robot's losses. Same mathematics as `mpo_robot.learner.Learner` on batches in which every row is
a transition: each update repeats every state for each of its N actions, builds `cat([s, a])` for each critic, values
the bootstrap states in a pass of their own, takes N log densities, and steps three default Adam optimisers and a Polyak
loop over parameters.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn import functional

from mpo_robot.learner import Learner
from mpo_robot.mpo_config import LearnerConfig
from mpo_robot.replay import SequenceBatch


class Policy(nn.Module):
    """Diagonal Gaussian policy."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        source = learner.online_policy
        self.network = nn.Sequential(*copy.deepcopy(list(source.torso)), copy.deepcopy(source.head))
        self.min_stddev = source.config.min_stddev

    def forward(self, observation: Tensor) -> Independent:
        """Distribution over actions."""
        mean, raw = self.network(observation).chunk(2, dim=-1)
        return Independent(Normal(mean, functional.softplus(raw) + self.min_stddev), 1)


def make_critic(source: nn.Module) -> nn.Sequential:
    """An ordinary network over [s, a] with the weights of one of the learner's critics."""
    state, action = source.get_submodule("observation_in"), source.get_submodule("action_in")
    first = nn.Linear(state.weight.shape[1] + action.weight.shape[1], len(state.weight))
    with torch.no_grad():
        first.weight.copy_(torch.cat([state.weight, action.weight], dim=1))
        first.bias.copy_(state.bias)
    return nn.Sequential(first, *copy.deepcopy(list(source.get_submodule("tail"))))


class NaiveLearner:
    """Starts from the parameters of `learner`."""

    def __init__(self, learner: Learner) -> None:
        self.config: LearnerConfig = learner.config
        self.policy = Policy(learner)
        self.critics = nn.ModuleList(make_critic(member) for member in learner.online_critic.members)
        self.target_policy = copy.deepcopy(self.policy)
        self.target_critics = copy.deepcopy(self.critics)
        self.duals = nn.ParameterDict(
            {name: nn.Parameter(raw.clone()) for name, raw in learner.duals.named_parameters()}
        )
        rates = (self.config.learning_rate_policy, self.config.learning_rate_critic, self.config.learning_rate_duals)
        groups = (self.policy, self.critics, self.duals)
        self.optimizers = [torch.optim.Adam(group.parameters(), lr=rate) for group, rate in zip(groups, rates)]
        self.generator = torch.Generator()
        self.generator.set_state(learner.generator.get_state())

    def copy_targets(self, learner: Learner) -> None:
        """Take over target networks that differ from the online ones."""
        source = learner.target_policy
        target = nn.Sequential(*source.torso, source.head)
        self.target_policy.network.load_state_dict(target.state_dict())
        targets = nn.ModuleList(make_critic(member) for member in learner.target_critic.members)
        self.target_critics.load_state_dict(targets.state_dict())

    def target_values(self, observation: Tensor, action: Tensor) -> Tensor:
        """Combined target Q of each state-action pair; any leading axes."""
        inputs = torch.cat([observation, action.clamp(-1.0, 1.0)], dim=-1)
        values = torch.stack([critic(inputs).squeeze(-1) for critic in self.target_critics])
        return values.amin(dim=0) if self.config.critic.aggregate == "min" else values.mean(dim=0)

    def gradients(self, batch: SequenceBatch) -> None:
        """Losses of one update and their gradients."""
        arrays = [torch.from_numpy(array) for array in batch]
        observation, action, reward, terminated, behavior_log_prob = arrays[:5]
        samples = self.config.mpo.num_samples
        with torch.no_grad():
            before = self.target_policy(observation)
            noise = torch.randn(samples, *self._flat(before.mean).shape, generator=self.generator)
            actions = before.mean + before.stddev * noise.view(samples, *before.mean.shape)
            repeated = observation.expand(samples, *observation.shape)
            q_values = self.target_values(repeated, actions)  # E-step
            next_value = self.target_values(repeated[:, :, 1:], actions[:, :, 1:]).mean(dim=0)  # returns
            taken = self.target_values(observation[:, :-1], action)
            ratio = (self.target_policy(observation[:, :-1]).log_prob(action) - behavior_log_prob).exp().clamp(max=1.0)
            discount = self.config.discount_at()
            returns = reward + discount * (1.0 - terminated) * next_value
            for t in range(reward.shape[1] - 2, -1, -1):
                correction = self.config.retrace_lambda * ratio[:, t + 1] * (returns[:, t + 1] - taken[:, t + 1])
                returns[:, t] += discount * (1.0 - terminated[:, t]) * correction
        inputs = torch.cat([observation[:, :-1], action.clamp(-1.0, 1.0)], dim=-1)
        loss = sum(0.5 * (critic(inputs).squeeze(-1) - returns).square().mean() for critic in self.critics)
        loss = loss + self._policy_loss(observation, before, actions, q_values)
        loss.backward()

    def _policy_loss(self, observation: Tensor, before: Independent, actions: Tensor, q_values: Tensor) -> Tensor:
        mpo = self.config.mpo
        weights, loss = self._estep(q_values, "raw_temperature", mpo.epsilon)
        if mpo.action_penalization:
            cost = -torch.linalg.vector_norm(actions - actions.clamp(-1.0, 1.0), dim=-1)
            penalty_weights, loss_penalty = self._estep(cost, "raw_penalty_temperature", mpo.epsilon_penalty)
            weights, loss = weights + penalty_weights, loss + loss_penalty
        online = self.policy(observation)
        fixed_stddev = Normal(online.mean, before.stddev)
        fixed_mean = Normal(before.mean, online.stddev)
        likelihood = fixed_stddev.log_prob(actions).sum(-1) + fixed_mean.log_prob(actions).sum(-1)
        if mpo.center_weights:  # the part of equal weights is an expectation: a KL, but for a constant
            total = 2.0 if mpo.action_penalization else 1.0
            for distribution in (fixed_stddev, fixed_mean):
                loss = loss + total * kl_divergence(before.base_dist, distribution).sum(-1).mean()
            weights = weights - total / len(weights)
        loss = loss - (weights * likelihood).sum(dim=0).mean()
        constraints = (
            ("raw_alpha_mean", fixed_stddev, mpo.epsilon_mean),
            ("raw_alpha_stddev", fixed_mean, mpo.epsilon_stddev),
        )
        for name, distribution, bound in constraints:
            kl = self._flat(kl_divergence(before.base_dist, distribution)).mean(dim=0)
            alpha = self._dual(name)
            loss = loss + (alpha.detach() * kl).sum() + (alpha * (bound - kl.detach())).sum()
        return loss

    def _estep(self, values: Tensor, name: str, epsilon: float) -> tuple[Tensor, Tensor]:
        temperature = self._dual(name)
        log_mean = torch.logsumexp(values / temperature, dim=0) - math.log(len(values))
        loss = (temperature * (epsilon + log_mean.mean())).sum()
        return torch.softmax(values / temperature, dim=0).detach(), loss

    def _dual(self, name: str) -> Tensor:
        return functional.softplus(self.duals[name]) + 1e-8

    def update(self, batch: SequenceBatch) -> None:
        """One whole update."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.gradients(batch)
        for optimizer in self.optimizers:
            optimizer.step()
        rate = self.config.target_update_rate or 0.0
        pairs = ((self.policy, self.target_policy), (self.critics, self.target_critics))
        with torch.no_grad():
            for online, target in pairs:
                for source, parameter in zip(online.parameters(), target.parameters()):
                    parameter.mul_(1.0 - rate).add_(source, alpha=rate)

    def gradient_differences(self, learner: Learner) -> dict[str, float]:
        """Largest difference to the learner's gradients, relative to the largest gradient, for each network."""
        pairs: dict[str, list[tuple[Tensor | None, Tensor | None]]] = {"policy": [], "critics": [], "duals": []}
        for mine, theirs in zip(self.policy.parameters(), learner.online_policy.parameters()):
            pairs["policy"].append((mine.grad, theirs.grad))
        for mine, theirs in zip(self.critics, learner.online_critic.members):
            ours = dict(theirs.named_parameters())
            first = torch.cat([ours["observation_in.weight"].grad, ours["action_in.weight"].grad], dim=1)
            rest = [parameter.grad for name, parameter in ours.items() if name.startswith("tail.")]
            others = [first, ours["observation_in.bias"].grad, *rest]
            pairs["critics"] += [(p.grad, other) for p, other in zip(mine.parameters(), others)]
        for name, theirs in learner.duals.named_parameters():
            if self.duals[name].grad is not None:
                pairs["duals"].append((self.duals[name].grad, theirs.grad))
        return {name: _difference(items) for name, items in pairs.items()}

    @staticmethod
    def _flat(values: Tensor) -> Tensor:
        return values.flatten(0, -2)


def _difference(pairs: list[tuple[Tensor | None, Tensor | None]]) -> float:
    left = torch.cat([mine.flatten() for mine, _ in pairs if mine is not None])
    right = torch.cat([theirs.flatten() for _, theirs in pairs if theirs is not None])
    return float((left - right).abs().max() / right.abs().max())
