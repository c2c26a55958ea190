"""The Gaussian families an MPO policy may belong to: what the M-step and the parametric variant need of each.

Axes: N sampled actions, S states, A action size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

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
    kl_mean = staticmethod(gaussian.kl_mean)
    kl_covariance = staticmethod(gaussian.kl_stddev)
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
    kl_mean = staticmethod(full_covariance.kl_mean)
    kl_covariance = staticmethod(full_covariance.kl_covariance)
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


class DecoupledKLs(NamedTuple):
    """A KL of the mean and one of the covariance, [S, A] each, in nats; each sums over A to its KL."""

    mean: Tensor
    covariance: Tensor


def decoupled_kls(family: Family, online: Any, target: Any) -> DecoupledKLs:
    """KL(target || online): mean's under the target's covariance, covariance's under a common mean.

    Gradient flows to `online` only.
    """
    (mean, scale), (target_mean, target_scale) = online, detached(target)
    return DecoupledKLs(family.kl_mean(target_mean, target_scale, mean), family.kl_covariance(target_scale, scale))


def reverse_kls(family: Family, online: Any, target: Any) -> DecoupledKLs:
    """`decoupled_kls` the other way round, KL(online || target); the mean's is symmetric in the means."""
    (mean, scale), (target_mean, target_scale) = online, detached(target)
    return DecoupledKLs(family.kl_mean(target_mean, target_scale, mean), family.kl_covariance(scale, target_scale))


def weighted_moments(family: Family, weights: Tensor, noise: Tensor, total: float, center: bool) -> Any:
    """Moments of noise [N, S, A] under weights [N, S] that sum to `total`; `center` as `MPOConfig.center_weights`."""
    if not center:
        return family.moments(weights, noise, total)
    centered = family.moments(weights - total / len(noise), noise, total)
    return centered._replace(second=centered.second + total * family.identity(noise.shape[-1]))


def detached(policy: Any) -> Any:
    """The same parameters without gradient."""
    return type(policy)(*(item.detach() for item in policy))
