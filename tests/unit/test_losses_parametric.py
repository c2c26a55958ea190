"""The parametric variant: unbiased gradients, the E-step's KL, reductions, and a bandit solved under its bounds."""

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from mpo_robot.losses import categorical_policy, gaussian
from mpo_robot.losses.constraint import bound
from mpo_robot.losses.families import DiagonalFamily, FullFamily
from mpo_robot.losses.full_covariance import FullGaussian
from mpo_robot.losses.gaussian import Gaussian
from mpo_robot.losses.parametric import (
    advantage_weights,
    categorical_parametric_step,
    importance_loss,
    parametric_step,
)

S, A, N = 5, 3, 8
ONE = torch.ones(1, dtype=torch.float64)
LIMITS = (bound(ONE, 0.01), bound(2 * ONE, 0.02))


def draw(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    online = Gaussian(draw(generator, S, A).requires_grad_(), draw(generator, S, A).exp().requires_grad_())
    target = Gaussian(draw(generator, S, A).requires_grad_(), draw(generator, S, A).exp().requires_grad_())
    return online, target, draw(generator, N, S, A), draw(generator, N, S), torch.softmax(draw(generator, S), dim=0)


def gradients(loss, policy):
    return torch.autograd.grad(loss, list(policy), retain_graph=True)


def test_advantage_weights_by_hand():
    weights = advantage_weights(torch.tensor([[1.0, 0.0], [2.0, 0.0], [6.0, 3.0]]))
    assert weights.tolist() == [[-1.0, -0.5], [-0.5, -0.5], [1.5, 1.0]]
    with pytest.raises(ValueError, match="2 samples"):
        advantage_weights(torch.zeros(1, 4))


@pytest.mark.parametrize("estimator", ["likelihood_ratio", "importance"])
def test_the_gradient_is_that_of_the_expected_value_even_from_two_samples(estimator):
    # Q = -|a|^2 / 2 under N(m, s): E Q = -(m^2 + s^2) / 2 per dimension, gradient -m and -s. A baseline that divides
    # by N instead of N - 1 gives half of it here.
    states, mean, stddev = 200_000, torch.tensor([0.8, -0.3]).double(), torch.tensor([0.5, 1.2]).double()
    noise = draw(torch.Generator().manual_seed(1), 2, states, 2)
    q_values = -0.5 * (mean + stddev * noise).square().sum(-1)
    parameters = Gaussian(mean.clone().requires_grad_(), stddev.clone().requires_grad_())
    online = Gaussian(*(item.expand(states, 2) for item in parameters))
    weights = torch.full((states,), 1 / states, dtype=torch.float64)
    step = parametric_step(DiagonalFamily, online, online, online, noise, q_values, *LIMITS, weights, estimator)
    got = gradients(step.loss_policy_mean, parameters)
    torch.testing.assert_close(got[0], mean, atol=0.02, rtol=0.0)
    torch.testing.assert_close(got[1], stddev, atol=0.04, rtol=0.0)


def test_importance_estimates_the_advantage_of_a_moved_policy():
    states, mean, stddev = 100_000, 0.4, 0.8
    noise = draw(torch.Generator().manual_seed(2), 4, states, 1)
    sampled = Gaussian(torch.zeros(states, 1).double(), torch.ones(states, 1).double())
    q_values = -0.5 * noise.square().sum(-1)
    parameters = Gaussian(*(torch.tensor([x]).double().requires_grad_() for x in (mean, stddev)))
    online = Gaussian(*(item.expand(states, 1) for item in parameters))
    weights = torch.full((states,), 1 / states, dtype=torch.float64)
    step = parametric_step(DiagonalFamily, online, sampled, sampled, noise, q_values, *LIMITS, weights, "importance")
    # E_q A = -(m^2 + s^2) / 2 + 1 / 2
    assert step.loss_policy_mean.item() == pytest.approx(0.5 * (mean**2 + stddev**2 - 1.0), abs=0.01)
    got = torch.cat(gradients(step.loss_policy_mean, parameters))
    torch.testing.assert_close(got, torch.tensor([mean, stddev]).double(), atol=0.02, rtol=0.0)


def test_both_estimators_have_the_same_gradient_at_the_sampled_policy(problem):
    online, target, noise, q_values, state_weights = problem
    arguments = (online, target, online, noise, q_values, *LIMITS, state_weights)
    first, second = (
        parametric_step(DiagonalFamily, *arguments),
        parametric_step(DiagonalFamily, *arguments, "importance"),
    )
    assert second.loss_policy_mean.item() == pytest.approx(0.0, abs=1e-12)
    for left, right in zip(gradients(first.loss_policy_mean, online), gradients(second.loss_policy_mean, online)):
        torch.testing.assert_close(left, right)


def test_likelihood_ratio_equals_n_log_densities(problem):
    online, target, noise, q_values, state_weights = problem
    step = parametric_step(DiagonalFamily, online, target, target, noise, q_values, *LIMITS, state_weights)
    actions = (target.mean + target.stddev * noise).detach()
    advantage = (q_values - q_values.mean(0)) / (N - 1)
    plain = -(state_weights * (advantage * gaussian.log_prob(*online, actions)).sum(0)).sum()
    assert step.loss_policy_mean.item() == pytest.approx(plain.item())
    for left, right in zip(gradients(step.loss_policy_mean, online), gradients(plain, online)):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("estimator", ["likelihood_ratio", "importance"])
def test_a_value_per_state_changes_nothing(problem, estimator):
    online, target, noise, q_values, state_weights = problem
    shift = torch.linspace(-100.0, 100.0, S)
    first, second = (
        parametric_step(
            DiagonalFamily, online, target, target, noise, values, *LIMITS, state_weights, estimator
        ).loss_policy_mean
        for values in (q_values, q_values + shift)
    )
    torch.testing.assert_close(first, second)


def test_kls_have_the_direction_of_the_estep(problem):
    # Pitfall 7: KL(q || pi_target) here, with q online; the M-step has KL(pi_target || pi_online).
    online, target, noise, q_values, state_weights = problem
    each = (bound(torch.ones(A).double(), 0.1), bound(torch.ones(A).double(), 0.1))
    step = parametric_step(DiagonalFamily, online, target, online, noise, q_values, *each, state_weights)
    mean = kl_divergence(Normal(online.mean, target.stddev), Normal(target.mean, target.stddev))
    stddev = kl_divergence(Normal(target.mean, online.stddev), Normal(target.mean, target.stddev))
    torch.testing.assert_close(step.penalty_mean.kl, (state_weights @ mean).detach())
    torch.testing.assert_close(step.penalty_stddev.kl, (state_weights @ stddev).detach())
    one = parametric_step(DiagonalFamily, online, target, online, noise, q_values, *LIMITS, state_weights)
    assert one.penalty_stddev.kl.tolist() == pytest.approx([(state_weights @ stddev).sum().item()])
    assert one.penalty_stddev.loss_kl.item() == pytest.approx(2 * (state_weights @ stddev).sum().item())


def test_gradients_go_to_the_online_policy_only(problem):
    # Pitfalls 5 and 6.
    online, target, noise, q_values, state_weights = problem
    q_values.requires_grad_()
    alphas = torch.ones(2, A, dtype=torch.float64, requires_grad=True)
    limits = (bound(alphas[0], 0.1), bound(alphas[1], 0.1))
    for estimator in ("likelihood_ratio", "importance"):
        step = parametric_step(
            DiagonalFamily, online, target, target, noise, q_values, *limits, state_weights, estimator
        )
        loss = step.loss_policy_mean + step.penalty_mean.loss_kl + step.penalty_stddev.loss_kl
        leaks = torch.autograd.grad(loss, [alphas, q_values, *target], allow_unused=True, retain_graph=True)
        assert all(leak is None for leak in leaks)
        reached = torch.autograd.grad(step.penalty_mean.loss_kl, list(online), allow_unused=True, retain_graph=True)
        assert reached[1] is None
        reached = torch.autograd.grad(step.penalty_stddev.loss_kl, list(online), allow_unused=True, retain_graph=True)
        assert reached[0] is None
        slope = torch.autograd.grad(step.penalty_mean.loss_alpha, alphas, retain_graph=True)[0]
        torch.testing.assert_close(slope[0], 0.1 - step.penalty_mean.kl)


@pytest.mark.parametrize("estimator", ["likelihood_ratio", "importance"])
def test_diagonal_factors_give_the_diagonal_step(problem, estimator):
    online, target, noise, q_values, state_weights = problem
    wide = [FullGaussian(policy.mean, torch.diag_embed(policy.stddev)) for policy in (online, target)]
    each = (bound(torch.rand(A).double(), 0.1), bound(torch.rand(A).double(), 0.2))
    left = parametric_step(FullFamily, *wide, wide[1], noise, q_values, *each, state_weights, estimator)
    right = parametric_step(DiagonalFamily, online, target, target, noise, q_values, *each, state_weights, estimator)
    torch.testing.assert_close(left.penalty_mean.kl, right.penalty_mean.kl)
    torch.testing.assert_close(left.penalty_stddev.kl, right.penalty_stddev.kl)
    losses = [
        step.loss_policy_mean + step.penalty_mean.loss_kl + step.penalty_stddev.loss_kl + step.penalty_mean.loss_alpha
        for step in (left, right)
    ]
    assert losses[0].item() == pytest.approx(losses[1].item())
    for first, second in zip(gradients(losses[0], online), gradients(losses[1], online)):
        torch.testing.assert_close(first, second)


def test_full_kls_have_the_direction_of_the_estep():
    generator = torch.Generator().manual_seed(3)
    online, target = (
        FullGaussian(
            draw(generator, S, A), draw(generator, S, A, A).tril(-1) + torch.diag_embed(draw(generator, S, A).exp())
        )
        for _ in range(2)
    )
    state_weights = torch.full((S,), 1 / S, dtype=torch.float64)
    noise, q_values = draw(generator, N, S, A), draw(generator, N, S)
    step = parametric_step(FullFamily, online, target, online, noise, q_values, *LIMITS, state_weights)
    before = MultivariateNormal(target.mean, scale_tril=target.scale_tril)
    mean = kl_divergence(MultivariateNormal(online.mean, scale_tril=target.scale_tril), before)
    covariance = kl_divergence(MultivariateNormal(target.mean, scale_tril=online.scale_tril), before)
    assert step.penalty_mean.kl.item() == pytest.approx((state_weights @ mean).item())
    assert step.penalty_stddev.kl.item() == pytest.approx((state_weights @ covariance).item())


def test_categorical_step_by_hand_and_its_gradient():
    generator = torch.Generator().manual_seed(4)
    online, target = draw(generator, S, 4).requires_grad_(), draw(generator, S, 4).requires_grad_()
    q_values, state_weights = draw(generator, S, 4).requires_grad_(), torch.softmax(draw(generator, S), 0)
    alpha = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    step = categorical_parametric_step(online, target, q_values, bound(alpha, 0.1), state_weights)
    policy, before = torch.softmax(online, -1), torch.softmax(target, -1)
    gain = ((policy - before) * q_values).sum(-1)
    assert step.loss_policy.item() == pytest.approx(-(state_weights @ gain).item())
    gradient = torch.autograd.grad(step.loss_policy, online, retain_graph=True)[0]
    centered = q_values - (policy * q_values).sum(-1, keepdim=True)
    torch.testing.assert_close(gradient, -state_weights.unsqueeze(-1) * policy * centered)
    wanted = state_weights @ categorical_policy.kl(online, target)
    assert step.penalty.kl.item() == pytest.approx(wanted.item())
    assert step.penalty.loss_kl.item() == pytest.approx(2 * wanted.item())
    leaks = torch.autograd.grad(
        step.loss_policy + step.penalty.loss_kl, [target, q_values, alpha], allow_unused=True, retain_graph=True
    )
    assert all(leak is None for leak in leaks)


def test_sampled_and_exact_categorical_steps_agree():
    generator = torch.Generator().manual_seed(5)
    online, target, q_values = draw(generator, 1, 4).requires_grad_(), draw(generator, 1, 4), draw(generator, 1, 4)
    exact = categorical_parametric_step(online, target, q_values, bound(ONE, 0.1), ONE).loss_policy
    action = torch.multinomial(torch.softmax(target[0], -1), 400_000, replacement=True, generator=generator)
    log_probs = [categorical_policy.log_prob(logits.expand(400_000, 4), action) for logits in (online, target)]
    sampled = importance_loss(*(item.unsqueeze(-1) for item in log_probs), q_values[0, action].unsqueeze(-1), ONE)
    assert sampled.item() == pytest.approx(exact.item(), abs=0.02)
    first, second = (torch.autograd.grad(loss, online)[0] for loss in (sampled, exact))
    torch.testing.assert_close(first, second, atol=0.02, rtol=0.0)


def climb(estimator, epsilon, updates=300):
    """Q(a) = a_0, uphill for ever; target policy refreshed every 10 updates. Last mean and KLs of the second half."""
    generator = torch.Generator().manual_seed(6)
    mean, raw = torch.zeros(1, 2).double().requires_grad_(), torch.full((1, 2), -0.7).double().requires_grad_()
    raw_alpha = torch.zeros(2, 1).double().requires_grad_()
    optimizer = torch.optim.Adam([{"params": [mean, raw], "lr": 0.02}, {"params": [raw_alpha], "lr": 0.1}])
    kls = []
    for update in range(updates):
        online = Gaussian(mean, raw.exp())
        if update % 10 == 0:
            target = Gaussian(mean.detach().clone(), raw.detach().exp())
        sampled_from = online if estimator == "likelihood_ratio" else target
        noise = draw(generator, 32, 1, 2)
        q_values = (sampled_from.mean + sampled_from.stddev * noise)[..., 0]
        alpha = torch.nn.functional.softplus(raw_alpha)
        limits = (bound(alpha[0], epsilon), bound(alpha[1], epsilon))
        step = parametric_step(DiagonalFamily, online, target, sampled_from, noise, q_values, *limits, ONE, estimator)
        losses = [step.loss_policy_mean, *(part for p in step[2:] for part in (p.loss_kl, p.loss_alpha))]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        kls.append(step.penalty_mean.kl.item())
    return mean.detach()[0], kls[updates // 2 :]


@pytest.mark.parametrize("estimator", ["likelihood_ratio", "importance"])
def test_the_policy_climbs_as_fast_as_its_bound_allows(estimator):
    mean, kls = climb(estimator, 0.005)
    assert mean[0].item() > 3.0
    assert abs(mean[1].item()) < 0.1 * mean[0].item()
    assert sum(kls) / len(kls) == pytest.approx(0.005, rel=0.2)
    _, free = climb(estimator, 10.0)
    assert sum(free) > 2 * sum(kls)  # the bound makes the difference
