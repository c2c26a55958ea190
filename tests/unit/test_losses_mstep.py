"""M-step: moments equal the plain likelihood, decoupling, KL closed forms, gradient routing, the duals."""

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from mpo_robot.losses.constraint import bound, kl_penalty
from mpo_robot.losses.families import DiagonalFamily
from mpo_robot.losses.gaussian import (
    Gaussian,
    entropy,
    kl_mean,
    kl_stddev,
    log_prob,
    noise_moments,
    weighted_likelihood,
)
from mpo_robot.losses.mstep import decoupled_mstep

S, A, N = 7, 3, 12


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    target = Gaussian(draw(S, A), draw(S, A).exp())
    online = Gaussian(draw(S, A).requires_grad_(), draw(S, A).exp().requires_grad_())
    noise = draw(N, S, A)
    weights = torch.softmax(draw(N, S), dim=0)
    state_weights = torch.softmax(draw(S), dim=0)
    return online, target, noise, weights, state_weights


def test_log_prob_and_entropy_match_torch_distributions(problem):
    online, target, _, _, _ = problem
    reference = Independent(Normal(*target), 1)
    assert torch.allclose(log_prob(*target, online.mean), reference.log_prob(online.mean))
    assert torch.allclose(entropy(target.stddev), reference.entropy())


def test_kls_match_torch_distributions(problem):
    online, target, _, _, _ = problem
    # Pitfall 7: direction target || online. Pitfall 6: the mean's KL has the target's covariance.
    mean_reference = kl_divergence(Normal(target.mean, target.stddev), Normal(online.mean, target.stddev))
    stddev_reference = kl_divergence(Normal(target.mean, target.stddev), Normal(target.mean, online.stddev))
    assert torch.allclose(kl_mean(target.mean, target.stddev, online.mean), mean_reference)
    assert torch.allclose(kl_stddev(target.stddev, online.stddev), stddev_reference)


def test_parts_add_up_to_the_full_kl_exactly_when_the_stddevs_are_equal(problem):
    online, target, _, _, _ = problem
    full = kl_divergence(Normal(target.mean, target.stddev), Normal(online.mean, target.stddev))
    parts = kl_mean(target.mean, target.stddev, online.mean) + kl_stddev(target.stddev, target.stddev)
    assert torch.allclose(full, parts)
    unequal = kl_divergence(Normal(*target), Normal(*online))
    assert not torch.allclose(
        unequal, kl_mean(target.mean, target.stddev, online.mean) + kl_stddev(target.stddev, online.stddev)
    )


def test_moments_give_the_same_likelihood_and_gradient_as_n_log_densities(problem):
    online, target, noise, weights, state_weights = problem
    actions = target.mean + target.stddev * noise
    by_moments = weighted_likelihood(online, target, noise_moments(weights, noise), state_weights)
    plain_mean = -(state_weights * (weights * log_prob(online.mean, target.stddev, actions)).sum(0)).sum()
    plain_stddev = -(state_weights * (weights * log_prob(target.mean, online.stddev, actions)).sum(0)).sum()
    assert by_moments.loss_mean.item() == pytest.approx(plain_mean.item())
    assert by_moments.loss_stddev.item() == pytest.approx(plain_stddev.item())
    fast = torch.autograd.grad(by_moments.loss_mean + by_moments.loss_stddev, [online.mean, online.stddev])
    slow = torch.autograd.grad(plain_mean + plain_stddev, [online.mean, online.stddev])
    for left, right in zip(fast, slow):
        assert torch.allclose(left, right, atol=1e-12)


def test_the_mean_loss_does_not_touch_the_stddev_and_vice_versa(problem):
    online, target, noise, weights, state_weights = problem
    parts = weighted_likelihood(online, target, noise_moments(weights, noise), state_weights)
    assert torch.autograd.grad(parts.loss_mean, online.stddev, retain_graph=True, allow_unused=True)[0] is None
    assert torch.autograd.grad(parts.loss_stddev, online.mean, allow_unused=True)[0] is None


def test_the_mean_optimum_is_the_weighted_mean_of_the_actions(problem):
    _, target, noise, weights, state_weights = problem
    best = (weights.unsqueeze(-1) * (target.mean + target.stddev * noise)).sum(0)
    online = Gaussian(best.clone().requires_grad_(), target.stddev.clone().requires_grad_())
    parts = weighted_likelihood(online, target, noise_moments(weights, noise), state_weights)
    gradient = torch.autograd.grad(parts.loss_mean, online.mean)[0]
    assert gradient.abs().max().item() < 1e-12


def test_kl_penalty_by_hand_and_its_gradients():
    kl = torch.tensor([[0.2, 0.4], [0.6, 0.8]], requires_grad=True)
    alpha = torch.tensor([2.0, 3.0], requires_grad=True)
    penalty = kl_penalty(kl, alpha, 0.1, torch.tensor([0.5, 0.5]))
    assert penalty.kl.tolist() == pytest.approx([0.4, 0.6])
    assert penalty.loss_kl.item() == pytest.approx(2 * 0.4 + 3 * 0.6)
    assert penalty.loss_alpha.item() == pytest.approx(2 * (0.1 - 0.4) + 3 * (0.1 - 0.6))
    # Pitfall 5: none of the policy's gradient in the alpha loss and none of alpha's in the KL loss.
    assert torch.autograd.grad(penalty.loss_kl, alpha, retain_graph=True, allow_unused=True)[0] is None
    assert torch.autograd.grad(penalty.loss_alpha, kl, retain_graph=True, allow_unused=True)[0] is None
    assert torch.autograd.grad(penalty.loss_alpha, alpha)[0].tolist() == pytest.approx([-0.3, -0.5])


def test_a_single_bound_constrains_the_sum_over_dimensions():
    penalty = kl_penalty(torch.full((4, 3), 0.1), torch.tensor([2.0]), 0.1, torch.full((4,), 0.25))
    assert penalty.kl.tolist() == pytest.approx([0.3])
    with pytest.raises(ValueError, match="alpha"):
        kl_penalty(torch.zeros(4, 3), torch.zeros(2), 0.1, torch.full((4,), 0.25))


def test_two_objectives_weigh_two_in_total(problem):
    # Pitfall 10: said in the docstring, so pinned here.
    online, target, noise, weights, state_weights = problem
    moments = noise_moments(weights, noise)
    doubled = noise_moments(2.0 * weights, noise, total=2.0)
    constraints = (bound(torch.ones(A, dtype=torch.float64), 0.1),) * 2
    one = decoupled_mstep(DiagonalFamily, online, target, moments, *constraints, state_weights)
    two = decoupled_mstep(DiagonalFamily, online, target, doubled, *constraints, state_weights)
    assert two.loss_policy_mean.item() == pytest.approx(2 * one.loss_policy_mean.item())
    assert two.penalty_mean.loss_kl.item() == pytest.approx(one.penalty_mean.loss_kl.item())
