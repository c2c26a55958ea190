"""Closed forms for diagonal Gaussians: log density and the decoupled KL divergences of the M-step.

Axes: S states, A action dimensions.
"""

from __future__ import annotations

import math

from torch import Tensor

HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


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
