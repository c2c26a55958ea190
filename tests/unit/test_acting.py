"""The NumPy actor is the torch policy, on its own parameters."""

import math

import numpy as np
import pytest
import torch

from mpo_robot.acting import NumpyActor, uniform_action
from mpo_robot.losses.gaussian import log_prob
from mpo_robot.networks import GaussianPolicy, PolicyConfig
from tests.support.learning import make_batch, make_learner

O, A = 5, 3  # noqa: E741


def make_policy(layer_norm=True, hidden_sizes=(16, 12)):
    torch.manual_seed(0)
    policy = GaussianPolicy(O, A, PolicyConfig(hidden_sizes, layer_norm, init_stddev=0.4, min_stddev=0.01))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return policy


def observations(count=40):
    scale = np.geomspace(0.01, 100.0, count)[:, None]
    return (np.random.default_rng(0).standard_normal((count, O)) * scale).astype(np.float32)


@pytest.mark.parametrize("hidden_sizes", [(16,), (16, 12, 8)])
@pytest.mark.parametrize("layer_norm", [True, False])
def test_mean_and_stddev_equal_torch(layer_norm, hidden_sizes):
    policy = make_policy(layer_norm, hidden_sizes)
    actor = NumpyActor(policy)
    for observation in observations():
        before = observation.copy()
        mean, stddev = actor.distribution(observation)
        with torch.no_grad():
            expected = policy(torch.from_numpy(observation)[None])
        np.testing.assert_allclose(mean, expected.mean[0], rtol=1e-5, atol=1e-6 * max(1.0, abs(observation).max()))
        np.testing.assert_allclose(stddev, expected.stddev[0], rtol=1e-5, atol=1e-6 * max(1.0, abs(observation).max()))
        assert mean.dtype == stddev.dtype == np.float32
        assert (observation == before).all()


def test_extreme_raw_stddevs_neither_overflow_nor_fall_below_the_floor():
    policy = make_policy()
    actor = NumpyActor(policy)
    for raw in (-200.0, 200.0):
        with torch.no_grad():
            policy.head.bias[A:] = raw
        _, stddev = actor.distribution(observations()[20])
        assert np.isfinite(stddev).all()
        assert (stddev >= np.float32(0.01)).all()


def test_the_log_density_is_that_of_the_action_returned():
    policy = make_policy()
    actor, rng = NumpyActor(policy), np.random.default_rng(1)
    for observation in observations():
        action, density = actor.sample(observation, rng.standard_normal(A, dtype=np.float32))
        with torch.no_grad():
            mean, stddev = (part.double() for part in policy(torch.from_numpy(observation)[None]))
            expected = log_prob(mean, stddev, torch.from_numpy(action).double()[None]).item()
        assert density == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert action.dtype == np.float32


def test_samples_are_mean_plus_stddev_times_noise():
    actor, observation = NumpyActor(make_policy()), observations()[20]
    mean, stddev = actor.distribution(observation)
    noise = np.array([0.5, -2.0, 1.0], np.float32)[:A]
    np.testing.assert_allclose(actor.sample(observation, noise).action, mean + stddev * noise, rtol=1e-6)


def test_a_full_covariance_is_sampled_and_its_density_is_that_of_the_action():
    policy = GaussianPolicy(O, A, PolicyConfig((16,), covariance="full", init_stddev=0.4))
    with torch.no_grad():
        policy.head.weight.mul_(100.0)
        for observation in observations():
            noise = np.random.default_rng(1).standard_normal(A, dtype=np.float32)
            actor = NumpyActor(policy)
            action, density = actor.sample(observation, noise)
            reference = policy(torch.from_numpy(observation)[None])
            expected = torch.distributions.MultivariateNormal(reference.mean, scale_tril=reference.scale_tril)
            assert density == pytest.approx(expected.log_prob(torch.from_numpy(action)).item(), rel=1e-3, abs=1e-3)
            np.testing.assert_allclose(
                action, (reference.mean + reference.scale_tril @ torch.from_numpy(noise))[0], atol=1e-5
            )
            np.testing.assert_allclose(actor.distribution(observation)[1], expected.stddev[0], rtol=1e-4)


def test_a_squashed_mean_is_that_of_the_network():
    policy = GaussianPolicy(O, A, PolicyConfig((16,), tanh_mean=True))
    with torch.no_grad():
        policy.head.weight.mul_(1000.0)
        for observation in observations():
            mean, _ = policy(torch.from_numpy(observation)[None])
            np.testing.assert_allclose(NumpyActor(policy).distribution(observation)[0], mean[0], atol=1e-5)
            assert mean.abs().max() <= 1.0


def test_it_follows_the_learner_without_being_told():
    learner = make_learner()
    actor, observation = NumpyActor(learner.online_policy), np.ones(3, np.float32)
    before = actor.distribution(observation)[0].copy()
    learner.update(make_batch())
    with torch.no_grad():
        expected = learner.online_policy(torch.ones(1, 3)).mean[0]
    after = actor.distribution(observation)[0]
    assert not np.allclose(after, before, atol=1e-6)
    np.testing.assert_allclose(after, expected, atol=1e-6)
    learner.load_state_dict(make_learner(seed=4).state_dict())  # restoring a checkpoint moves no memory either
    with torch.no_grad():
        expected = learner.online_policy(torch.ones(1, 3)).mean[0]
    np.testing.assert_allclose(actor.distribution(observation)[0], expected, atol=1e-6)


def test_uniform_actions_fill_the_box_and_know_their_density():
    rng = np.random.default_rng(0)
    actions = np.stack([uniform_action(3, rng).action for _ in range(2000)])
    assert actions.dtype == np.float32
    assert (np.abs(actions) <= 1.0).all()
    assert (np.abs(actions).max(axis=0) > 0.99).all()
    np.testing.assert_allclose(actions.mean(axis=0), 0.0, atol=0.07)
    # the density over [-1, 1]^3 is 1/8 everywhere
    assert math.exp(uniform_action(3, rng).log_prob) == pytest.approx(1 / 8)
