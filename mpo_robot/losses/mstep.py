"""M-step of MPO for diagonal Gaussians: weighted maximum likelihood with decoupled KLs of mean and covariance.

Hard form (a bound on each KL, a learned multiplier): `decoupled_mstep`. Soft form (a fixed price on each KL):
`soft_decoupled_mstep`. One KL for mean and covariance together: `losses/mstep_single.py`.
Axes: N sampled actions, S states, A action dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mpo_robot.losses.gaussian import HALF_LOG_TWO_PI, kl_mean, kl_stddev


class Gaussian(NamedTuple):
    """Parameters of a diagonal Gaussian per state, each [S, A]."""

    mean: Tensor
    stddev: Tensor


class NoiseMoments(NamedTuple):
    """Weighted moments of the standard-normal noise behind the sampled actions.

    With actions a_n = target_mean + target_stddev * z_n they hold all that the weighted likelihood needs.

    Attributes:
        first: [S, A] sum_n w_n z_n.
        second: [S, A] sum_n w_n z_n^2.
        total: Sum of the weights in each state: the number of E-step objectives whose weights were added up.
    """

    first: Tensor
    second: Tensor
    total: float = 1.0


class WeightedLikelihood(NamedTuple):
    """The two halves of the decoupled weighted negative log-likelihood, each a scalar in nats."""

    loss_mean: Tensor
    loss_stddev: Tensor


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


def noise_moments(weights: Tensor, noise: Tensor, total: float = 1.0) -> NoiseMoments:
    """Moments over the samples of noise [N, S, A] under weights [N, S] that sum to `total` over N."""
    weighted = weights.unsqueeze(-1) * noise
    return NoiseMoments(weighted.sum(dim=0), (weighted * noise).sum(dim=0), total)


def weighted_likelihood(
    online: Gaussian, target: Gaussian, moments: NoiseMoments, state_weights: Tensor
) -> WeightedLikelihood:
    """Weighted negative log-likelihood, mean fitted under the target stddev and stddev under the target mean.

    Equals -sum_s w_s sum_n q_n log N(a_n | online_mean, target_stddev) and
    -sum_s w_s sum_n q_n log N(a_n | target_mean, online_stddev) for weights q that sum to `moments.total`
    (Abdolmaleki et al. 2018, equation 10 with the decoupling of appendix D.3), written with two moments of the noise
    instead of N log densities. Gradient flows to `online` only.
    """
    target_mean, target_stddev = target.mean.detach(), target.stddev.detach()
    first, second, total = moments
    offset = (target_mean - online.mean) / target_stddev
    spread_mean = second + offset * (2.0 * first + total * offset)  # E_q[((a - mu) / sigma)^2]
    spread_stddev = second * (target_stddev / online.stddev).square()
    nll_mean = 0.5 * spread_mean + total * (target_stddev.log() + HALF_LOG_TWO_PI)
    nll_stddev = 0.5 * spread_stddev + total * (online.stddev.log() + HALF_LOG_TWO_PI)
    return WeightedLikelihood((state_weights @ nll_mean).sum(), (state_weights @ nll_stddev).sum())


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


class MStep(NamedTuple):
    """Parts of the M-step; scalars unless noted."""

    loss_policy_mean: Tensor
    loss_policy_stddev: Tensor
    penalty_mean: KLPenalty
    penalty_stddev: KLPenalty


def decoupled_mstep(
    online: Gaussian,
    target: Gaussian,
    moments: NoiseMoments,
    alpha_mean: Tensor,
    alpha_stddev: Tensor,
    epsilon_mean: float,
    epsilon_stddev: float,
    state_weights: Tensor,
) -> MStep:
    """Policy losses and KL terms of one M-step.

    The weights behind `moments` may be the sum of several E-step objectives' weights (task, out-of-bounds penalty);
    each objective's weights sum to 1, so with two the likelihood terms weigh 2 in total (as in MO-MPO).
    """
    likelihood = weighted_likelihood(online, target, moments, state_weights)
    mean_kl, stddev_kl = decoupled_kls(online, target)
    return MStep(
        likelihood.loss_mean,
        likelihood.loss_stddev,
        kl_penalty(mean_kl, alpha_mean, epsilon_mean, state_weights),
        kl_penalty(stddev_kl, alpha_stddev, epsilon_stddev, state_weights),
    )


def soft_decoupled_mstep(
    online: Gaussian,
    target: Gaussian,
    moments: NoiseMoments,
    kl_weight_mean: float,
    kl_weight_stddev: float,
    state_weights: Tensor,
) -> MStep:
    """`decoupled_mstep` with fixed prices of the two KLs instead of bounds (MAP prior, see `soft_penalty`)."""
    likelihood = weighted_likelihood(online, target, moments, state_weights)
    mean_kl, stddev_kl = decoupled_kls(online, target)
    return MStep(
        likelihood.loss_mean,
        likelihood.loss_stddev,
        soft_penalty(mean_kl, kl_weight_mean, state_weights),
        soft_penalty(stddev_kl, kl_weight_stddev, state_weights),
    )


def decoupled_kls(online: Gaussian, target: Gaussian) -> tuple[Tensor, Tensor]:
    """KL(target || online) of the mean under the target's stddev, and of the stddev; [S, A] each.

    Gradient flows to `online` only.
    """
    target_mean, target_stddev = target.mean.detach(), target.stddev.detach()
    return kl_mean(target_mean, target_stddev, online.mean), kl_stddev(target_stddev, online.stddev)
