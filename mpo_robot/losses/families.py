"""The Gaussian families an MPO policy may belong to: what the M-step and the parametric variant need of each.

Axes: N sampled actions, S states, A action size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mpo_robot.losses import full_covariance, gaussian
from mpo_robot.losses.full_covariance import FullGaussian
from mpo_robot.losses.gaussian import Gaussian


class DiagonalFamily:
    """Independent action dimensions."""

    moments = staticmethod(gaussian.noise_moments)
    weighted_likelihood = staticmethod(gaussian.weighted_likelihood)
    coupled_likelihood = staticmethod(gaussian.coupled_likelihood)
    decoupled_kls = staticmethod(gaussian.decoupled_kls)
    reverse_kls = staticmethod(gaussian.reverse_kls)
    coupled_kl = staticmethod(gaussian.coupled_kl)

    @staticmethod
    def sample(policy: Gaussian, noise: Tensor) -> Tensor:
        """Actions [N, S, A] from standard-normal noise [N, S, A]."""
        return torch.addcmul(policy.mean, noise, policy.stddev)

    @staticmethod
    def log_prob(policy: Gaussian, action: Tensor) -> Tensor:
        """Log density [...] of actions [..., A], nats."""
        return gaussian.log_prob(policy.mean, policy.stddev, action)

    @staticmethod
    def stddev(policy: Gaussian) -> Tensor:
        """Standard deviation of each dimension, [S, A]."""
        return policy.stddev

    @staticmethod
    def entropy(policy: Gaussian) -> Tensor:
        """Differential entropy [S], nats."""
        return gaussian.entropy(policy.stddev)

    @staticmethod
    def identity(size: int) -> Tensor:
        """Second moment of standard-normal noise in the shape of `moments`: [A]."""
        return torch.ones(size)


class FullFamily:
    """Any covariance, by its Cholesky factor; a dimension is one of the whitened vector."""

    moments = staticmethod(full_covariance.full_noise_moments)
    weighted_likelihood = staticmethod(full_covariance.weighted_likelihood)
    coupled_likelihood = staticmethod(full_covariance.coupled_likelihood)
    decoupled_kls = staticmethod(full_covariance.decoupled_kls)
    reverse_kls = staticmethod(full_covariance.reverse_kls)
    coupled_kl = staticmethod(full_covariance.coupled_kl)
    sample = staticmethod(full_covariance.sample)
    log_prob = staticmethod(full_covariance.log_prob)

    @staticmethod
    def stddev(policy: FullGaussian) -> Tensor:
        """Marginal standard deviation of each dimension, [S, A]."""
        return full_covariance.stddev(policy.scale_tril)

    @staticmethod
    def entropy(policy: FullGaussian) -> Tensor:
        """Differential entropy [S], nats."""
        return full_covariance.entropy(policy.scale_tril)

    @staticmethod
    def identity(size: int) -> Tensor:
        """Second moment of standard-normal noise in the shape of `moments`: [A, A]."""
        return torch.eye(size)


Family = type[DiagonalFamily] | type[FullFamily]
FAMILIES: dict[str, Family] = {"diagonal": DiagonalFamily, "full": FullFamily}


def weighted_moments(family: Family, weights: Tensor, noise: Tensor, total: float, center: bool) -> Any:
    """Moments of noise [N, S, A] under weights [N, S] that sum to `total`; `center` as `MPOConfig.center_weights`."""
    if not center:
        return family.moments(weights, noise, total)
    centered = family.moments(weights - total / len(noise), noise, total)
    return centered._replace(second=centered.second + total * family.identity(noise.shape[-1]))


def detached(policy: Any) -> Any:
    """The same parameters without gradient."""
    return type(policy)(*(item.detach() for item in policy))
