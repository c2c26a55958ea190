"""Acting with a categorical policy: the same numbers as torch, and actions with the probabilities it says."""

import math

import numpy as np
import pytest
import torch

from mpo_robot.acting import uniform_action
from mpo_robot.categorical_acting import CategoricalActor
from mpo_robot.categorical_config import CategoricalConfig
from mpo_robot.categorical_networks import CategoricalCritics, CategoricalPolicy, Interface
from mpo_robot.exploration import ColoredNoise
from mpo_robot.networks import CriticConfig, PolicyConfig
from mpo_robot.specs import PolicySpec, TermSpec

ACTION = (TermSpec.discrete("action", 5),)
IMAGE = PolicySpec((TermSpec("paddle", 100), TermSpec("ball", 100)), ACTION, 0.1)


def make_policy(torso="mlp", **settings):
    torch.manual_seed(0)
    config = CategoricalConfig(torso=torso, **settings)
    policy = CategoricalPolicy(Interface.of(IMAGE), config, PolicyConfig(hidden_sizes=(16, 8)))
    with torch.no_grad():
        policy.head.weight.mul_(300.0)
        policy.head.bias.copy_(torch.arange(5) * 0.1)
    return policy


@pytest.mark.parametrize("torso", ["mlp", "minatar"])
def test_log_probabilities_are_torchs(torso):
    policy = make_policy(torso, observation_scale=4.0)
    actor = CategoricalActor(policy)
    for seed in range(5):
        observation = np.random.default_rng(seed).standard_normal(200).astype(np.float32)
        kept = observation.copy()
        with torch.no_grad():
            expected = policy(torch.from_numpy(observation)[None]).log_softmax(-1)[0].numpy()
        np.testing.assert_allclose(actor.log_probs(observation), expected, atol=1e-5)
        action, log_probs = actor.distribution(observation)
        assert action.tolist() == [expected.argmax()]
        assert action.dtype == np.float32
        assert np.exp(log_probs).sum() == pytest.approx(1.0, abs=1e-12)
        np.testing.assert_array_equal(observation, kept)


@pytest.mark.parametrize("torso", ["mlp", "minatar"])
def test_an_actor_follows_its_learner(torso):
    policy = make_policy(torso)
    actor = CategoricalActor(policy)
    observation = np.ones(200, np.float32)
    with torch.no_grad():
        policy.head.weight.zero_()
        policy.head.bias.copy_(torch.tensor([0.0, 0.0, 50.0, 0.0, 0.0]))
    assert actor.distribution(observation)[0].tolist() == [2.0]


def test_actions_come_with_their_probabilities_and_exact_log_probabilities():
    actor, rng = CategoricalActor(make_policy()), np.random.default_rng(0)
    observation = np.random.default_rng(3).standard_normal(200).astype(np.float32)
    log_probs = actor.log_probs(observation)
    counts = np.zeros(5)
    for _ in range(2000):
        action, log_prob = actor.sample(observation, rng.standard_normal(1).astype(np.float32))
        assert log_prob == log_probs[int(action[0])]
        counts[int(action[0])] += 1
    np.testing.assert_allclose(counts / 2000, np.exp(log_probs), atol=0.04)


def test_the_noise_is_turned_by_its_distribution_function():
    policy = make_policy()
    with torch.no_grad():
        policy.head.weight.zero_()
        policy.head.bias.copy_(torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1]).log())
    actor, observation = CategoricalActor(policy), np.zeros(200, np.float32)
    for noise, action in ((-9.0, 0), (-0.01, 0), (0.01, 1), (0.52, 1), (0.53, 2), (9.0, 4), (40.0, 4)):
        assert actor.sample(observation, np.array([noise], np.float32)).action.tolist() == [action]


def test_coloured_noise_keeps_actions_longer_with_the_same_probabilities():
    policy = make_policy()
    with torch.no_grad():
        policy.head.weight.zero_()
        policy.head.bias.zero_()
    actor, observation = CategoricalActor(policy), np.zeros(200, np.float32)
    changes = {}
    for color in (0.0, 1.0):
        noise, rng = ColoredNoise(1, color, block=100), np.random.default_rng(0)
        actions = np.array([actor.sample(observation, noise.sample(rng)).action[0] for _ in range(3000)])
        np.testing.assert_allclose([np.mean(actions == index) for index in range(5)], 0.2, atol=0.06)
        changes[color] = np.mean(np.diff(actions) != 0)
    assert changes[1.0] < changes[0.0] - 0.05


def test_warm_up_actions_are_uniform_indices():
    rng = np.random.default_rng(0)
    actions = [uniform_action(1, rng, num_actions=3) for _ in range(600)]
    assert {item.action.shape for item in actions} == {(1,)}
    assert {item.log_prob for item in actions} == {-math.log(3)}
    assert np.bincount([int(item.action[0]) for item in actions], minlength=3).min() > 150


@pytest.mark.parametrize(("torso", "side", "hidden"), [("minatar", 10, 16 * 8 * 8), ("dqn", 84, 64 * 7 * 7)])
def test_convolutions_see_channels_as_the_spec_orders_them(torso, side, hidden):
    spec = PolicySpec(tuple(TermSpec(f"c{index}", side * side) for index in range(4)), ACTION, 0.1)
    interface = Interface.of(spec)
    assert interface.image == (4, side)
    policy = CategoricalPolicy(interface, CategoricalConfig(torso=torso), PolicyConfig(hidden_sizes=(8,)))
    linear = next(layer for layer in policy.torso if isinstance(layer, torch.nn.Linear))
    assert linear.in_features == hidden
    image = torch.randn(2, 4, side, side)
    first = next(layer for layer in policy.torso if isinstance(layer, torch.nn.Conv2d))
    seen = []
    first.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    assert policy(image.flatten(1)).shape == (2, 5)
    torch.testing.assert_close(seen[0], image)


def test_an_untrained_policy_is_nearly_uniform_and_critics_are_independent():
    torch.manual_seed(1)
    interface, config = Interface.of(IMAGE), CategoricalConfig()
    policy = CategoricalPolicy(interface, config, PolicyConfig(hidden_sizes=(16,)))
    observation = torch.randn(7, 200)
    assert (policy(observation).softmax(-1) - 0.2).abs().max() < 0.02
    for aggregate, combine in (("min", lambda q: q.amin(0)), ("mean", lambda q: q.mean(0))):
        critics = CategoricalCritics(interface, config, CriticConfig(hidden_sizes=(16,), aggregate=aggregate))
        values = critics(observation)
        assert values.shape == (2, 7, 5)
        assert not torch.equal(values[0], values[1])
        torch.testing.assert_close(critics.combined(observation), combine(values))
