"""Discrete actions: closed forms, the prior in the weights, reductions to sampled actions, gradients, stability."""

import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from mpo_robot.losses import categorical_policy as discrete
from mpo_robot.losses.constraint import bound, price
from mpo_robot.losses.estep import nonparametric_estep

S, K = 6, 5


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q_values, target, online = 3 * draw(S, K), draw(S, K).requires_grad_(), draw(S, K).requires_grad_()
    return q_values.requires_grad_(), target, online, torch.softmax(draw(S), dim=0)


def temperature(value):
    return torch.tensor([value], dtype=torch.float64, requires_grad=True)


def test_matches_torch_distributions(problem):
    q_values, target, online, _ = problem
    action = torch.arange(S) % K
    torch.testing.assert_close(discrete.log_prob(online, action), Categorical(logits=online).log_prob(action))
    torch.testing.assert_close(discrete.entropy(online), Categorical(logits=online).entropy())
    # Pitfall 7: KL(target || online).
    wanted = kl_divergence(Categorical(logits=target), Categorical(logits=online))
    torch.testing.assert_close(discrete.kl(target, online), wanted)
    values = (Categorical(logits=target).probs * q_values).sum(-1)
    torch.testing.assert_close(discrete.expected_value(q_values, target), values)


def test_estep_by_hand():
    # Prior (3/4, 1/4), Q = (0, ln 9) at eta = 1: unnormalised 3/4, 9/4, so q = (1/4, 3/4) and the normaliser is 3.
    logits = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
    q_values = torch.tensor([[0.0, math.log(9.0)]], dtype=torch.float64)
    result = discrete.categorical_estep(q_values, logits, temperature(1.0), 0.1, torch.ones(1).double())
    assert result.normalized_weights.flatten().tolist() == pytest.approx([0.25, 0.75])
    assert result.loss_temperature.item() == pytest.approx(0.1 + math.log(3.0))
    assert result.kl_nonparametric.item() == pytest.approx(0.25 * math.log(1 / 3) + 0.75 * math.log(3.0))


def test_the_prior_is_in_the_weights():
    # Pitfall 8: softmax(Q / eta) alone forgets the policy. With equal values the weights are the policy itself.
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    result = discrete.categorical_estep(torch.zeros(1, 3), logits, torch.ones(1), 0.1, torch.ones(1))
    torch.testing.assert_close(result.normalized_weights, torch.softmax(logits, -1))
    assert result.kl_nonparametric.item() == pytest.approx(0.0, abs=1e-6)


def test_a_uniform_prior_gives_the_sampled_formulas(problem):
    q_values, _, _, state_weights = problem
    ours, theirs = temperature(0.7), temperature(0.7)
    left = discrete.categorical_estep(q_values, torch.full((S, K), 4.0).double(), ours, 0.1, state_weights)
    right = nonparametric_estep(q_values.T, theirs, 0.1, state_weights)
    torch.testing.assert_close(left.normalized_weights, right.normalized_weights.T)
    torch.testing.assert_close(left.kl_nonparametric, right.kl_nonparametric)
    left.loss_temperature.backward()
    right.loss_temperature.backward()
    torch.testing.assert_close(left.loss_temperature, right.loss_temperature)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_prior_of_fractions_equals_repeated_samples():
    # Prior (2/3, 1/3) over two actions is the same as three samples of which two are the first action.
    logits = torch.tensor([[2.0, 1.0]], dtype=torch.float64).log()
    q_values = torch.tensor([[0.3, 1.1]], dtype=torch.float64)
    left = discrete.categorical_estep(q_values, logits, temperature(0.5), 0.1, torch.ones(1).double())
    samples = torch.tensor([[0.3], [0.3], [1.1]], dtype=torch.float64)
    right = nonparametric_estep(samples, temperature(0.5), 0.1, torch.ones(1).double())
    assert left.normalized_weights[0, 0].item() == pytest.approx(right.normalized_weights[:2].sum().item())
    assert left.loss_temperature.item() == pytest.approx(right.loss_temperature.item())


@pytest.mark.parametrize("epsilon", [1e-4, 0.1, 0.5])
def test_at_the_exact_temperature_the_kl_equals_epsilon_and_the_dual_is_flat(problem, epsilon):
    q_values, target, _, state_weights = problem
    eta = discrete.categorical_exact_temperature(q_values, target, epsilon, state_weights).requires_grad_()
    result = discrete.categorical_estep(q_values, target, eta, epsilon, state_weights)
    assert (state_weights @ result.kl_nonparametric).item() == pytest.approx(epsilon, rel=1e-6)
    result.loss_temperature.backward()
    assert abs(eta.grad.item()) < 1e-6 * epsilon


def test_the_slope_of_the_dual_is_the_unspent_kl(problem):
    q_values, target, _, state_weights = problem
    eta = temperature(1.3)
    result = discrete.categorical_estep(q_values, target, eta, 0.2, state_weights)
    result.loss_temperature.backward()
    assert eta.grad.item() == pytest.approx(0.2 - (state_weights @ result.kl_nonparametric).item())
    # Pitfall 5.
    assert q_values.grad is None
    assert target.grad is None
    assert not result.normalized_weights.requires_grad
    assert not result.kl_nonparametric.requires_grad


