"""Closed forms for diagonal Gaussians: densities, KL divergences, weighted likelihoods.

Axes: N sampled actions, S states, A action dimensions. Full covariances: `losses/full_covariance.py`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


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


def log_prob(mean: Tensor, stddev: Tensor, action: Tensor) -> Tensor:
    """Log density in nats of `action` [..., A] under N(mean, diag(stddev^2)); returns [...]. Gradient flows to all."""
    standardized = (action - mean) / stddev
    return -(0.5 * standardized.square() + stddev.log() + HALF_LOG_TWO_PI).sum(dim=-1)


def entropy(stddev: Tensor) -> Tensor:
    """Differential entropy in nats of N(., diag(stddev^2)), [...] from [..., A]."""
    return (stddev.log() + 0.5 + HALF_LOG_TWO_PI).sum(dim=-1)


def kl_mean(target_mean: Tensor, target_stddev: Tensor, online_mean: Tensor) -> Tensor:
    """KL(N(target_mean, target_stddev) || N(online_mean, target_stddev)) per dimension, [..., A], nats.

    Both Gaussians have the *target* policy's covariance (decoupled update, Abdolmaleki et al. 2018, appendix D.3; the
    printed formulas for C_mu and C_Sigma are swapped there). Gradient is meant to flow to `online_mean` only.
    """
    return 0.5 * ((online_mean - target_mean) / target_stddev).square()


def kl_stddev(target_stddev: Tensor, online_stddev: Tensor) -> Tensor:
    """KL(N(m, target_stddev) || N(m, online_stddev)) per dimension for a common mean, [..., A], nats."""
    ratio = target_stddev / online_stddev
    return 0.5 * (ratio.square() - 1.0) - ratio.log()


def kl_full(target_mean: Tensor, target_stddev: Tensor, online_mean: Tensor, online_stddev: Tensor) -> Tensor:
    """KL(N(target_mean, target_stddev) || N(online_mean, online_stddev)) per dimension, [..., A], nats.

    Mean and covariance together: not the sum of `kl_mean` and `kl_stddev` unless the two stddevs are equal.
    """
    return 0.5 * ((online_mean - target_mean) / online_stddev).square() + kl_stddev(target_stddev, online_stddev)


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


def coupled_kl(online: Gaussian, target: Gaussian) -> Tensor:
    """KL(target || online) of mean and stddev together, [S, A]; gradient to `online` only."""
    return kl_full(target.mean.detach(), target.stddev.detach(), online.mean, online.stddev)
