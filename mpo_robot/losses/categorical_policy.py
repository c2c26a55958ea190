"""E-step and M-step of MPO for categorical policies: sums over all K actions instead of samples.

The prior is in the weights, q(a|s) proportional to pi(a|s) exp(Q(s,a) / temperature), as it is in the dual: softmax(Q)
alone would be the E-step of a uniform policy. Policies are given by logits of any offset. Axes: S states, K actions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mpo_robot.losses.mstep import KLPenalty, kl_penalty


class CategoricalEStep(NamedTuple):
    """Parts of the E-step.

    Attributes:
        weights: [S, K] q(a|s), sum over K is 1; no gradient.
        kl_nonparametric: [S] KL(q || pi_target) in nats, no gradient.
        loss_temperature: Scalar dual g(temperature); gradient flows to the temperature only.
    """

    weights: Tensor
    kl_nonparametric: Tensor
    loss_temperature: Tensor


class CategoricalMStep(NamedTuple):
    """Parts of the M-step.

    Attributes:
        loss_policy: Scalar cross-entropy -sum_a q log pi_online, nats; gradient flows to the online policy.
        penalty: KL(pi_target || pi_online) with its multiplier.
    """

    loss_policy: Tensor
    penalty: KLPenalty


def categorical_estep(
    q_values: Tensor, target_logits: Tensor, temperature: Tensor, epsilon: float, state_weights: Tensor
) -> CategoricalEStep:
    """Weights q(a|s) and the dual g(eta) = eta epsilon + eta mean_s log sum_a pi(a|s) exp(Q(s, a) / eta).

    Abdolmaleki et al. 2018, equation 9, with the expectation over the target policy exact. At the dual's minimum the
    mean KL(q || pi) equals `epsilon`. Computed with log-sum-exp, so that large values do not overflow.

    Args:
        q_values: [S, K] target critic's values; gradients are stopped here.
        target_logits: [S, K] of the target policy; gradients are stopped here.
        temperature: Scalar or [1], positive; receives the gradient of the dual.
        epsilon: Bound on KL(q || pi) in nats.
        state_weights: [S] non-negative, sum 1.

    Raises:
        ValueError: shapes do not fit.
    """
    if q_values.ndim != 2 or target_logits.shape != q_values.shape or state_weights.shape != q_values.shape[:1]:
        raise ValueError(
            f"need q_values and target_logits [S, K] and state_weights [S], got {q_values.shape}, "
            f"{target_logits.shape} and {state_weights.shape}"
        )
    log_prior = target_logits.detach().log_softmax(dim=-1)
    unnormalized = log_prior + q_values.detach() / temperature  # [S, K]
    log_normalizer = torch.logsumexp(unnormalized, dim=-1)  # [S]
    loss = (temperature * (epsilon + state_weights @ log_normalizer)).sum()
    log_weights = (unnormalized - log_normalizer.unsqueeze(-1)).detach()
    weights = log_weights.exp()
    return CategoricalEStep(weights, _kl(log_weights, log_prior), loss)


def categorical_mstep(
    online_logits: Tensor,
    target_logits: Tensor,
    weights: Tensor,
    alpha: Tensor,
    epsilon_policy: float,
    state_weights: Tensor,
) -> CategoricalMStep:
    """Cross-entropy to the E-step's weights under a bound on the mean KL(pi_target || pi_online).

    Abdolmaleki et al. 2018, equations 10 to 12.

    Args:
        online_logits: [S, K]; receives the gradient.
        target_logits: [S, K]; gradients are stopped here.
        weights: [S, K] q(a|s).
        alpha: [1] positive multiplier of the KL.
        epsilon_policy: Bound in nats.
        state_weights: [S] non-negative, sum 1.
    """
    log_online, log_target = online_logits.log_softmax(dim=-1), target_logits.detach().log_softmax(dim=-1)
    loss = -(state_weights @ (weights.detach() * log_online).sum(dim=-1))
    kl = _kl(log_target, log_online).unsqueeze(-1)  # [S, 1]
    return CategoricalMStep(loss, kl_penalty(kl, alpha, epsilon_policy, state_weights))


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) in nats, [S] from [S, K]; an action of probability 0 under p adds nothing."""
    p = log_p.exp()
    return torch.where(p > 0.0, p * (log_p - log_q), torch.zeros_like(p)).sum(dim=-1)
