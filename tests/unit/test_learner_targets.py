"""The target pass against a slow reference: NumPy, float64, loops over episodes instead of masks over rows."""

import math

import numpy as np
import pytest
import torch

from mpo_robot.networks import Critic, GaussianPolicy
from tests.support.learning import ACTION_SIZE, make_batch, make_episodes, make_learner, target_pass, tensors

SCALE = 2.5  # rewards are divided by it


def layers_forward(layers, x):
    """Linear, LayerNorm, ReLU written out."""
    for layer in layers:
        if isinstance(layer, torch.nn.Linear):
            x = layer.weight.detach().double().numpy() @ x + layer.bias.detach().double().numpy()
        elif isinstance(layer, torch.nn.LayerNorm):
            x = (x - x.mean()) / math.sqrt(x.var() + 1e-5)
            x = x * layer.weight.detach().double().numpy() + layer.bias.detach().double().numpy()
        else:
            x = np.maximum(x, 0.0)
    return x


def policy_forward(policy: GaussianPolicy, observation):
    raw = layers_forward([*policy.torso, policy.head], observation.astype(np.float64))
    return raw[:ACTION_SIZE], np.log1p(np.exp(raw[ACTION_SIZE:])) + policy.config.min_stddev


def critic_forward(critic: Critic, observation, action):
    """Of an action that may be out of bounds: a critic sees it clipped."""
    inputs = np.concatenate([observation.astype(np.float64), np.clip(action.astype(np.float64), -1.0, 1.0)])
    first = torch.cat([critic.observation_in.weight, critic.action_in.weight], dim=1).detach().double().numpy()
    hidden = first @ inputs + critic.observation_in.bias.detach().double().numpy()
    return layers_forward(critic.tail, hidden)[0]


class Reference:
    """Target values by the definitions."""

    def __init__(self, learner, target, steps):
        self.learner, self.steps = learner, steps
        self.noise = target.noise.double().numpy()  # [N, S, A]
        self.rows = [(e, t) for e, episode in enumerate(make_episodes()) for t in range(len(episode) + 1)]
        self.episodes = make_episodes()

    def q(self, observation, action):
        values = [critic_forward(member, observation, action) for member in self.learner.target_critic.members]
        return min(values) if self.learner.config.critic.aggregate == "min" else float(np.mean(values))

    def value(self, observation, state):
        """E_pi Q over the samples that the learner drew for this state of the batch."""
        mean, stddev = policy_forward(self.learner.target_policy, observation)
        return float(np.mean([self.q(observation, mean + stddev * z) for z in self.noise[:, state]]))

    def coefficient(self, episode, t):
        if not episode.trace_valid[t]:
            return 0.0
        mean, stddev = policy_forward(self.learner.target_policy, episode.observations[t])
        action = episode.actions[t].astype(np.float64)  # not clipped
        z = (action - mean) / stddev
        log_prob = -(0.5 * z @ z + np.log(stddev).sum() + 0.5 * len(z) * math.log(2 * math.pi))
        return self.learner.config.retrace_lambda * min(1.0, math.exp(log_prob - episode.behavior_log_probs[t]))

    def retrace(self, window, position):
        """Q(s,a) + sum of discounted, traced TD errors to the end of the window or of the episode."""
        index, start = self.rows[window + position]
        episode, discount = self.episodes[index], self.learner.config.discount
        total, weight = self.q(episode.observations[start], episode.actions[start]), 1.0
        first = total
        for ahead in range(self.steps - position):
            t = start + ahead
            if t >= len(episode):
                break
            q_taken = first if ahead == 0 else self.q(episode.observations[t], episode.actions[t])
            if ahead:
                weight *= discount * self.coefficient(episode, t)
            state = window * (self.steps + 1) + position + ahead + 1
            ended = episode.terminated and t == len(episode) - 1
            after = 0.0 if ended else self.value(episode.observations[t + 1], state)
            total += weight * (float(episode.rewards[t]) / SCALE + discount * after - q_taken)
        return total