def test_the_soft_form_maximises_value_minus_the_price_of_the_kl(problem):
    q_values, target, _, state_weights = problem
    price, log_prior = 0.8, torch.log_softmax(target, -1)

    def objective(weights):
        return ((weights * q_values).sum(-1) - price * (weights * (weights.log() - log_prior)).sum(-1)).sum().item()

    best = discrete.categorical_estep(q_values, target, torch.tensor(price), 0.1, state_weights)
    assert not best.loss_temperature.requires_grad
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        other = best.normalized_weights * (0.1 * torch.randn(S, K, generator=generator)).exp()
        assert objective(other / other.sum(-1, keepdim=True)) < objective(best.normalized_weights)


def test_mstep_by_hand_and_its_gradients(problem):
    _, target, online, state_weights = problem
    weights = torch.softmax(torch.randn(S, K, generator=torch.Generator().manual_seed(2)).double(), -1)
    weights.requires_grad_()
    alpha = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    step = discrete.categorical_mstep(online, target, weights, bound(alpha, 0.01), state_weights)
    log_online = torch.log_softmax(online, -1)
    assert step.loss_policy.item() == pytest.approx(-(state_weights @ (weights * log_online).sum(-1)).item())
    divergence = (state_weights @ discrete.kl(target, online)).item()
    assert step.penalty.kl.tolist() == pytest.approx([divergence])
    assert step.penalty.loss_kl.item() == pytest.approx(2 * divergence)
    assert step.penalty.loss_alpha.item() == pytest.approx(2 * (0.01 - divergence))
    # d/d logits of a cross-entropy is pi - q; of the KL penalty alpha (pi - pi_target).
    scale = state_weights.unsqueeze(-1)
    gradient = torch.autograd.grad(step.loss_policy, online, retain_graph=True)[0]
    torch.testing.assert_close(gradient, scale * (torch.softmax(online, -1) - weights))
    gradient = torch.autograd.grad(step.penalty.loss_kl, online, retain_graph=True)[0]
    torch.testing.assert_close(gradient, scale * 2 * (torch.softmax(online, -1) - torch.softmax(target, -1)))
    # Pitfall 5.
    leaks = torch.autograd.grad(
        step.loss_policy + step.penalty.loss_kl, [alpha, target, weights], allow_unused=True, retain_graph=True
    )
    assert all(leak is None for leak in leaks)
    assert torch.autograd.grad(step.penalty.loss_alpha, alpha)[0].item() == pytest.approx(0.01 - divergence)


def test_the_soft_mstep_is_the_hard_one_with_a_constant_multiplier(problem):
    _, target, online, state_weights = problem
    weights = torch.softmax(target.detach() + 1.0, -1)
    soft = discrete.categorical_mstep(online, target, weights, price(3.0), state_weights)
    hard = discrete.categorical_mstep(online, target, weights, bound(3.0 * torch.ones(1).double(), 0.1), state_weights)
    assert soft.loss_policy.item() == hard.loss_policy.item()
    assert soft.penalty.loss_kl.item() == pytest.approx(hard.penalty.loss_kl.item())
    assert soft.penalty.loss_alpha.item() == 0.0


def test_the_map_optimum_is_the_mixture_of_weights_and_target(problem):
    _, target, _, state_weights = problem
    weights, cost = torch.softmax(torch.arange(K).double(), 0).expand(S, K), 3.0
    mixture = (weights + cost * torch.softmax(target.detach(), -1)) / (1 + cost)
    online = mixture.log().requires_grad_()
    step = discrete.categorical_mstep(online, target, weights, price(cost), state_weights)
    gradient = torch.autograd.grad(step.loss_policy + step.penalty.loss_kl, online)[0]
    assert gradient.abs().max().item() < 1e-12


def test_extreme_logits_and_values_stay_finite():
    logits = torch.tensor([[0.0, -200.0, 200.0], [1e4, 0.0, -1e4]], requires_grad=True)
    q_values = torch.tensor([[1e6, -1e6, 0.0], [0.0, 1e6, 1e6]])
    eta = torch.tensor([1e-3], requires_grad=True)
    half = torch.tensor([0.5, 0.5])
    estep = discrete.categorical_estep(q_values, logits, eta, 0.1, half)
    step = discrete.categorical_mstep(logits, logits.detach().flip(-1), estep.normalized_weights, bound(eta, 0.1), half)
    loss = estep.loss_temperature + step.loss_policy + step.penalty.loss_kl + step.penalty.loss_alpha
    loss = loss + discrete.entropy(logits).sum()
    loss.backward()
    assert all(torch.isfinite(item).all() for item in (*estep, loss, logits.grad, eta.grad))


def test_masked_states_do_not_count_and_shapes_are_checked(problem):
    q_values, target, online, _ = problem
    first = torch.zeros(S, dtype=torch.float64)
    first[0] = 1.0
    one = torch.ones(1, dtype=torch.float64)
    left = discrete.categorical_estep(q_values, target, one, 0.1, first)
    right = discrete.categorical_estep(q_values[:1], target[:1], one, 0.1, one)
    assert left.loss_temperature.item() == pytest.approx(right.loss_temperature.item())
    weights = left.normalized_weights
    left = discrete.categorical_mstep(online, target, weights, bound(one, 0.1), first)
    right = discrete.categorical_mstep(online[:1], target[:1], weights[:1], bound(one, 0.1), one)
    assert left.loss_policy.item() == pytest.approx(right.loss_policy.item())
    assert left.penalty.kl.item() == pytest.approx(right.penalty.kl.item())
    with pytest.raises(ValueError, match="q_values"):
        discrete.categorical_estep(q_values.T, target, one, 0.1, first)
