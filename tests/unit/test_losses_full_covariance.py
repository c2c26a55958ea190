"""Full covariances: torch.distributions as reference, reductions to diagonal Gaussians, ill-conditioned factors."""

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from mpo_robot.losses import full_covariance as full
from mpo_robot.losses import gaussian
from mpo_robot.losses.constraint import KLPenalty, bound, price
from mpo_robot.losses.families import DiagonalFamily, FullFamily, decoupled_kls
from mpo_robot.losses.full_covariance import FullGaussian, full_noise_moments
from mpo_robot.losses.gaussian import Gaussian, noise_moments
from mpo_robot.losses.mstep import decoupled_mstep, single_mstep

S, A, N = 5, 4, 30


def draw(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def policy(generator, scale=1.0):
    """Mean and factor as leaves; the factor's upper triangle is zero as a network would build it."""
    factor = scale * (draw(generator, S, A, A).tril(-1) + torch.diag_embed(draw(generator, S, A).exp()))
    return FullGaussian(draw(generator, S, A).requires_grad_(), factor.requires_grad_())


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    online, target, noise = policy(generator), policy(generator), draw(generator, N, S, A)
    weights = torch.softmax(2 * draw(generator, N, S), dim=0)
    return online, target, noise, weights, torch.softmax(draw(generator, S), dim=0)


@pytest.fixture
def diagonal():
    generator = torch.Generator().manual_seed(1)
    online = Gaussian(draw(generator, S, A).requires_grad_(), draw(generator, S, A).exp().requires_grad_())
    target = Gaussian(draw(generator, S, A), draw(generator, S, A).exp())
    noise, weights = draw(generator, N, S, A), torch.softmax(draw(generator, N, S), dim=0)
    return online, target, noise, weights, torch.softmax(draw(generator, S), dim=0)


def widen(policy):
    return FullGaussian(policy.mean, torch.diag_embed(policy.stddev))


def reference(policy):
    return MultivariateNormal(policy.mean, scale_tril=policy.scale_tril)


def gradients(loss, policy):
    return torch.autograd.grad(loss, list(policy), retain_graph=True)


def lower(gradient):
    """Of a factor's gradient only the lower triangle has a meaning."""
    return gradient.tril() if gradient.ndim == 3 else gradient


def assert_same(left, right, policy):
    assert left.item() == pytest.approx(right.item(), rel=1e-10)
    for first, second in zip(gradients(left, policy), gradients(right, policy)):
        torch.testing.assert_close(
            first.tril() if first.ndim == 3 else first, second.tril() if second.ndim == 3 else second
        )


def test_density_entropy_and_samples_match_torch_distributions(problem):
    online, _, noise, _, _ = problem
    actions = full.sample(online, noise)
    torch.testing.assert_close(actions[3, 2], online.mean[2] + online.scale_tril[2] @ noise[3, 2])
    torch.testing.assert_close(full.log_prob(online, actions), reference(online).log_prob(actions))
    torch.testing.assert_close(full.log_prob(online, actions[0]), reference(online).log_prob(actions[0]))
    torch.testing.assert_close(full.entropy(online.scale_tril), reference(online).entropy())
    torch.testing.assert_close(full.stddev(online.scale_tril), reference(online).stddev)


def test_kls_match_torch_distributions_in_the_right_direction(problem):
    online, target, _, _, _ = problem
    torch.testing.assert_close(
        full.coupled_kl(online, target).sum(-1), kl_divergence(reference(target), reference(online))
    )
    kls = decoupled_kls(FullFamily, online, target)
    mean = kl_divergence(reference(target), reference(FullGaussian(online.mean, target.scale_tril)))
    covariance = kl_divergence(reference(target), reference(FullGaussian(target.mean, online.scale_tril)))
    torch.testing.assert_close(kls.mean.sum(-1), mean)
    torch.testing.assert_close(kls.covariance.sum(-1), covariance)
    # Pitfall 7: the other direction is another number.
    other = kl_divergence(reference(online), reference(target))
    assert not torch.allclose(full.coupled_kl(online, target).sum(-1), other)
    assert (kls.covariance >= 0).all()


def test_kl_is_zero_at_the_target(problem):
    online, _, _, _, _ = problem
    kls = decoupled_kls(FullFamily, online, online)
    for kl in (*kls, full.coupled_kl(online, online)):
        assert kl.abs().max().item() < 1e-12


def test_moments_by_hand():
    noise = torch.tensor([[[1.0, 2.0]], [[3.0, -1.0]]])
    moments = full_noise_moments(torch.tensor([[0.25], [0.75]]), noise)
    assert moments.first.tolist() == [[2.5, -0.25]]
    assert moments.second.tolist() == [[[7.0, -1.75], [-1.75, 1.75]]]
    assert moments.total == 1.0


def test_decoupled_likelihood_equals_n_log_densities(problem):
    online, target, noise, weights, state_weights = problem
    actions, fixed = full.sample(target, noise).detach(), FullGaussian(*(item.detach() for item in target))
    for total in (1.0, 2.0):
        got = full.weighted_likelihood(online, target, full_noise_moments(total * weights, noise, total), state_weights)
        for loss, policy in (
            (got.loss_mean, FullGaussian(online.mean, fixed.scale_tril)),
            (got.loss_stddev, FullGaussian(fixed.mean, online.scale_tril)),
        ):
            plain = -(state_weights * (total * weights * reference(policy).log_prob(actions)).sum(0)).sum()
            assert loss.item() == pytest.approx(plain.item())
            left = torch.autograd.grad(loss, list(online), retain_graph=True, allow_unused=True)
            right = torch.autograd.grad(plain, list(online), retain_graph=True, allow_unused=True)
            for first, second in zip(left, right):  # Pitfall 6: each half reaches its own parameter only.
                assert (first is None) == (second is None)
                if first is not None:
                    torch.testing.assert_close(lower(first), lower(second))


def test_coupled_likelihood_equals_n_log_densities(problem):
    online, target, noise, weights, state_weights = problem
    actions = full.sample(target, noise).detach()
    for total in (1.0, 2.0):
        got = full.coupled_likelihood(online, target, full_noise_moments(total * weights, noise, total), state_weights)
        plain = -(state_weights * (total * weights * reference(online).log_prob(actions)).sum(0)).sum()
        assert_same(got, plain, online)


def test_the_optimum_is_the_weighted_covariance_of_the_actions(problem):
    _, target, noise, weights, state_weights = problem
    actions = full.sample(target, noise).detach()
    mean = (weights.unsqueeze(-1) * actions).sum(0)
    centered = actions - mean
    covariance = torch.einsum("ns,nsa,nsb->sab", weights, centered, centered)
    best = FullGaussian(mean.requires_grad_(), torch.linalg.cholesky(covariance).requires_grad_())
    loss = full.coupled_likelihood(best, target, full_noise_moments(weights, noise), state_weights)
    for gradient in gradients(loss, best):
        assert lower(gradient).abs().max().item() < 1e-10


def test_diagonal_factors_give_the_diagonal_formulas(diagonal):
    online, target, noise, _, _ = diagonal
    wide_online, wide_target = widen(online), widen(target)
    close = torch.testing.assert_close
    actions = target.mean + target.stddev * noise
    close(full.sample(wide_target, noise), actions)
    close(full.log_prob(wide_online, actions), gaussian.log_prob(*online, actions))
    close(full.entropy(wide_online.scale_tril), gaussian.entropy(online.stddev))
    close(full.stddev(wide_online.scale_tril), online.stddev)
    kls = decoupled_kls(FullFamily, wide_online, wide_target)
    close(kls.mean, gaussian.kl_mean(*target, online.mean))
    close(kls.covariance, gaussian.kl_stddev(target.stddev, online.stddev))
    close(full.coupled_kl(wide_online, wide_target), gaussian.kl_full(*target, *online))


@pytest.mark.parametrize("size", [1, A])
def test_diagonal_factors_give_the_diagonal_msteps_and_gradients(diagonal, size):
    online, target, noise, weights, state_weights = diagonal
    wide = (FullFamily, widen(online), widen(target), full_noise_moments(weights, noise))
    plain = (DiagonalFamily, online, target, noise_moments(weights, noise))
    alphas = torch.rand(2, size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    steps = []
    for limits in ((bound(alphas[0], 0.1), bound(alphas[1], 0.2)), (price(0.3), price(0.4))):
        steps.append([decoupled_mstep(*problem, *limits, state_weights) for problem in (wide, plain)])
        steps.append([single_mstep(*problem, limits[0], state_weights) for problem in (wide, plain)])
    for left, right in steps:
        for name in left._fields:
            first, second = getattr(left, name), getattr(right, name)
            if isinstance(first, KLPenalty):
                torch.testing.assert_close(first.kl, second.kl)
                assert first.loss_alpha.item() == pytest.approx(second.loss_alpha.item())
                first, second = first.loss_kl, second.loss_kl
            assert first.item() == pytest.approx(second.item())
            fast = torch.autograd.grad(first, list(online), retain_graph=True, allow_unused=True)
            slow = torch.autograd.grad(second, list(online), retain_graph=True, allow_unused=True)
            for a, b in zip(fast, slow):
                assert (a is None) == (b is None)
                assert a is None or torch.allclose(a, b)


def test_no_gradient_reaches_the_target_policy(problem):
    online, target, noise, weights, state_weights = problem
    moments = full_noise_moments(weights, noise)
    alpha = torch.ones(A, dtype=torch.float64, requires_grad=True)
    limit = bound(alpha, 0.1)
    decoupled = decoupled_mstep(FullFamily, online, target, moments, limit, limit, state_weights)
    single = single_mstep(FullFamily, online, target, moments, limit, state_weights)
    loss = decoupled.loss_policy_mean + decoupled.loss_policy_stddev + single.loss_policy + single.penalty.loss_kl
    loss = loss + decoupled.penalty_mean.loss_kl + decoupled.penalty_stddev.loss_kl
    assert all(leak is None for leak in torch.autograd.grad(loss, [alpha, *target], allow_unused=True))


def test_ill_conditioned_factors_stay_finite_and_right():
    # Pitfall 14: all dimensions move together, condition number of the covariance 1e9. In float32 its determinant is
    # rounding noise of either sign.
    generator = torch.Generator().manual_seed(3)
    factor = 1e-4 * (torch.eye(A).double() + 0.3 * draw(generator, S, A, A).tril(-1))
    factor[:, :, 0] = 1.0
    other = factor @ (torch.eye(A).double() + 0.1 * draw(generator, S, A, A).tril())
    target = FullGaussian(torch.zeros(S, A).double(), factor)
    online = FullGaussian(0.3 * full.sample(target, draw(generator, 1, S, A))[0], other)
    short = [FullGaussian(*(item.float() for item in one)) for one in (online, target)]
    covariance = short[1].scale_tril @ short[1].scale_tril.mT
    naive = torch.logdet(covariance)
    exact_logdet = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(-1)
    assert not torch.allclose(naive.double(), exact_logdet, atol=1.0)  # not finite or far off
    torch.testing.assert_close(
        full.entropy(short[0].scale_tril).double(), full.entropy(online.scale_tril), rtol=1e-5, atol=1e-4
    )
    for got, want in zip(decoupled_kls(FullFamily, *short), decoupled_kls(FullFamily, online, target)):
        torch.testing.assert_close(got.double(), want, rtol=0.02, atol=1e-4)
    torch.testing.assert_close(full.coupled_kl(*short).double(), full.coupled_kl(online, target), rtol=0.02, atol=1e-4)
    assert (full.coupled_kl(*short) > -1e-6).all()


def test_gradients_of_ill_conditioned_factors_are_finite():
    generator = torch.Generator().manual_seed(4)
    scales = torch.tensor([1.0, 1e-3, 1e-6, 1e3])
    factor = torch.diag_embed(scales.expand(S, A)) + torch.randn(S, A, A, generator=generator).tril(-1)
    online = FullGaussian(torch.zeros(S, A).requires_grad_(), factor.requires_grad_())
    noise = torch.randn(N, S, A, generator=generator)
    moments = full_noise_moments(torch.full((N, S), 1 / N), noise)
    limit = bound(torch.ones(1), 0.1)
    step = decoupled_mstep(FullFamily, online, online, moments, limit, limit, torch.full((S,), 1 / S))
    loss = step.loss_policy_mean + step.loss_policy_stddev + step.penalty_mean.loss_kl + step.penalty_stddev.loss_kl
    assert all(torch.isfinite(item).all() for item in (loss, *gradients(loss, online)))
