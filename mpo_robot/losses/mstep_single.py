"""M-step of MPO for diagonal Gaussians with one KL for mean and covariance together.

Equations 12 (hard form: one bound, one learned multiplier) and 11 (soft form: a fixed price) of Abdolmaleki et al. 2018
as they stand, without the decoupling of their appendix D.3. Mean and covariance pay for each other here: a step of the
mean is cheap while the stddev is large, and a bound small enough for the covariance slows the mean down.
Axes: S states, A action dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mpo_robot.losses.gaussian import HALF_LOG_TWO_PI, kl_full
from mpo_robot.losses.mstep import Gaussian, KLPenalty, NoiseMoments, kl_penalty, soft_penalty


class SingleMStep(NamedTuple):
    """Parts of an M-step with one KL.

    Attributes:
        loss_policy: Scalar weighted negative log-likelihood in nats; gradient flows to the online policy only.
        penalty: The KL and its multiplier.
    """

    loss_policy: Tensor
    penalty: KLPenalty


def single_mstep(
    online: Gaussian,
    target: Gaussian,
    moments: NoiseMoments,
    alpha: Tensor,
    epsilon: float,
    state_weights: Tensor,
) -> SingleMStep:
    """Weighted likelihood of the online policy under a bound on KL(target || online).

    Args:
        online: [S, A] each, with gradient.
        target: [S, A] each; gradients are stopped here.
        moments: Weighted moments of the noise behind the sampled actions, as in `decoupled_mstep`.
        alpha: Positive multiplier: [A] for a bound per dimension (mean and stddev of a dimension share it), or [1].
        epsilon: Bound in nats, for each entry of `alpha`.
        state_weights: [S], sum 1.
    """
    kl = _kl(online, target)
    return SingleMStep(
        coupled_likelihood(online, target, moments, state_weights), kl_penalty(kl, alpha, epsilon, state_weights)
    )


def soft_single_mstep(
    online: Gaussian, target: Gaussian, moments: NoiseMoments, kl_weight: float, state_weights: Tensor
) -> SingleMStep:
    """`single_mstep` with a fixed price of the KL instead of a bound."""
    kl = _kl(online, target)
    return SingleMStep(
        coupled_likelihood(online, target, moments, state_weights), soft_penalty(kl, kl_weight, state_weights)
    )


def coupled_likelihood(online: Gaussian, target: Gaussian, moments: NoiseMoments, state_weights: Tensor) -> Tensor:
    """-sum_s w_s sum_n q_n log N(a_n | online_mean, online_stddev), a scalar, from moments of the noise.

    Equation 10 of Abdolmaleki et al. 2018. Gradient flows to `online` only.
    """
    target_mean, target_stddev = target.mean.detach(), target.stddev.detach()
    first, second, total = moments
    ratio = target_stddev / online.stddev
    offset = (target_mean - online.mean) / online.stddev
    # (a - mu) / sigma = ratio z + offset
    spread = second * ratio.square() + offset * (2.0 * ratio * first + total * offset)
    return (state_weights @ (0.5 * spread + total * (online.stddev.log() + HALF_LOG_TWO_PI))).sum()


def _kl(online: Gaussian, target: Gaussian) -> Tensor:
    return kl_full(target.mean.detach(), target.stddev.detach(), online.mean, online.stddev)