@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize(("layer_norm", "aggregate"), [(True, "min"), (False, "mean")])
def test_returns_equal_the_reference(steps, layer_norm, aggregate):
    learner = make_learner(critic__layer_norm=layer_norm, critic__aggregate=aggregate, policy__layer_norm=layer_norm)
    batch = tensors(make_batch(steps))
    target = target_pass(learner, batch, SCALE)
    reference = Reference(learner, target, steps)
    compared = 0
    for window, position in np.ndindex(*target.returns.shape):
        index, t = reference.rows[window + position]
        is_transition = t < len(reference.episodes[index])
        assert bool(batch.is_transition[window, position]) == is_transition
        if is_transition:
            want = reference.retrace(window, position)
            assert target.returns[window, position].item() == pytest.approx(want, rel=2e-4, abs=2e-5)
            compared += 1
    assert compared > 10


def test_actions_come_from_the_target_policy_and_are_valued_clipped():
    learner = make_learner(policy__init_stddev=1.5)
    batch = tensors(make_batch())
    generator = torch.Generator()
    generator.set_state(learner.generator.get_state())
    target = target_pass(learner, batch)
    observation = batch.observation.flatten(0, 1)
    with torch.no_grad():
        before = learner.target_policy(observation)
        assert not torch.allclose(before.mean, learner.online_policy(observation).mean, atol=1e-3)
    noise = torch.randn(target.noise.shape, generator=generator)
    assert torch.equal(target.noise, noise)
    assert torch.allclose(target.actions, before.mean + before.stddev * noise)
    assert (target.actions.abs() > 1.0).any()  # not clipped here, only inside the critic
    for n, s in ((0, 0), (3, 7), (4, 20)):
        values = [
            critic_forward(member, observation[s].numpy(), target.actions[n, s].numpy())
            for member in learner.target_critic.members
        ]
        assert target.q_values[n, s].item() == pytest.approx(min(values), abs=1e-5)


def test_ratios_use_the_target_policy_and_the_action_before_clipping():
    # Pitfall 10: a stored action that was clipped, with the log density of the unclipped one, would break rho.
    learner = make_learner(policy__init_stddev=0.5)
    batch = tensors(make_batch())
    base = target_pass(learner, batch).coefficients
    outside = batch.action.clone()
    outside[..., 0] = 1.5
    further = batch.action.clone()
    further[..., 0] = 2.5
    valid = (batch.trace_valid > 0) & (batch.is_transition > 0)
    low = torch.full_like(batch.behavior_log_prob, -3.0)
    first = target_pass(learner, batch._replace(action=outside, behavior_log_prob=low), 1.0)
    second = target_pass(learner, batch._replace(action=further, behavior_log_prob=low), 1.0)
    assert (second.coefficients[valid] < first.coefficients[valid]).all()
    assert (base[~valid] == 0.0).all()
    assert valid.any()
    assert (~valid).any()
    # the critics cannot tell the two apart
    losses = [learner.critic_loss(batch._replace(action=action), base) for action in (outside, further)]
    assert torch.equal(*losses)
    with torch.no_grad():
        learner.target_policy.head.bias += 0.3
    assert not torch.allclose(target_pass(learner, batch).coefficients, base)
    with torch.no_grad():
        learner.target_policy.head.bias -= 0.3
        learner.online_policy.head.bias += 0.3
    assert torch.allclose(target_pass(learner, batch).coefficients, base)


def test_target_critics_not_online_ones_give_the_targets():
    learner = make_learner()
    batch = tensors(make_batch())
    state = learner.generator.get_state()
    before = target_pass(learner, batch).returns
    learner.flat["critic"].add_(0.1)
    learner.generator.set_state(state)
    assert torch.equal(target_pass(learner, batch).returns, before)
    learner.flat["target_critic"].add_(0.1)
    learner.generator.set_state(state)
    assert not torch.allclose(target_pass(learner, batch).returns, before)


def test_the_target_pass_makes_no_gradient():
    learner = make_learner()
    target = target_pass(learner, tensors(make_batch()), 1.0)
    parts = (*target.policy, target.noise, target.actions, target.q_values, target.returns, target.coefficients)
    assert not any(part.requires_grad for part in parts)
    assert not any(p.requires_grad for p in (*learner.target_policy.parameters(), *learner.target_critic.parameters()))
