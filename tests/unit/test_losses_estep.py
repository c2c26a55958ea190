"""E-step: closed forms, the optimum of the dual, and where gradients must not go."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize

from mpo_robot.losses.estep import nonparametric_estep, out_of_bounds_cost
from mpo_robot.losses.exact_dual import exact_temperature


def uniform(states: int) -> torch.Tensor:
    return torch.full((states,), 1.0 / states)


def temperature(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64, requires_grad=True)


def test_one_sample_has_weight_one_and_the_dual_slope_is_epsilon():
    eta = temperature(0.7)
    result = nonparametric_estep(torch.randn(1, 5, dtype=torch.float64), eta, 0.1, uniform(5).double())
    result.loss_temperature.backward()
    assert torch.equal(result.normalized_weights, torch.ones(1, 5, dtype=torch.float64))
    # g = eta eps + mean Q, so dg/d eta = eps
    assert eta.grad.item() == pytest.approx(0.1, abs=1e-12)


def test_equal_values_give_uniform_weights_and_loss_eta_epsilon():
    eta = temperature(2.0)
    result = nonparametric_estep(torch.zeros(8, 3, dtype=torch.float64), eta, 0.1, uniform(3).double())
    assert torch.allclose(result.normalized_weights, torch.full((8, 3), 1 / 8, dtype=torch.float64))
    assert result.loss_temperature.item() == pytest.approx(0.2)
    assert result.kl_nonparametric.abs().max().item() < 1e-9


def test_two_samples_by_hand():
    # Q = (0, ln 3) at eta = 1: weights 1/4, 3/4; dual = eps + log((1 + 3) / 2)
    q_values = torch.tensor([[0.0], [math.log(3.0)]], dtype=torch.float64)
    result = nonparametric_estep(q_values, temperature(1.0), 0.1, torch.ones(1, dtype=torch.float64))
    assert result.normalized_weights.flatten().tolist() == pytest.approx([0.25, 0.75])
    assert result.loss_temperature.item() == pytest.approx(0.1 + math.log(2.0))
    assert result.kl_nonparametric.item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))


def test_adding_a_constant_per_state_leaves_the_weights():
    q_values = torch.randn(6, 4, dtype=torch.float64)
    shift = torch.tensor([0.0, 5.0, -100.0, 1e3], dtype=torch.float64)
    first = nonparametric_estep(q_values, temperature(0.5), 0.1, uniform(4).double())
    second = nonparametric_estep(q_values + shift, temperature(0.5), 0.1, uniform(4).double())
    assert torch.allclose(first.normalized_weights, second.normalized_weights, atol=1e-10)


def test_each_state_is_normalised_by_itself_and_uses_its_own_maximum():
    # Pitfall 1: a maximum taken from the first state only overflows the others.
    q_values = torch.tensor([[0.0, 1e4], [1.0, 1e4 + 1.0]], dtype=torch.float32)
    result = nonparametric_estep(q_values, torch.tensor([1.0]), 0.1, uniform(2))
    assert torch.allclose(result.normalized_weights[:, 0], result.normalized_weights[:, 1], atol=1e-3)
    assert torch.isfinite(result.loss_temperature)


def test_huge_values_and_tiny_temperatures_stay_finite():
    q_values = torch.tensor([[1e6, -1e6], [-1e6, 1e6]])
    eta = torch.tensor([1e-6], requires_grad=True)
    result = nonparametric_estep(q_values, eta, 0.1, uniform(2))
    result.loss_temperature.backward()
    assert torch.isfinite(result.normalized_weights).all()
    assert torch.isfinite(result.loss_temperature)
    assert torch.isfinite(eta.grad).all()


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 0.5])
def test_at_the_optimum_of_the_dual_the_kl_equals_epsilon(epsilon):
    rng = np.random.default_rng(1)
    q_values = torch.tensor(rng.normal(size=(32, 10)))

    def dual(eta: float) -> float:
        return nonparametric_estep(q_values, temperature(eta), epsilon, uniform(10).double()).loss_temperature.item()

    best = optimize.minimize_scalar(dual, bounds=(1e-3, 100.0), method="bounded", options={"xatol": 1e-10}).x
    kl = nonparametric_estep(q_values, temperature(best), epsilon, uniform(10).double()).kl_nonparametric
    assert kl.mean().item() == pytest.approx(epsilon, rel=1e-3)


def test_gradient_descent_on_the_dual_reaches_the_bound():
    rng = np.random.default_rng(2)
    q_values = torch.tensor(rng.normal(size=(20, 64)))
    raw = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=0.02)
    for _ in range(2000):
        optimizer.zero_grad()
        result = nonparametric_estep(q_values, torch.nn.functional.softplus(raw), 0.1, uniform(64).double())
        result.loss_temperature.backward()
        optimizer.step()
    assert result.kl_nonparametric.mean().item() == pytest.approx(0.1, rel=0.01)


def test_no_gradient_reaches_the_values_and_weights_carry_none():
    q_values = torch.randn(4, 3, requires_grad=True)
    eta = torch.tensor([1.0], requires_grad=True)
    result = nonparametric_estep(q_values, eta, 0.1, uniform(3))
    assert not result.normalized_weights.requires_grad
    assert not result.kl_nonparametric.requires_grad
    result.loss_temperature.backward()
    assert q_values.grad is None


def test_masked_states_do_not_count_in_the_dual():
    q_values = torch.randn(5, 2, dtype=torch.float64)
    both = nonparametric_estep(q_values, temperature(1.0), 0.1, torch.tensor([1.0, 0.0], dtype=torch.float64))
    alone = nonparametric_estep(q_values[:, :1], temperature(1.0), 0.1, torch.ones(1, dtype=torch.float64))
    assert both.loss_temperature.item() == pytest.approx(alone.loss_temperature.item())


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="q_values"):
        nonparametric_estep(torch.zeros(4, 3), torch.ones(1), 0.1, uniform(4))


def test_out_of_bounds_cost_is_the_negative_distance():
    # Pitfall 10: the cost is linear in the distance; two points pin the formula.
    actions = torch.tensor([[[0.5, -1.0]], [[4.0, 5.0]], [[7.0, 9.0]]])
    assert out_of_bounds_cost(actions).flatten().tolist() == pytest.approx([0.0, -5.0, -10.0])


def test_the_soft_form_maximises_value_minus_the_price_of_the_kl():
    rng = np.random.default_rng(4)
    q_values, price = torch.tensor(rng.normal(size=(7, 3))), 0.4

    def objective(weights):
        return ((weights * q_values).sum(0) - price * (weights * torch.log(7 * weights)).sum(0)).sum().item()

    soft = nonparametric_estep(q_values, torch.tensor(price), 0.1, uniform(3).double())
    best = objective(soft.normalized_weights)
    for _ in range(100):
        other = soft.normalized_weights * torch.tensor(np.exp(0.1 * rng.normal(size=(7, 3))))
        assert objective(other / other.sum(0)) < best
    # Its optimum is the price times the mean of log E_pi exp(Q / price).
    assert best == pytest.approx(price * (torch.logsumexp(q_values / price, 0) - math.log(7)).sum().item())


def test_the_exact_temperature_spends_the_bound_and_the_dual_is_flat_there():
    q_values = torch.tensor(np.random.default_rng(5).normal(size=(10, 6)))
    exact = exact_temperature(q_values, 0.1, uniform(6).double())
    hard = nonparametric_estep(q_values, exact, 0.1, uniform(6).double())
    assert hard.kl_nonparametric.mean().item() == pytest.approx(0.1, rel=1e-6)
    assert not hard.loss_temperature.requires_grad
    slope = temperature(exact.item())
    nonparametric_estep(q_values, slope, 0.1, uniform(6).double()).loss_temperature.backward()
    assert abs(slope.grad.item()) < 1e-9  # the learned temperature would stop there
