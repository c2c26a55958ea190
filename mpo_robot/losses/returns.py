"""Off-policy return targets on sequences. Axes: B batch, T time; step t leads from state t to state t + 1."""

from __future__ import annotations

import torch
from torch import Tensor


def trace_coefficients(log_rhos: Tensor, trace_valid: Tensor, retrace_lambda: float) -> Tensor:
    """c_t = lambda * min(1, pi_target(a_t|s_t) / mu(a_t|s_t)), and 0 where no valid ratio exists.

    Munos et al. 2016, equation 9. `log_rhos` (target policy minus behaviour, nats) may hold anything, NaN included,
    where `trace_valid` is False. Shapes are equal, any; no gradient.
    """
    ratio = log_rhos.detach().clamp(max=0.0).exp()
    return torch.where(trace_valid, retrace_lambda * ratio, torch.zeros_like(ratio))


def off_policy_returns(
    reward_t: Tensor, discount_t: Tensor, bootstrap_value: Tensor, q_taken: Tensor, coefficients: Tensor
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

    Returns:
        [B, T], without gradient.

    Raises:
        ValueError: shapes differ.
    """
    shapes = {tuple(item.shape) for item in (reward_t, discount_t, bootstrap_value, q_taken, coefficients)}
    if len(shapes) != 1 or reward_t.ndim != 2:
        raise ValueError(f"all arguments must have the same shape [B, T], got {sorted(shapes)}")
    with torch.no_grad():
        # G_t = e_t + k_t G_{t+1} with everything that needs no recursion in e and k: one small operation per step.
        target = reward_t + discount_t * bootstrap_value
        carry = discount_t[:, :-1] * coefficients[:, 1:]
        target[:, :-1] -= carry * q_taken[:, 1:]
        columns, carries = target.unbind(dim=1), carry.unbind(dim=1)
        for t in range(len(carries) - 1, -1, -1):
            columns[t].addcmul_(carries[t], columns[t + 1])
        return target
