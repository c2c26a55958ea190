"""Constraints on the KL between two policies: a bound with a learned multiplier (hard), or a fixed price (soft).

Axes: S states, A action dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class KLPenalty(NamedTuple):
    """One KL constraint with its Lagrange multiplier.

    Attributes:
        loss_kl: Scalar alpha * KL; gradient flows to the policy only.
        loss_alpha: Scalar alpha * (bound - KL); gradient flows to the multiplier only.
        kl: [A] (or [1]) mean KL over states in nats, no gradient.
    """

    loss_kl: Tensor
    loss_alpha: Tensor
    kl: Tensor


Constraint = Callable[[Tensor, Tensor], KLPenalty]
"""Makes the Lagrangian terms from a KL per dimension [S, A] and the weights of the states [S]."""


def bound(alpha: Tensor, epsilon: float) -> Constraint:
    """The hard form: `kl_penalty` with a multiplier and a bound."""
    return lambda kl_per_dimension, state_weights: kl_penalty(kl_per_dimension, alpha, epsilon, state_weights)


def price(kl_weight: float) -> Constraint:
    """The soft form: `soft_penalty` with a weight that stays."""
    return lambda kl_per_dimension, state_weights: soft_penalty(kl_per_dimension, kl_weight, state_weights)


def kl_penalty(kl_per_dimension: Tensor, alpha: Tensor, epsilon: float, state_weights: Tensor) -> KLPenalty:
    """Lagrangian terms of one KL constraint.

    Args:
        kl_per_dimension: [S, A] KL(target || online) with gradient to the online policy.
        alpha: Positive multiplier: [A] for one bound per dimension, [1] for one bound on the sum over dimensions.
        epsilon: Bound in nats, for each entry of `alpha`.
        state_weights: [S], sum 1.

    Raises:
        ValueError: `alpha` is neither [A] nor [1].
    """
    kl = state_weights @ kl_per_dimension  # [A]
    if alpha.shape == (1,):
        kl = kl.sum(dim=0, keepdim=True)
    elif alpha.shape != kl.shape:
        raise ValueError(f"alpha must have shape [1] or {list(kl.shape)}, got {list(alpha.shape)}")
    return KLPenalty((alpha.detach() * kl).sum(), (alpha * (epsilon - kl.detach())).sum(), kl.detach())


def soft_penalty(kl_per_dimension: Tensor, kl_weight: float, state_weights: Tensor) -> KLPenalty:
    """Fixed price of a KL: `kl_weight` times the sum over dimensions, and no multiplier to learn (`loss_alpha` is 0).

    The maximum-a-posteriori form with a Gaussian prior around the target policy (Abdolmaleki et al. 2018, equation 11,
    where the weight is called lambda). Shapes as in `kl_penalty`; `kl` is [A].
    """
    kl = state_weights @ kl_per_dimension  # [A]
    return KLPenalty(kl_weight * kl.sum(), kl.new_zeros(()), kl.detach())
