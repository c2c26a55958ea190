"""Retrace, n-step, TD(0) and TD(lambda) from one recursion: hand-worked windows and reductions to each other."""

import numpy as np
import pytest
import torch

from mpo_robot.losses.returns import n_step, off_policy_returns, retrace, td_lambda, td_zero

B, T, GAMMA = 3, 7, 0.9
ALL = torch.ones(B, T, dtype=torch.bool)

# One window over the border of two episodes, discount 1/2. Rows 0, 1: an episode that was cut off after row 1, whose
# final observation is row 2 (no transition). Rows 3, 4: an episode that terminated in row 4. Row 5 is its final
# observation. value[t] is the value of the state after step t; 99 and the like belong to rows that must not be used.
REWARD = torch.tensor([[1.0, 2.0, 99.0, 4.0, 8.0, 99.0]], dtype=torch.float64)
DISCOUNT = torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.0, 0.5]], dtype=torch.float64)
VALUE = torch.tensor([[10.0, 20.0, 77.0, 40.0, 88.0, 66.0]], dtype=torch.float64)
IS_TRANSITION = torch.tensor([[True, True, False, True, True, False]])
REAL = IS_TRANSITION[0]


def windows(seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(4, B, T, generator=generator, dtype=torch.float64)
    discount = GAMMA * (torch.rand(B, T, generator=generator) > 0.2).double()
    return draw[0], discount, draw[1], draw[2], draw[3]


def returns_of_the_window(traces):
    return off_policy_returns(REWARD, DISCOUNT, VALUE, *traces)[0][REAL].tolist()


def test_td_zero_by_hand():
    # 1 + 10/2, 2 + 20/2 (cut off: bootstraps from its final observation), 4 + 40/2, 8 (terminated)
    assert returns_of_the_window(td_zero(VALUE)) == [6.0, 12.0, 24.0, 8.0]


def test_n_step_by_hand_across_a_border():
    # 1 + 2/2 + 20/4 stops at the border; 4 + 8/2 ends by termination
    assert returns_of_the_window(n_step(VALUE, IS_TRANSITION, 2)) == [7.0, 12.0, 8.0, 8.0]
    assert returns_of_the_window(n_step(VALUE, IS_TRANSITION, 5)) == [7.0, 12.0, 8.0, 8.0]


def test_td_lambda_by_hand_across_a_border():
    # lambda 1/2: 1 + 1/2 (10/2 + 12/2) = 6.5; 4 + 1/2 (40/2 + 8/2) = 16
    assert returns_of_the_window(td_lambda(VALUE, IS_TRANSITION, 0.5)) == [6.5, 12.0, 16.0, 8.0]


def test_retrace_by_hand_across_a_border():
    q_taken = torch.tensor([[55.0, 11.0, 55.0, 55.0, 6.0, 55.0]], dtype=torch.float64)
    log_rhos = torch.tensor([[0.0, np.log(0.5), np.nan, 3.0, 1.0, np.nan]], dtype=torch.float64)
    # 1 + 1/2 (10 + 1/2 (12 - 11)) = 6.25; 4 + 1/2 (40 + 1 (8 - 6)) = 25
    assert returns_of_the_window(retrace(q_taken, log_rhos, IS_TRANSITION, 1.0)) == [6.25, 12.0, 25.0, 8.0]


def test_a_changed_command_cuts_every_kind_of_trace():
    # Row 1 was not what the policy chose: row 0 must not learn from what followed, whatever that was.
    valid = IS_TRANSITION.clone()
    valid[0, 1] = False
    q_taken, log_rhos = torch.zeros(1, 6, dtype=torch.float64), torch.zeros(1, 6, dtype=torch.float64)
    for traces in (retrace(q_taken, log_rhos, valid, 1.0), n_step(VALUE, valid, 3), td_lambda(VALUE, valid, 0.9)):
        assert returns_of_the_window(traces)[0] == 6.0


@pytest.mark.parametrize("n", [1, 2, 3, 6, 7, 20])
def test_n_step_is_the_plain_discounted_sum(n):
    reward, _, value, _, _ = windows()
    got = off_policy_returns(reward, torch.full_like(reward, GAMMA), value, *n_step(value, ALL, n))
    for start in range(T):
        stop = min(start + n, T)
        powers = GAMMA ** torch.arange(stop - start, dtype=torch.float64)
        want = reward[:, start:stop] @ powers + GAMMA ** (stop - start) * value[:, stop - 1]
        torch.testing.assert_close(got[:, start], want)


@pytest.mark.parametrize("seed", range(4))
def test_reductions(seed):
    reward, discount, value, q_taken, _ = windows(seed)
    valid = torch.rand(B, T, generator=torch.Generator().manual_seed(seed)) > 0.3

    def returns(traces):
        return off_policy_returns(reward, discount, value, *traces)

    one_step = reward + discount * value
    torch.testing.assert_close(returns(td_zero(value)), one_step)
    torch.testing.assert_close(returns(n_step(value, valid, 1)), one_step)
    torch.testing.assert_close(returns(td_lambda(value, valid, 0.0)), one_step)
    torch.testing.assert_close(returns(retrace(q_taken, torch.zeros(B, T), valid, 0.0)), one_step)
    torch.testing.assert_close(returns(retrace(q_taken, torch.zeros(B, T), valid, 1.0, horizon=1)), one_step)
    # Every ratio at least 1, lambda 1 and Q(s, a) = V(s): nothing is corrected any more.
    on_policy = retrace(td_lambda(value, valid, 1.0).q_taken, torch.full((B, T), 2.0), valid, 1.0)
    torch.testing.assert_close(returns(on_policy), returns(td_lambda(value, valid, 1.0)))
    torch.testing.assert_close(returns(on_policy), returns(n_step(value, valid, T)))
    assert not torch.allclose(returns(on_policy), returns(n_step(value, valid, 2)))


def test_td_lambda_is_the_geometric_mixture_of_n_step_returns():
    reward, discount, value, _, _ = windows(5)
    weight, mixture = 0.7, torch.zeros_like(reward)
    for n in range(1, T + 1):
        share = (1 - weight) * weight ** (n - 1) if n < T else weight ** (T - 1)
        mixture += share * off_policy_returns(reward, discount, value, *n_step(value, ALL, n))
    torch.testing.assert_close(off_policy_returns(reward, discount, value, *td_lambda(value, ALL, weight)), mixture)


@pytest.mark.parametrize("horizon", [1, 2, 4, T, T + 3])
def test_truncated_retrace_equals_retrace_on_every_window_of_that_length(horizon):
    reward, discount, value, q_taken, log_rhos = windows(6)
    got = off_policy_returns(reward, discount, value, *retrace(q_taken, log_rhos, ALL, 0.9, horizon))
    for start in range(T):
        rows = slice(start, start + horizon)
        part = retrace(q_taken[:, rows], log_rhos[:, rows], ALL[:, rows], 0.9)
        want = off_policy_returns(reward[:, rows], discount[:, rows], value[:, rows], *part)[:, 0]
        torch.testing.assert_close(got[:, start], want)


def test_no_gradient_and_bad_horizons_are_refused():
    value = torch.zeros(B, T, requires_grad=True)
    traces = n_step(value, ALL, 2)
    assert not traces.q_taken.requires_grad
    assert not off_policy_returns(value, value, value, *traces).requires_grad
    with pytest.raises(ValueError, match="n must be"):
        n_step(value, ALL, 0)
    with pytest.raises(ValueError, match="horizon"):
        off_policy_returns(value, value, value, value, value, 0)
