"""M-step of MPO for diagonal Gaussians: weighted maximum likelihood under decoupled KL constraints.

Axes: N sampled actions, S states, A action dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mpo_robot.losses.gaussian import HALF_LOG_TWO_PI, kl_mean, kl_stddev


class Gaussian(NamedTuple):
    """Parameters of a diagonal Gaussian per state, each [S, A]."""

    mean: Tensor
    stddev: Tensor


class NoiseMoments(NamedTuple):
    """Weighted moments of the standard-normal noise behind the sampled actions, each [S, A].

    With actions a_n = target_mean + target_stddev * z_n they hold all that the weighted likelihood needs.
    """

    first: Tensor
    second: Tensor


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


def noise_moments(weights: Tensor, noise: Tensor) -> NoiseMoments:
    """Sum_n w_n z_n and sum_n w_n z_n^2 over the samples, each [S, A], from weights [N, S] and noise [N, S, A]."""
    weighted = weights.unsqueeze(-1) * noise
    return NoiseMoments(weighted.sum(dim=0), (weighted * noise).sum(dim=0))


def weighted_likelihood(
    online: Gaussian, target: Gaussian, moments: NoiseMoments, state_weights: Tensor
) -> WeightedLikelihood:
    """Weighted negative log-likelihood, mean fitted under the target stddev and stddev under the target mean.

    Equals -sum_s w_s sum_n q_n log N(a_n | online_mean, target_stddev) and
    -sum_s w_s sum_n q_n log N(a_n | target_mean, online_stddev) for weights q that sum to 1
    (Abdolmaleki et al. 2018, equation 10 with the decoupling of appendix D.3), written with two moments of the noise
    instead of N log densities. Gradient flows to `online` only.
    """
    target_mean, target_stddev = target.mean.detach(), target.stddev.detach()
    offset = (target_mean - online.mean) / target_stddev
    spread_mean = moments.second + 2.0 * offset * moments.first + offset.square()  # E_q[((a - mu) / sigma)^2]
    spread_stddev = moments.second * (target_stddev / online.stddev).square()
    nll_mean = 0.5 * spread_mean + target_stddev.log() + HALF_LOG_TWO_PI
    nll_stddev = 0.5 * spread_stddev + online.stddev.log() + HALF_LOG_TWO_PI
    return WeightedLikelihood(
        (state_weights * nll_mean.sum(dim=-1)).sum(), (state_weights * nll_stddev.sum(dim=-1)).sum()
    )


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
    kl = (state_weights.unsqueeze(-1) * kl_per_dimension).sum(dim=0)  # [A]
    if alpha.shape == (1,):
        kl = kl.sum(dim=0, keepdim=True)
    elif alpha.shape != kl.shape:
        raise ValueError(f"alpha must have shape [1] or {list(kl.shape)}, got {list(alpha.shape)}")
    return KLPenalty((alpha.detach() * kl).sum(), (alpha * (epsilon - kl.detach())).sum(), kl.detach())


class MStep(NamedTuple):
    """Parts of the M-step; scalars unless noted."""

    loss_policy_mean: Tensor
    loss_policy_stddev: Tensor
    penalty_mean: KLPenalty
    penalty_stddev: KLPenalty


def decoupled_mstep(
    online: Gaussian,
    target: Gaussian,
    moments: tuple[NoiseMoments, ...],
    alpha_mean: Tensor,
    alpha_stddev: Tensor,
    epsilon_mean: float,
    epsilon_stddev: float,
    state_weights: Tensor,
) -> MStep:
    """Policy losses and KL terms of one M-step.

    `moments` holds one entry per E-step objective (task, out-of-bounds penalty); each objective's weights sum to 1,
    so with two objectives the likelihood terms add up to a total weight of 2 (as in MO-MPO).
    """
    likelihoods = [weighted_likelihood(online, target, item, state_weights) for item in moments]
    mean_kl = kl_mean(target.mean.detach(), target.stddev.detach(), online.mean)
    stddev_kl = kl_stddev(target.stddev.detach(), online.stddev)
    return MStep(
        torch.stack([item.loss_mean for item in likelihoods]).sum(),
        torch.stack([item.loss_stddev for item in likelihoods]).sum(),
        kl_penalty(mean_kl, alpha_mean, epsilon_mean, state_weights),
        kl_penalty(stddev_kl, alpha_stddev, epsilon_stddev, state_weights),
    )
