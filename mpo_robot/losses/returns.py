"""Off-policy return targets on sequences. Axes: B batch, T time; step t leads from state t to state t + 1.

One recursion, `off_policy_returns`, serves every estimator; they differ in what is subtracted, in the coefficients and
in the horizon, which the functions that return `Traces` fill in:
`off_policy_returns(reward_t, discount_t, bootstrap_value, *n_step(bootstrap_value, valid, 5))`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def trace_coefficients(log_rhos: Tensor, trace_valid: Tensor, retrace_lambda: float) -> Tensor:
    """c_t = lambda * min(1, pi_target(a_t|s_t) / mu(a_t|s_t)), and 0 where no valid ratio exists.

    Munos et al. 2016, equation 9. `log_rhos` (target policy minus behaviour, nats) may hold anything, NaN included,
    where `trace_valid` is False. Shapes are equal, any; no gradient.
    """
    ratio = log_rhos.detach().clamp(max=0.0).exp()
    return torch.where(trace_valid, retrace_lambda * ratio, torch.zeros_like(ratio))


class Traces(NamedTuple):
    """Last arguments of `off_policy_returns`: what makes it one estimator or another.

    Attributes:
        q_taken: [B, T] value of (s_t, a_t) that the correction subtracts.
        coefficients: [B, T] c_t, 0 where nothing may be carried back across action a_t.
        horizon: Steps after which every return is bootstrapped, or None for the end of the window.
    """

    q_taken: Tensor
    coefficients: Tensor
    horizon: int | None = None


def retrace(
    q_taken: Tensor, log_rhos: Tensor, trace_valid: Tensor, retrace_lambda: float, horizon: int | None = None
) -> Traces:
    """Retrace(lambda) with Q(s_t, a_t) of the target critic; `horizon` truncates it as in MPO (after equation 13)."""
    return Traces(q_taken, trace_coefficients(log_rhos, trace_valid, retrace_lambda), horizon)


def td_lambda(bootstrap_value: Tensor, trace_valid: Tensor, trace_lambda: float) -> Traces:
    """Uncorrected TD(lambda): G_t = r_t + d_t [(1 - lambda) v_{t+1} + lambda G_{t+1}].

    No importance ratio: biased towards the behaviour policy for lambda > 0. On-policy, and with v the value of the
    policy that acted, G_t - v_t is the generalised advantage estimate.

    Args:
        bootstrap_value: [B, T] v_{t+1} as in `off_policy_returns`.
        trace_valid: [B, T] bool or 0/1, whether step t continues step t - 1 and its action may be carried back.
            Must be 0 for rows that are no transition (episode borders), and is for actions that were not the
            policy's own or whose behaviour probability is unknown: what they led to says nothing of the policy.
        trace_lambda: In [0, 1].
    """
    state_value = torch.zeros_like(bootstrap_value)
    state_value[:, 1:] = bootstrap_value[:, :-1].detach()  # the state before step t is the state after step t - 1
    return Traces(state_value, trace_lambda * trace_valid.to(bootstrap_value.dtype))


def n_step(bootstrap_value: Tensor, trace_valid: Tensor, n: int) -> Traces:
    """Uncorrected n-step returns: r_t + ... + d^(n-1) r_{t+n-1} + d^n v_{t+n}, for every step of the window.

    Fewer steps where the window ends or `trace_valid` (as in `td_lambda`) is 0 before: they bootstrap there.

    Raises:
        ValueError: n < 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return td_lambda(bootstrap_value, trace_valid, 1.0)._replace(horizon=n)


def td_zero(bootstrap_value: Tensor) -> Traces:
    """TD(0): r_t + d_t v_{t+1}, the one-step expected target."""
    nothing = torch.zeros_like(bootstrap_value)
    return Traces(nothing, nothing, 1)


def off_policy_returns(
    reward_t: Tensor,
    discount_t: Tensor,
    bootstrap_value: Tensor,
    q_taken: Tensor,
    coefficients: Tensor,
    horizon: int | None = None,
) -> Tensor:
    """Returns corrected by traces: G_t = r_t + d_t [v_{t+1} + c_{t+1} (G_{t+1} - q_{t+1})], with G_T - q_T = 0.

    Retrace(lambda) for c from `trace_coefficients`; one-step expected targets for c = 0; n-step targets for c = 1 and
    q = v. (Munos et al. 2016; the discount that equation 13 of Abdolmaleki et al. 2018 leaves out is included.)

    Args:
        reward_t: [B, T].
        discount_t: [B, T] discount, 0 where the step terminated the task. A truncated step keeps its discount.
        bootstrap_value: [B, T] v_{t+1}, the expected value of the state *after* step t.
        q_taken: [B, T] Q(s_t, a_t); entry 0 is not used.
        coefficients: [B, T] c_t of action a_t; entry 0 is not used. Must be 0 where step t does not continue t - 1.
        horizon: Use at most so many rewards per return and bootstrap after them. None: as many as the window holds.

    Returns:
        [B, T], without gradient.

    Raises:
        ValueError: shapes differ, or a horizon below 1.
    """
    if horizon is not None and horizon < 1:
        raise ValueError(f"horizon must be at least 1, got {horizon}")
    shapes = {tuple(item.shape) for item in (reward_t, discount_t, bootstrap_value, q_taken, coefficients)}
    if len(shapes) != 1 or reward_t.ndim != 2:
        raise ValueError(f"all arguments must have the same shape [B, T], got {sorted(shapes)}")
    with torch.no_grad():
        # G_t = e_t + k_t G_{t+1} with everything that needs no recursion in e and k: one small operation per step.
        target = reward_t + discount_t * bootstrap_value
        if horizon is not None and horizon < reward_t.shape[1]:
            return _truncated_returns(target, discount_t[:, :-1] * coefficients[:, 1:], q_taken[:, 1:], horizon)
        carry = discount_t[:, :-1] * coefficients[:, 1:]
        target[:, :-1] -= carry * q_taken[:, 1:]
        columns, carries = target.unbind(dim=1), carry.unbind(dim=1)
        for t in range(len(carries) - 1, -1, -1):
            columns[t].addcmul_(carries[t], columns[t + 1])
        return target


def _truncated_returns(one_step: Tensor, carry: Tensor, q_next: Tensor, horizon: int) -> Tensor:
    """`horizon` applications of the one-step backup, all time steps at once. [B, T] from [B, T], [B, T-1], [B, T-1]."""
    returns = one_step
    for _ in range(horizon - 1):
        longer = one_step.clone()
        longer[:, :-1] += carry * (returns[:, 1:] - q_next)
        returns = longer
    return returns
