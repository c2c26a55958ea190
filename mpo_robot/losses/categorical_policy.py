"""MPO for discrete actions: all K actions instead of samples, so the prior is in the weights.

Everything is computed from logits by log-softmax. Logits are finite. Axes: S states, K discrete actions (last).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mpo_robot.losses.constraint import Constraint
from mpo_robot.losses.exact_dual import exact_temperature
from mpo_robot.losses.mstep import SingleMStep


class CategoricalEStep(NamedTuple):
    """Parts of the E-step.

    Attributes:
        normalized_weights: [S, K] q(a|s), sum over K is 1; no gradient.
        kl_nonparametric: [S] KL(q || pi_target) in nats, no gradient.
        loss_temperature: Scalar dual g(temperature); gradient flows to the temperature only.
    """

    normalized_weights: Tensor
    kl_nonparametric: Tensor
    loss_temperature: Tensor


def log_prob(logits: Tensor, action: Tensor) -> Tensor:
    """Log probability in nats of integer actions [...] under logits [..., K]; returns [...]."""
    return torch.log_softmax(logits, dim=-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats, [...] from [..., K]; between 0 and log K."""
    log_probabilities = torch.log_softmax(logits, dim=-1)
    return -(log_probabilities.exp() * log_probabilities).sum(dim=-1)


def kl(target_logits: Tensor, online_logits: Tensor) -> Tensor:
    """KL(target || online) in nats, [...] from [..., K]."""
    log_target, log_online = torch.log_softmax(target_logits, dim=-1), torch.log_softmax(online_logits, dim=-1)
    return (log_target.exp() * (log_target - log_online)).sum(dim=-1)


def expected_value(q_values: Tensor, logits: Tensor) -> Tensor:
    """E_pi Q(s, a), [...] from [..., K]: the bootstrap value, exact instead of sampled."""
    return (torch.softmax(logits, dim=-1) * q_values).sum(dim=-1)


def categorical_exact_temperature(
    q_values: Tensor, target_logits: Tensor, epsilon: float, state_weights: Tensor
) -> Tensor:
    """[1] `exact_temperature` for q_values [S, K] with the target policy as prior; no gradient."""
    return exact_temperature(q_values.T, epsilon, state_weights, torch.log_softmax(target_logits, dim=-1).T)


def categorical_estep(
    q_values: Tensor, target_logits: Tensor, temperature: Tensor, epsilon: float, state_weights: Tensor
) -> CategoricalEStep:
    """Weights q(a|s) proportional to pi_target(a|s) exp(Q(s, a) / temperature) over all actions, and their dual.

    Abdolmaleki et al. 2018, equation 8, and 9 with the integral over actions as a sum:
    g(eta) = eta epsilon + eta mean_s log sum_a pi(a|s) exp(Q(s, a) / eta). Sampled actions carry pi in how often they
    occur; here it must be a factor, or the weights would not depend on the policy that they are bound to.

    Args:
        q_values: [S, K] target critic's values; gradients are stopped here.
        target_logits: [S, K]; gradients are stopped here.
        temperature: Scalar or [1], positive; receives the gradient of the dual. With
            `categorical_exact_temperature`'s, the exact form; with a fixed one, the soft form (equation 6).
        epsilon: Bound on KL(q || pi_target) in nats.
        state_weights: [S], sum 1.

    Raises:
        ValueError: shapes do not fit.
    """
    if q_values.ndim != 2 or target_logits.shape != q_values.shape or state_weights.shape != q_values.shape[:1]:
        raise ValueError(
            "need q_values and target_logits [S, K] and state_weights [S], got "
            f"{q_values.shape}, {target_logits.shape} and {state_weights.shape}"
        )
    log_prior = torch.log_softmax(target_logits.detach(), dim=-1)
    scaled = q_values.detach() / temperature  # [S, K]
    log_normalizer = torch.logsumexp(log_prior + scaled, dim=-1)  # [S]
    loss = (temperature * (epsilon + state_weights @ log_normalizer)).sum()
    return CategoricalEStep(*_weights(log_prior, scaled.detach()), loss_temperature=loss)


def categorical_mstep(
    online_logits: Tensor,
    target_logits: Tensor,
    normalized_weights: Tensor,
    constraint: Constraint,
    state_weights: Tensor,
) -> SingleMStep:
    """Cross-entropy -sum_s w_s sum_a q(a|s) log pi_online(a|s) under a constraint on KL(target || online).

    Abdolmaleki et al. 2018, equations 11 and 12. Gradient flows to `online_logits`, and of the penalty to a multiplier.

    Args:
        online_logits: [S, K].
        target_logits: [S, K]; gradients are stopped here.
        normalized_weights: [S, K] of the E-step.
        constraint: On the KL, [S, 1].
        state_weights: [S], sum 1.
    """
    divergence = kl(target_logits.detach(), online_logits).unsqueeze(-1)  # [S, 1]
    return SingleMStep(
        cross_entropy(online_logits, normalized_weights, state_weights), constraint(divergence, state_weights)
    )


def cross_entropy(online_logits: Tensor, normalized_weights: Tensor, state_weights: Tensor) -> Tensor:
    """-sum_s w_s sum_a q(a|s) log pi_online(a|s), a scalar in nats; gradient flows to `online_logits` only."""
    log_online = torch.log_softmax(online_logits, dim=-1)
    return -(state_weights @ (normalized_weights.detach() * log_online).sum(dim=-1))


def _weights(log_prior: Tensor, scaled: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [S, K] proportional to exp(log_prior + scaled) and their KL from the prior, [S]."""
    log_weights = torch.log_softmax(log_prior + scaled, dim=-1)
    weights = log_weights.exp()
    return weights, (weights * (log_weights - log_prior)).sum(dim=-1)
