"""The Gaussian families an MPO policy may belong to, and the form of the M-step that the configuration names.

Axes: N sampled actions, S states, A action size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mpo_robot.duals import Duals
from mpo_robot.losses import full_covariance, gaussian, mstep, mstep_full, mstep_single, parametric
from mpo_robot.losses.full_covariance import FullGaussian
from mpo_robot.losses.mstep import Gaussian, KLPenalty, MStep
from mpo_robot.mpo_config import MPOConfig


class DiagonalFamily:
    """Independent action dimensions."""

    moments = staticmethod(mstep.noise_moments)
    decoupled = staticmethod(mstep.decoupled_mstep)
    soft_decoupled = staticmethod(mstep.soft_decoupled_mstep)
    single = staticmethod(mstep_single.single_mstep)
    soft_single = staticmethod(mstep_single.soft_single_mstep)
    parametric = staticmethod(parametric.parametric_step)

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
    """Any covariance, by its Cholesky factor."""

    moments = staticmethod(full_covariance.full_noise_moments)
    decoupled = staticmethod(mstep_full.full_decoupled_mstep)
    soft_decoupled = staticmethod(mstep_full.full_soft_decoupled_mstep)
    single = staticmethod(mstep_full.full_single_mstep)
    soft_single = staticmethod(mstep_full.full_soft_single_mstep)
    parametric = staticmethod(parametric.full_parametric_step)
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


def policy_mstep(
    family: Family, online: Any, target: Any, moments: Any, duals: Duals, mpo: MPOConfig, state_weights: Tensor
) -> MStep:
    """The M-step named by `mpo.mstep` and `mpo.kl_form`.

    With one KL it is under `penalty_mean`, with the multiplier and bound of the mean; the other penalty is zero.
    """
    if mpo.mstep == "decoupled" and mpo.kl_form == "bound":
        bounds = (duals.alpha_mean, duals.alpha_stddev, mpo.epsilon_mean, mpo.epsilon_stddev)
        return family.decoupled(online, target, moments, *bounds, state_weights)
    if mpo.mstep == "decoupled":
        prices = (mpo.init_alpha_mean, mpo.init_alpha_stddev)
        return family.soft_decoupled(online, target, moments, *prices, state_weights)
    if mpo.kl_form == "bound":
        single = family.single(online, target, moments, duals.alpha_mean, mpo.epsilon_mean, state_weights)
    else:
        single = family.soft_single(online, target, moments, mpo.init_alpha_mean, state_weights)
    zero = state_weights.new_zeros(())
    return MStep(single.loss_policy, zero, single.penalty, KLPenalty(zero, zero, zero.view(1)))


def parametric_update(
    family: Family,
    online: Any,
    target: Any,
    sampled_from: Any,
    noise: Tensor,
    values: Tensor,
    duals: Duals,
    mpo: MPOConfig,
    state_weights: Tensor,
) -> MStep:
    """The second variant of MPO: the online policy is itself the variational distribution, improved under the bounds.

    Args:
        sampled_from: Policy that the actions were sampled from: with `mpo.parametric_estimator` `likelihood_ratio` the
            online policy as it is now, with `importance` any one near it.
        values: [N, S] of the sampled actions.
    """
    bounds = parametric.Bounds(duals.alpha_mean, duals.alpha_stddev, mpo.epsilon_mean, mpo.epsilon_stddev)
    estimator: Any = mpo.parametric_estimator  # one of `parametric.Estimator`: MPOConfig allows no other
    step = family.parametric(online, target, sampled_from, noise, values, bounds, state_weights, estimator)
    return MStep(step.loss_policy, state_weights.new_zeros(()), step.penalty_mean, step.penalty_stddev)
