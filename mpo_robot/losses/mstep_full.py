"""M-steps of MPO for full-covariance Gaussians: decoupled or one KL, bounded or priced.

The counterparts of `losses/mstep.py` and `losses/mstep_single.py`, with the same parts and equations. Axes: S states,
A action dimensions.
"""

from __future__ import annotations

from torch import Tensor

from mpo_robot.losses.full_covariance import (
    FullGaussian,
    FullNoiseMoments,
    coupled_likelihood,
    decoupled_kls,
    full_kl,
    weighted_likelihood,
)
from mpo_robot.losses.mstep import MStep, kl_penalty, soft_penalty
from mpo_robot.losses.mstep_single import SingleMStep


def full_decoupled_mstep(
    online: FullGaussian,
    target: FullGaussian,
    moments: FullNoiseMoments,
    alpha_mean: Tensor,
    alpha_covariance: Tensor,
    epsilon_mean: float,
    epsilon_covariance: float,
    state_weights: Tensor,
) -> MStep:
    """`losses/mstep.py: decoupled_mstep` for full covariances; `penalty_stddev` is the covariance's.

    Multipliers are [1] (one bound on each KL) or [A] (one per whitened dimension, see `decoupled_kls`).
    """
    likelihood, kls = weighted_likelihood(online, target, moments, state_weights), decoupled_kls(online, target)
    return MStep(
        likelihood.loss_mean,
        likelihood.loss_stddev,
        kl_penalty(kls.mean, alpha_mean, epsilon_mean, state_weights),
        kl_penalty(kls.covariance, alpha_covariance, epsilon_covariance, state_weights),
    )


def full_soft_decoupled_mstep(
    online: FullGaussian,
    target: FullGaussian,
    moments: FullNoiseMoments,
    kl_weight_mean: float,
    kl_weight_covariance: float,
    state_weights: Tensor,
) -> MStep:
    """`full_decoupled_mstep` with fixed prices of the two KLs instead of bounds."""
    likelihood, kls = weighted_likelihood(online, target, moments, state_weights), decoupled_kls(online, target)
    return MStep(
        likelihood.loss_mean,
        likelihood.loss_stddev,
        soft_penalty(kls.mean, kl_weight_mean, state_weights),
        soft_penalty(kls.covariance, kl_weight_covariance, state_weights),
    )


def full_single_mstep(
    online: FullGaussian,
    target: FullGaussian,
    moments: FullNoiseMoments,
    alpha: Tensor,
    epsilon: float,
    state_weights: Tensor,
) -> SingleMStep:
    """`losses/mstep_single.py: single_mstep` for full covariances."""
    penalty = kl_penalty(full_kl(online, target), alpha, epsilon, state_weights)
    return SingleMStep(coupled_likelihood(online, target, moments, state_weights), penalty)


def full_soft_single_mstep(
    online: FullGaussian, target: FullGaussian, moments: FullNoiseMoments, kl_weight: float, state_weights: Tensor
) -> SingleMStep:
    """`full_single_mstep` with a fixed price of the KL instead of a bound."""
    penalty = soft_penalty(full_kl(online, target), kl_weight, state_weights)
    return SingleMStep(coupled_likelihood(online, target, moments, state_weights), penalty)
