"""E-step of MPO: non-parametric action weights and the dual loss of the temperature.

Hard form (a bound on the KL): `nonparametric_estep` with a learned temperature, or with the one from
`losses/exact_dual.py`. Soft form (a price on the KL): the same with a fixed temperature. With a detached temperature
the dual loss has no gradient.
Axes: N sampled actions, S states.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class EStep(NamedTuple):
    """Parts of the E-step.

    Attributes:
        normalized_weights: [N, S], sum over N is 1; no gradient.
        loss_temperature: Scalar dual g(temperature); gradient flows to the temperature only.
    """

    normalized_weights: Tensor
    loss_temperature: Tensor

    @property
    def kl_nonparametric(self) -> Tensor:
        """[S] KL(q || pi_target) of the weights in nats, no gradient; computed when asked for."""
        weights = self.normalized_weights
        return (weights * torch.log(len(weights) * weights + 1e-12)).sum(dim=0)


def nonparametric_estep(q_values: Tensor, temperature: Tensor, epsilon: float, state_weights: Tensor) -> EStep:
    """Weights q(a|s) proportional to pi(a|s) exp(Q(s,a) / temperature) for actions sampled from pi, and their dual.

    Dual: g(eta) = eta * epsilon + eta * mean_s log mean_n exp(Q(s, a_n) / eta), Abdolmaleki et al. 2018, equation 9
    (sample form). At its minimum the mean KL(q || pi) equals `epsilon`. Computed with log-sum-exp, so that large
    values do not overflow. For any temperature the weights maximise mean_s [E_q Q(s, a) - temperature KL(q || pi)]
    (equation 6, where the temperature is called alpha).

    Args:
        q_values: [N, S] target critic's values; gradients are stopped here.
        temperature: Scalar or [1], positive; receives the gradient of the dual.
        epsilon: Bound on KL(q || pi) in nats.
        state_weights: [S] non-negative, sum 1: weight of each state in the mean (zero for states to leave out).

    Raises:
        ValueError: shapes do not fit.
    """
    if q_values.ndim != 2 or state_weights.shape != q_values.shape[1:]:
        raise ValueError(f"need q_values [N, S] and state_weights [S], got {q_values.shape} and {state_weights.shape}")
    num_samples = q_values.shape[0]
    scaled = q_values.detach() / temperature  # [N, S]
    log_mean_exp = torch.logsumexp(scaled, dim=0) - math.log(num_samples)  # [S]
    loss = (temperature * (epsilon + state_weights @ log_mean_exp)).sum()
    return EStep(torch.softmax(scaled.detach(), dim=0), loss)


def out_of_bounds_cost(actions: Tensor) -> Tensor:
    """Value of an action under the bound-penalty objective: minus its Euclidean distance to [-1, 1]^A.

    [N, S] from [N, S, A]. Linear in the distance, zero inside (Abdolmaleki et al. 2020, MO-MPO).
    """
    return -(actions - actions.clamp(-1.0, 1.0)).square().sum(dim=-1).sqrt()
