"""What must hold for the MPO losses on any values: invariances, bounds, and agreement of the special cases."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpo_robot.losses import categorical_policy, full_covariance, gaussian
from mpo_robot.losses.estep import nonparametric_estep
from mpo_robot.losses.exact_dual import MIN_TEMPERATURE, exact_temperature
from mpo_robot.losses.families import DiagonalFamily, FullFamily, decoupled_kls
from mpo_robot.losses.full_covariance import FullGaussian
from mpo_robot.losses.gaussian import Gaussian
from mpo_robot.losses.parametric import advantage_weights
from mpo_robot.losses.returns import n_step, off_policy_returns, retrace, td_lambda, td_zero

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 8)
scales = st.floats(-4.0, 4.0).map(lambda exponent: 10.0**exponent)
epsilons = st.floats(-4.0, -0.5).map(lambda exponent: 10.0**exponent)


def normal(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def state_weights(seed, states):
    return torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(states)))


@given(seeds, st.integers(2, 12), sizes, scales, epsilons)
def test_the_exact_temperature_spends_epsilon_or_is_the_floor(seed, samples, states, scale, epsilon):
    q_values, weights = scale * normal(seed, samples, states), state_weights(seed, states)
    eta = exact_temperature(q_values, epsilon, weights, iterations=24)
    kl = (weights @ nonparametric_estep(q_values, eta, epsilon, weights).kl_nonparametric).item()
    if eta.item() > MIN_TEMPERATURE * 1.001:
        assert math.isclose(kl, epsilon, rel_tol=1e-5)
    else:
        assert kl <= epsilon * (1 + 1e-9)


@given(seeds, st.integers(3, 12), sizes, scales, epsilons)
def test_the_exact_temperature_has_the_unit_of_q_and_ignores_constants(seed, samples, states, scale, epsilon):
    q_values, weights = normal(seed, samples, states), state_weights(seed, states)
    eta = exact_temperature(q_values, epsilon, weights)
    torch.testing.assert_close(exact_temperature(scale * q_values, epsilon, weights), scale * eta, rtol=1e-5, atol=0.0)
    shifted = q_values + 10 * normal(seed + 1, states)
    torch.testing.assert_close(exact_temperature(shifted, epsilon, weights), eta, rtol=1e-5, atol=0.0)


@given(seeds, st.integers(2, 12), sizes, st.floats(0.05, 20.0), st.floats(1.01, 3.0))
def test_a_hotter_estep_is_closer_to_the_policy_and_worth_less(seed, samples, states, temperature, factor):
    q_values = normal(seed, samples, states)
    weights = torch.full((states,), 1.0 / states, dtype=torch.float64)
    cold, hot = (
        nonparametric_estep(q_values, torch.tensor(eta).double(), 0.1, weights)
        for eta in (temperature, factor * temperature)
    )
    for estep in (cold, hot):
        torch.testing.assert_close(estep.normalized_weights.sum(0), torch.ones(states, dtype=torch.float64))
        assert (estep.kl_nonparametric <= math.log(samples) + 1e-9).all()
    assert (hot.kl_nonparametric <= cold.kl_nonparametric + 1e-9).all()
    values = [(estep.normalized_weights * q_values).sum(0) for estep in (cold, hot)]
    assert (values[0] >= values[1] - 1e-9).all()
    assert (values[1] >= q_values.mean(0) - 1e-9).all()


@given(seeds, st.integers(2, 8), sizes, st.floats(0.1, 10.0))
def test_categorical_weights_are_softmax_of_logits_plus_values(seed, actions, states, temperature):
    q_values, logits = normal(seed, states, actions), 3 * normal(seed + 1, states, actions)
    rest = (torch.tensor(temperature).double(), 0.1, torch.full((states,), 1.0 / states, dtype=torch.float64))
    estep = categorical_policy.categorical_estep(q_values, logits, *rest)
    torch.testing.assert_close(estep.normalized_weights, torch.softmax(logits + q_values / temperature, -1))
    assert (estep.kl_nonparametric >= -1e-12).all()
    shifted = categorical_policy.categorical_estep(q_values + 7.0, logits - 3.0, *rest)
    torch.testing.assert_close(estep.normalized_weights, shifted.normalized_weights)


def factors(seed, states, size):
    lower = normal(seed, states, size, size).tril(-1)
    return lower + torch.diag_embed((0.7 * normal(seed + 1, states, size)).exp())


@given(seeds, sizes, st.integers(1, 6))
def test_full_kls_are_not_negative_and_do_not_depend_on_coordinates(seed, states, size):
    online = FullGaussian(normal(seed, states, size), factors(seed + 2, states, size))
    target = FullGaussian(normal(seed + 4, states, size), factors(seed + 6, states, size))
    for kl in (*decoupled_kls(FullFamily, online, target), full_covariance.coupled_kl(online, target)):
        assert (kl >= -1e-12).all()
    change, shift = factors(seed + 8, states, size), normal(seed + 10, states, size)
    moved = [
        FullGaussian((change @ one.mean.unsqueeze(-1)).squeeze(-1) + shift, change @ one.scale_tril)
        for one in (online, target)
    ]
    before = full_covariance.coupled_kl(online, target).sum(-1)
    torch.testing.assert_close(full_covariance.coupled_kl(*moved).sum(-1), before, rtol=1e-6, atol=1e-9)


@given(seeds, sizes, st.integers(1, 6))
def test_diagonal_and_full_kls_agree(seed, states, size):
    mean, other = normal(seed, states, size), normal(seed + 1, states, size)
    stddev, wide = normal(seed + 2, states, size).exp(), normal(seed + 3, states, size).exp()
    online = FullGaussian(mean, torch.diag_embed(stddev))
    target = FullGaussian(other, torch.diag_embed(wide))
    from_diagonal = decoupled_kls(DiagonalFamily, Gaussian(mean, stddev), Gaussian(other, wide))
    for left, right in zip(decoupled_kls(FullFamily, online, target), from_diagonal):
        torch.testing.assert_close(left, right)
    torch.testing.assert_close(full_covariance.coupled_kl(online, target), gaussian.kl_full(other, wide, mean, stddev))


@given(seeds, st.integers(2, 10), sizes)
def test_advantage_weights_sum_to_zero_and_ignore_the_state_value(seed, samples, states):
    q_values = normal(seed, samples, states)
    weights = advantage_weights(q_values)
    torch.testing.assert_close(weights.sum(0), torch.zeros(states, dtype=torch.float64), rtol=0.0, atol=1e-12)
    torch.testing.assert_close(advantage_weights(q_values + normal(seed + 1, states)), weights)


@given(seeds, st.integers(1, 9), st.integers(1, 10), st.floats(0.0, 1.0))
def test_every_estimator_is_the_one_step_target_where_all_traces_are_cut(seed, steps, n, trace_lambda):
    reward, discount, value, q_taken, log_rhos = normal(seed, 5, 2, steps).unbind(0)
    none = torch.zeros(2, steps, dtype=torch.bool)
    for traces in (
        td_zero(value),
        n_step(value, none, n),
        td_lambda(value, none, trace_lambda),
        retrace(q_taken, log_rhos, none, trace_lambda),
        retrace(q_taken, log_rhos, none, trace_lambda, n),
    ):
        torch.testing.assert_close(off_policy_returns(reward, discount, value, *traces), reward + discount * value)


@given(seeds, st.integers(2, 9), st.integers(1, 10), st.integers(1, 8))
def test_nothing_crosses_a_cut(seed, steps, n, where):
    where = min(where, steps - 1)
    reward, discount, value, q_taken, log_rhos = normal(seed, 5, 2, steps).unbind(0)
    valid = torch.ones(2, steps, dtype=torch.bool)
    valid[:, where] = False
    later = reward.clone()
    later[:, where:] += 100.0
    for make in (
        lambda: n_step(value, valid, n),
        lambda: td_lambda(value, valid, 0.9),
        lambda: retrace(q_taken, log_rhos, valid, 1.0),
        lambda: retrace(q_taken, log_rhos, valid, 1.0, n),
    ):
        before = off_policy_returns(reward, discount, value, *make())[:, :where]
        torch.testing.assert_close(off_policy_returns(later, discount, value, *make())[:, :where], before)
