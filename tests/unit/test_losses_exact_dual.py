"""The exact temperature against SciPy on random batches, its closed forms, and where there is no minimum."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize, special

from mpo_robot.losses.estep import nonparametric_estep
from mpo_robot.losses.exact_dual import MIN_TEMPERATURE, exact_temperature


def uniform(states):
    return torch.full((states,), 1.0 / states, dtype=torch.float64)


def log_dual(log_eta, q_values, epsilon, weights, log_prior):
    """g(eta) as printed, in NumPy."""
    eta = math.exp(log_eta)
    log_prior = np.full_like(q_values, -math.log(len(q_values))) if log_prior is None else log_prior
    return eta * (epsilon + weights @ special.logsumexp(q_values / eta + log_prior, axis=0))


def mean_kl(log_eta, q_values, weights, log_prior):
    log_prior = np.full_like(q_values, -math.log(len(q_values))) if log_prior is None else log_prior
    log_q = special.log_softmax(q_values / math.exp(log_eta) + log_prior, axis=0)
    return (np.exp(log_q) * (log_q - log_prior)).sum(axis=0) @ weights


def random_problem(seed):
    """Values over nine orders of magnitude, half of the cases with a prior, some with states of different scales."""
    rng = np.random.default_rng(seed)
    actions, states = int(rng.integers(2, 30)), int(rng.integers(1, 20))
    q_values = rng.normal(size=(actions, states)) * 10.0 ** rng.uniform(-4, 5)
    if seed % 3 == 0:
        q_values *= 10.0 ** rng.uniform(-1, 1, size=states)
    if seed % 5 == 0:
        q_values += 1e3
    log_prior = special.log_softmax(rng.normal(size=(actions, states)) * 2, axis=0) if seed % 2 else None
    largest = mean_kl(-30.0, q_values, np.full(states, 1 / states), log_prior)
    return q_values, float(largest * 10.0 ** rng.uniform(-4, -0.2)), rng.dirichlet(np.full(states, 5.0)), log_prior


@pytest.mark.parametrize("seed", range(60))
def test_matches_scipy(seed):
    q_values, epsilon, weights, log_prior = random_problem(seed)
    prior = None if log_prior is None else torch.from_numpy(log_prior)
    got = exact_temperature(torch.from_numpy(q_values), epsilon, torch.from_numpy(weights), prior)
    assert got.shape == (1,)
    scale = math.log(np.ptp(q_values))
    root = optimize.brentq(
        lambda x: mean_kl(x, q_values, weights, log_prior) - epsilon, scale - 12.0, scale + 12.0, xtol=1e-13
    )
    assert got.item() == pytest.approx(math.exp(root), rel=1e-6)
    assert mean_kl(math.log(got.item()), q_values, weights, log_prior) == pytest.approx(epsilon, rel=1e-6)
    # And the dual itself is minimal there, whatever its derivative is thought to be.
    best = optimize.minimize_scalar(
        log_dual,
        args=(q_values - q_values.max(axis=0), epsilon, weights, log_prior),
        bounds=(scale - 12.0, scale + 12.0),
        method="bounded",
        options={"xatol": 1e-10},
    )
    value = log_dual(math.log(got.item()), q_values - q_values.max(axis=0), epsilon, weights, log_prior)
    assert value == pytest.approx(best.fun, rel=1e-6, abs=1e-12 * np.ptp(q_values))


def test_two_samples_in_closed_form():
    # q = (3/4, 1/4) at eta = d / ln 3, where KL = 3/4 ln(3/2) + 1/4 ln(1/2)
    epsilon = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    q_values = torch.tensor([[5.0, -2.0], [3.0, -4.0]], dtype=torch.float64)
    assert exact_temperature(q_values, epsilon, uniform(2)).item() == pytest.approx(2.0 / math.log(3.0), rel=1e-9)


def test_the_prior_counts():
    # Pitfall 8: prior (0.9, 0.1), weights (0.5, 0.5) need exp(d / eta) = 9; KL = 1/2 ln(5/9) + 1/2 ln 5.
    q_values = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    log_prior = torch.tensor([[0.9], [0.1]], dtype=torch.float64).log()
    epsilon = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    got = exact_temperature(q_values, epsilon, uniform(1), log_prior)
    assert got.item() == pytest.approx(2.0 / math.log(9.0), rel=1e-9)
    even = torch.full((2, 1), math.log(0.5), dtype=torch.float64)
    torch.testing.assert_close(
        exact_temperature(q_values, 0.1, uniform(1), even), exact_temperature(q_values, 0.1, uniform(1))
    )


def test_objectives_are_solved_side_by_side():
    rng = np.random.default_rng(3)
    q_values = torch.from_numpy(rng.normal(size=(3, 12, 9)) * np.array([1e-3, 1.0, 1e4])[:, None, None])
    epsilons = torch.tensor([0.1, 0.001, 1.0], dtype=torch.float64)
    together = exact_temperature(q_values, epsilons, uniform(9))
    alone = [exact_temperature(q_values[k], epsilons[k].item(), uniform(9)) for k in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-8, atol=0.0)
    shared = exact_temperature(q_values, 0.1, uniform(9))
    torch.testing.assert_close(shared[1:2], exact_temperature(q_values[1], 0.1, uniform(9)), rtol=1e-8, atol=0.0)


def test_no_minimum_gives_the_floor():
    equal = torch.full((8, 3), 123.4)
    weights = uniform(3).float()
    assert exact_temperature(equal, 0.1, weights).item() == pytest.approx(MIN_TEMPERATURE)
    assert exact_temperature(equal, 0.1, weights, min_temperature=0.01).item() == pytest.approx(0.01)
    varied = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    assert exact_temperature(varied, math.log(8) * 1.01, weights).item() == pytest.approx(MIN_TEMPERATURE)
    assert exact_temperature(varied, math.log(8) * 0.9, weights).item() > 1e-3
    one_action = torch.randn(1, 3)
    assert exact_temperature(one_action, 0.1, weights).item() == pytest.approx(MIN_TEMPERATURE)
    # Two equal best actions of four: the KL never exceeds log 2.
    tied = torch.tensor([[1.0], [1.0], [0.0], [0.0]])
    assert exact_temperature(tied, math.log(2) * 1.001, torch.ones(1)).item() == pytest.approx(MIN_TEMPERATURE)
    assert exact_temperature(tied, math.log(2) * 0.99, torch.ones(1)).item() > 0.1
    # The weights at the floor are finite all the same.
    estep = nonparametric_estep(equal, exact_temperature(equal, 0.1, weights), 0.1, weights)
    torch.testing.assert_close(estep.normalized_weights, torch.full((8, 3), 0.125))


def test_a_higher_floor_binds():
    q_values = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    free = exact_temperature(q_values, 0.5, uniform(3)).item()
    bound = exact_temperature(q_values, 0.5, uniform(3), min_temperature=2 * free).item()
    assert bound == pytest.approx(2 * free)


def test_impossible_actions_do_not_count():
    q_values = torch.tensor([[0.0], [1.0], [1e6]], dtype=torch.float64)
    log_prior = torch.tensor([[0.5], [0.5], [0.0]], dtype=torch.float64).log()
    got = exact_temperature(q_values, 0.1, uniform(1), log_prior)
    torch.testing.assert_close(got, exact_temperature(q_values[:2], 0.1, uniform(1)), rtol=1e-8, atol=0.0)


@pytest.mark.parametrize("epsilon", [1e-6, 1e-3, 0.1, 2.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_float32_values_spend_exactly_epsilon(epsilon, scale):
    # Pitfall 18: bounds of 1e-6 are below the resolution of a KL in float32.
    generator = torch.Generator().manual_seed(1)
    q_values, weights = scale * torch.randn(20, 64, generator=generator), torch.full((64,), 1 / 64)
    eta = exact_temperature(q_values, epsilon, weights)
    assert eta.dtype == torch.float32
    kl = mean_kl(math.log(eta.item()), q_values.double().numpy(), weights.double().numpy(), None)
    assert kl == pytest.approx(epsilon, rel=1e-5)


def test_unweighted_states_do_not_count():
    q_values = torch.randn(6, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    q_values[:, 2] *= 1e5
    got = exact_temperature(q_values, 0.1, torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64))
    torch.testing.assert_close(got, exact_temperature(q_values[:, :2], 0.1, uniform(2)), rtol=1e-8, atol=0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_do_not_pass_as_a_temperature(bad):
    q_values = torch.randn(2, 4, 3)
    q_values[1, 2, 1] = bad
    got = exact_temperature(q_values, 0.1, uniform(3).float())
    assert torch.isfinite(got[0])
    assert torch.isnan(got[1])


def test_no_gradient_and_arguments_are_checked():
    q_values = torch.randn(4, 3, requires_grad=True)
    assert not exact_temperature(q_values, 0.1, uniform(3)).requires_grad
    with pytest.raises(ValueError, match="state_weights"):
        exact_temperature(q_values, 0.1, uniform(4))
    with pytest.raises(ValueError, match="log_prior"):
        exact_temperature(q_values, 0.1, uniform(3), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="epsilon"):
        exact_temperature(q_values, 0.0, uniform(3))
