"""Other forms of the M-step: one KL instead of two, fixed prices instead of bounds, and how they reduce."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from mpo_robot.losses.constraint import bound, price, soft_penalty
from mpo_robot.losses.families import DiagonalFamily
from mpo_robot.losses.gaussian import (
    Gaussian,
    coupled_likelihood,
    kl_full,
    kl_mean,
    kl_stddev,
    log_prob,
    noise_moments,
)
from mpo_robot.losses.mstep import decoupled_mstep, single_mstep

S, A, N = 7, 3, 12
ONE = torch.ones(1, dtype=torch.float64)


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    target = Gaussian(draw(S, A).requires_grad_(), draw(S, A).exp().requires_grad_())
    online = Gaussian(draw(S, A).requires_grad_(), draw(S, A).exp().requires_grad_())
    return online, target, draw(N, S, A), torch.softmax(draw(N, S), dim=0), torch.softmax(draw(S), dim=0)


def gradients(loss, online):
    return torch.autograd.grad(loss, list(online), retain_graph=True)


def test_full_kl_matches_torch_distributions_and_has_the_right_direction(problem):
    online, target, _, _, _ = problem
    torch.testing.assert_close(kl_full(*target, *online), kl_divergence(Normal(*target), Normal(*online)))
    # Pitfall 7: the other direction is another number.
    assert not torch.allclose(kl_full(*target, *online), kl_divergence(Normal(*online), Normal(*target)))


def test_full_kl_reduces_to_either_part(problem):
    online, target, _, _, _ = problem
    torch.testing.assert_close(
        kl_full(*target, online.mean, target.stddev), kl_mean(*target, online.mean), atol=1e-12, rtol=1e-12
    )
    torch.testing.assert_close(kl_full(*target, target.mean, online.stddev), kl_stddev(target.stddev, online.stddev))


def test_coupled_likelihood_equals_n_log_densities(problem):
    online, target, noise, weights, state_weights = problem
    actions = (target.mean + target.stddev * noise).detach()
    for total in (1.0, 2.0):
        fast = coupled_likelihood(online, target, noise_moments(total * weights, noise, total), state_weights)
        slow = -(state_weights * (total * weights * log_prob(*online, actions)).sum(0)).sum()
        assert fast.item() == pytest.approx(slow.item())
        for left, right in zip(gradients(fast, online), gradients(slow, online)):
            torch.testing.assert_close(left, right)


def test_the_optimum_is_the_weighted_mean_and_spread_of_the_actions(problem):
    _, target, noise, weights, state_weights = problem
    actions = (target.mean + target.stddev * noise).detach()
    mean = (weights.unsqueeze(-1) * actions).sum(0)
    stddev = (weights.unsqueeze(-1) * (actions - mean).square()).sum(0).sqrt()
    online = Gaussian(mean.requires_grad_(), stddev.requires_grad_())
    loss = coupled_likelihood(online, target, noise_moments(weights, noise), state_weights)
    for gradient in gradients(loss, online):
        assert gradient.abs().max().item() < 1e-12


def test_at_the_target_policy_coupled_and_decoupled_steps_have_the_same_gradient(problem):
    _, target, noise, weights, state_weights = problem
    online = Gaussian(*(item.detach().clone().requires_grad_() for item in target))
    moments = noise_moments(weights, noise)
    single = single_mstep(DiagonalFamily, online, target, moments, bound(ONE, 0.1), state_weights)
    decoupled = decoupled_mstep(
        DiagonalFamily, online, target, moments, bound(ONE, 0.1), bound(ONE, 0.1), state_weights
    )
    together = decoupled.loss_policy_mean + decoupled.loss_policy_stddev
    for left, right in zip(gradients(single.loss_policy, online), gradients(together, online)):
        torch.testing.assert_close(left, right)
    assert single.penalty.kl.item() == pytest.approx(0.0, abs=1e-12)


def test_single_bound_per_dimension_or_global_and_its_gradient_routing(problem):
    online, target, noise, weights, state_weights = problem
    moments = noise_moments(weights, noise)
    kl = state_weights @ kl_full(*target, *online)
    alpha = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    each = single_mstep(DiagonalFamily, online, target, moments, bound(alpha, 0.1), state_weights).penalty
    torch.testing.assert_close(each.kl, kl.detach())
    assert each.loss_kl.item() == pytest.approx((alpha * kl).sum().item())
    torch.testing.assert_close(torch.autograd.grad(each.loss_alpha, alpha)[0], 0.1 - kl.detach())
    one = single_mstep(DiagonalFamily, online, target, moments, bound(ONE, 0.1), state_weights).penalty
    assert one.kl.tolist() == pytest.approx([kl.sum().item()])
    # Pitfall 5: nothing reaches the target policy, and nothing of the policy's loss the multiplier.
    loss = (
        each.loss_kl
        + single_mstep(DiagonalFamily, online, target, moments, bound(alpha, 0.1), state_weights).loss_policy
    )
    leaks = torch.autograd.grad(loss, [alpha, *target], allow_unused=True)
    assert all(leak is None for leak in leaks)


def test_soft_forms_are_the_hard_forms_with_constant_multipliers(problem):
    online, target, noise, weights, state_weights = problem
    moments = noise_moments(weights, noise)
    problem = (DiagonalFamily, online, target, moments)
    soft = decoupled_mstep(*problem, price(0.3), price(7.0), state_weights)
    hard = decoupled_mstep(*problem, bound(0.3 * ONE, 0.1), bound(7.0 * ONE, 0.1), state_weights)
    pairs = [
        (soft.loss_policy_mean, hard.loss_policy_mean),
        (soft.loss_policy_stddev, hard.loss_policy_stddev),
        (soft.penalty_mean.loss_kl, hard.penalty_mean.loss_kl),
        (soft.penalty_stddev.loss_kl, hard.penalty_stddev.loss_kl),
        (
            single_mstep(*problem, price(2.0), state_weights).penalty.loss_kl,
            single_mstep(*problem, bound(2.0 * ONE, 0.1), state_weights).penalty.loss_kl,
        ),
    ]
    for left, right in pairs:
        assert left.item() == pytest.approx(right.item())
    for left, right in zip(gradients(pairs[2][0] + pairs[3][0], online), gradients(pairs[2][1] + pairs[3][1], online)):
        torch.testing.assert_close(left, right)


def test_soft_penalty_by_hand():
    kl = torch.tensor([[0.2, 0.4], [0.6, 0.8]], requires_grad=True)
    penalty = soft_penalty(kl, 3.0, torch.tensor([0.5, 0.5]))
    assert penalty.kl.tolist() == pytest.approx([0.4, 0.6])
    assert penalty.loss_kl.item() == pytest.approx(3.0)
    assert penalty.loss_alpha.item() == 0.0
    assert not penalty.loss_alpha.requires_grad
    torch.testing.assert_close(torch.autograd.grad(penalty.loss_kl, kl)[0], torch.full((2, 2), 1.5))


def test_map_optimum_of_the_mean_lies_between_the_fit_and_the_target(problem):
    # Gradient zero: (mean - fit) + weight (mean - target) = 0 under the target's stddev.
    _, target, noise, weights, state_weights = problem
    fit = (weights.unsqueeze(-1) * (target.mean + target.stddev * noise)).sum(0)
    weight = 4.0
    online = Gaussian(((fit + weight * target.mean) / (1 + weight)).detach().requires_grad_(), target.stddev)
    moments = noise_moments(weights, noise)
    step = decoupled_mstep(DiagonalFamily, online, target, moments, price(weight), price(0.0), state_weights)
    gradient = torch.autograd.grad(step.loss_policy_mean + step.penalty_mean.loss_kl, online.mean)[0]
    assert gradient.abs().max().item() < 1e-12
