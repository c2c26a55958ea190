"""Policy losses of the baselines: by hand, against torch.distributions, and without bias."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from mpo_robot.losses.gaussian import log_prob
from mpo_robot.losses.policy_gradient import (
    deterministic_policy_gradient,
    entropy_temperature_loss,
    expected_policy_gradient,
    soft_policy_gradient,
)
from mpo_robot.losses.squashed_gaussian import LARGEST_ACTION, squashed_log_prob, squashed_log_prob_of

WEIGHTS = torch.tensor([0.25, 0.75])


def gaussians(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(50, 3, generator=generator, dtype=dtype)
    stddev = 0.1 + torch.rand(50, 3, generator=generator, dtype=dtype)
    return mean, stddev, torch.randn(50, 3, generator=generator, dtype=dtype)


def test_the_squashed_density_is_that_of_torch_distributions():
    mean, stddev, noise = gaussians()
    pre_squash = mean + stddev * noise
    base = Normal(mean, stddev)
    # the transform with its cache, so that no inverse of tanh is lost to rounding
    reference = TransformedDistribution(base, TanhTransform(cache_size=1))
    with torch.no_grad():
        expected = reference.log_prob(reference.transforms[0](pre_squash)).sum(-1)
    torch.testing.assert_close(squashed_log_prob(mean, stddev, pre_squash), expected)
    torch.testing.assert_close(squashed_log_prob_of(mean, stddev, pre_squash.tanh()), expected)


def test_the_squashed_density_integrates_to_one():
    action = torch.linspace(-1, 1, 200_001, dtype=torch.float64)[1:-1].unsqueeze(-1)
    density = squashed_log_prob_of(torch.tensor([0.3]).double(), torch.tensor([0.6]).double(), action).exp()
    assert density.sum().item() * 1e-5 == pytest.approx(1.0, abs=1e-4)


def test_the_squashed_density_stays_finite_at_and_beyond_the_bounds():
    mean, stddev = torch.zeros(1), torch.ones(1)
    assert torch.isfinite(squashed_log_prob(mean, stddev, torch.tensor([[50.0], [-50.0]]))).all()
    outside = squashed_log_prob_of(mean, stddev, torch.tensor([[1.0], [1.7], [-2.0]]))
    inside = squashed_log_prob_of(mean, stddev, torch.tensor([[LARGEST_ACTION], [LARGEST_ACTION], [-LARGEST_ACTION]]))
    assert torch.isfinite(inside).all()
    assert torch.equal(outside, inside)


def test_the_deterministic_gradient_is_the_chain_rule():
    # Q = 3 a_1 - a_2^2 / 2 and a = (theta, 2 theta): dQ/dtheta = 3 - 4 theta.
    theta = torch.tensor([0.5, -1.0], requires_grad=True)
    action = torch.stack([theta, 2.0 * theta], dim=-1)
    values = 3.0 * action[:, 0] - 0.5 * action[:, 1] ** 2
    slope = torch.stack([torch.full((2,), 3.0), -action[:, 1]], dim=-1)
    result = deterministic_policy_gradient(action, values, slope, WEIGHTS)
    result.loss.backward()
    assert theta.grad.tolist() == pytest.approx([-0.25 * 1.0, -0.75 * 7.0])
    assert result.objective.item() == pytest.approx(0.25 * 1.0 + 0.75 * -5.0)
    assert not result.objective.requires_grad


def test_the_soft_gradient_is_that_of_the_objective_written_out():
    mean, stddev, noise = (item[:2] for item in gaussians())
    parameters = [mean.clone().requires_grad_(), stddev.clone().requires_grad_()]
    weights, temperature = WEIGHTS.double(), torch.tensor([0.7], dtype=torch.float64, requires_grad=True)

    def act():
        pre_squash = parameters[0] + parameters[1] * noise
        return pre_squash.tanh(), squashed_log_prob(*parameters, pre_squash)

    action, density = act()
    plain = weights @ (temperature.detach() * density - action.prod(-1))
    expected = torch.autograd.grad(plain, parameters)
    action, density = act()
    leaf = action.detach().requires_grad_()
    (slope,) = torch.autograd.grad(leaf.prod(-1).sum(), leaf)
    result = soft_policy_gradient(action, density, leaf.prod(-1), slope, temperature, weights)
    result.loss.backward()
    for parameter, gradient in zip(parameters, expected):
        torch.testing.assert_close(parameter.grad, gradient)
    assert temperature.grad is None
    torch.testing.assert_close(-result.objective, plain.detach())


@pytest.mark.parametrize(("target", "direction"), [(-1.0, 1.0), (2.0, -1.0)])
def test_the_temperature_falls_while_the_entropy_is_above_its_target(target, direction):
    temperature = torch.tensor([0.5], requires_grad=True)
    log_prob = torch.tensor([-1.0, -1.0], requires_grad=True)  # entropy 1
    loss = entropy_temperature_loss(temperature, log_prob, target, WEIGHTS)
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * (1.0 - target))
    assert temperature.grad.item() == pytest.approx(1.0 - target)
    assert math.copysign(1.0, temperature.grad.item()) == direction
    assert log_prob.grad is None


def test_the_expected_gradient_by_hand():
    # Two samples: (Q - mean) / (N - 1) = +-2 / 1, so the loss is -(2 l_1 - 2 l_2).
    density = torch.tensor([[0.3], [0.1]], requires_grad=True)
    result = expected_policy_gradient(torch.tensor([[5.0], [1.0]]), density, torch.ones(1))
    result.loss.backward()
    assert result.loss.item() == pytest.approx(-0.4)
    assert density.grad.flatten().tolist() == pytest.approx([-2.0, 2.0])
    assert result.objective.item() == pytest.approx(3.0)


@pytest.mark.parametrize("num_samples", [2, 3, 10])
def test_the_expected_gradient_has_no_bias_whatever_the_number_of_samples(num_samples):
    # Linear Q = g . a + 100 under N(mean, stddev): the gradient is g for the mean and 0 for the stddev.
    slope = torch.tensor([0.5, -2.0])
    states = 200_000 // num_samples
    mean, stddev = torch.zeros(2, requires_grad=True), torch.full((2,), 0.5, requires_grad=True)
    noise = torch.randn(num_samples, states, 2, generator=torch.Generator().manual_seed(0))
    actions = 0.5 * noise
    density = log_prob(mean, stddev, actions)
    expected_policy_gradient(actions @ slope + 100.0, density, torch.full((states,), 1 / states)).loss.backward()
    torch.testing.assert_close(-mean.grad, slope, atol=0.03, rtol=0.0)
    torch.testing.assert_close(stddev.grad, torch.zeros(2), atol=0.03, rtol=0.0)


def test_the_expected_gradient_sends_nothing_to_the_values_and_refuses_one_sample():
    values = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    density = torch.zeros(3, 2, requires_grad=True)
    expected_policy_gradient(values, density, WEIGHTS).loss.backward()
    assert values.grad is None
    assert density.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="at least 2"):
        expected_policy_gradient(values[:1], density[:1], WEIGHTS)


def test_a_reference_of_the_reference():
    # Independent sums what the density sums, so a mistake in one axis cannot hide.
    mean, stddev, noise = gaussians(3)
    pre_squash = mean + stddev * noise
    reference = Independent(Normal(mean, stddev), 1).log_prob(pre_squash)
    correction = torch.log1p(-pre_squash.tanh().square()).sum(-1)
    torch.testing.assert_close(squashed_log_prob(mean, stddev, pre_squash), reference - correction)
