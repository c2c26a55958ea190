"""Returns: hand arrays, reductions to simpler estimators, cuts, bootstraps, and an independent reference loop."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpo_robot.losses.returns import off_policy_returns, trace_coefficients


def tensors(*rows):
    return [torch.from_numpy(np.array([row], dtype=np.float64)) for row in rows]


def test_by_hand():
    reward, discount, value, q_taken, c = tensors([1, 2], [0.5, 0.5], [4, 6], [99, 3], [99, 0.5])
    # G_1 = 2 + 0.5 * 6 = 5; G_0 = 1 + 0.5 * (4 + 0.5 * (5 - 3)) = 3.5
    assert off_policy_returns(reward, discount, value, q_taken, c).tolist() == [[3.5, 5.0]]


def reference(reward, discount, value, q_taken, c):
    """Retrace as a sum over future TD errors (Munos et al. 2016, equation 3), not as a recursion."""
    steps = len(reward)
    result = np.zeros(steps)
    for start in range(steps):
        total, weight = q_taken[start], 1.0
        for t in range(start, steps):
            if t > start:
                weight *= discount[t - 1] * c[t]
            total += weight * (reward[t] + discount[t] * value[t] - q_taken[t])
        result[start] = total
    return result


@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_equals_the_sum_of_corrected_td_errors(steps, seed):
    rng = np.random.default_rng(seed)
    reward, value, q_taken = rng.normal(size=(3, steps))
    discount, c = rng.uniform(size=(2, steps))
    got = off_policy_returns(*tensors(reward, discount, value, q_taken, c))[0].numpy()
    np.testing.assert_allclose(got, reference(reward, discount, value, q_taken, c), atol=1e-10)


def test_lambda_zero_is_the_one_step_target():
    rng = np.random.default_rng(0)
    reward, value, q_taken, discount = rng.normal(size=(4, 6))
    got = off_policy_returns(*tensors(reward, discount, value, q_taken, np.zeros(6)))[0].numpy()
    np.testing.assert_allclose(got, reward + discount * value)


def test_full_traces_with_q_equal_v_are_n_step_returns():
    rng = np.random.default_rng(1)
    steps, gamma = 5, 0.9
    reward, value = rng.normal(size=(2, steps))
    # q(s_t, a_t) = v(s_t): entry t of q is entry t - 1 of "value after step"
    q_taken = np.concatenate([[123.0], value[:-1]])
    got = off_policy_returns(*tensors(reward, np.full(steps, gamma), value, q_taken, np.ones(steps)))[0].numpy()
    for t in range(steps):
        powers = gamma ** np.arange(steps - t)
        want = powers @ reward[t:] + gamma ** (steps - t) * value[-1]
        assert got[t] == pytest.approx(want)


def test_a_zero_coefficient_cuts_everything_behind_it():
    rng = np.random.default_rng(2)
    reward, value, q_taken = rng.normal(size=(3, 6))
    discount, c = np.full(6, 0.9), np.ones(6)
    c[3] = 0.0
    before = off_policy_returns(*tensors(reward, discount, value, q_taken, c))[0].numpy()
    reward[3:] += 100.0
    after = off_policy_returns(*tensors(reward, discount, value, q_taken, c))[0].numpy()
    np.testing.assert_allclose(before[:3], after[:3])
    assert not np.allclose(before[3:], after[3:])


def test_termination_drops_the_bootstrap_and_truncation_keeps_it():
    reward, value, q_taken, c = np.array([1.0]), np.array([10.0]), np.array([0.0]), np.array([1.0])
    terminated = off_policy_returns(*tensors(reward, [0.0], value, q_taken, c))
    truncated = off_policy_returns(*tensors(reward, [0.99], value, q_taken, c))
    assert terminated.item() == 1.0
    assert truncated.item() == pytest.approx(1.0 + 9.9)


def test_entry_zero_of_q_and_c_is_not_used_and_nothing_is_shifted():
    rng = np.random.default_rng(3)
    reward, value, q_taken, discount, c = rng.normal(size=(5, 4))
    base = off_policy_returns(*tensors(reward, discount, value, q_taken, c))
    q_taken[0], c[0] = 50.0, 50.0
    assert torch.equal(base, off_policy_returns(*tensors(reward, discount, value, q_taken, c)))
    for array in (q_taken, c, value, reward, discount):  # a wrong index by one would not notice these
        for index in range(1, 4):
            changed = array.copy()
            changed[index] += 1.0
            arrays = [changed if item is array else item for item in (reward, discount, value, q_taken, c)]
            assert not torch.equal(base, off_policy_returns(*tensors(*arrays)))


def test_coefficients_are_truncated_at_lambda_and_follow_the_ratio():
    log_rhos = torch.tensor([math.log(0.5), 0.0, 3.0])
    got = trace_coefficients(log_rhos, torch.ones(3, dtype=torch.bool), 0.9)
    assert got.tolist() == pytest.approx([0.45, 0.9, 0.9])


def test_invalid_steps_cut_the_trace_even_if_their_ratio_is_nan():
    log_rhos = torch.tensor([float("nan"), float("inf"), 0.0])
    got = trace_coefficients(log_rhos, torch.tensor([False, False, True]), 1.0)
    assert got.tolist() == [0.0, 0.0, 1.0]


def test_targets_depend_on_the_behaviour_probability():
    # Pitfall 9: an implementation whose targets ignore rho passes every other shape test.
    arrays = tensors([1.0, 1.0], [0.9, 0.9], [0.0, 0.0], [0.0, 0.5])
    likely = trace_coefficients(torch.tensor([[0.0, -2.0]]), torch.ones(1, 2, dtype=torch.bool), 1.0)
    unlikely = trace_coefficients(torch.tensor([[0.0, 0.0]]), torch.ones(1, 2, dtype=torch.bool), 1.0)
    assert not torch.equal(off_policy_returns(*arrays, likely.double()), off_policy_returns(*arrays, unlikely.double()))


def test_no_gradient_and_shapes_checked():
    reward = torch.zeros(2, 3, requires_grad=True)
    rest = [torch.zeros(2, 3) for _ in range(4)]
    assert not off_policy_returns(reward, *rest).requires_grad
    with pytest.raises(ValueError, match="same shape"):
        off_policy_returns(torch.zeros(2, 4), *rest)
