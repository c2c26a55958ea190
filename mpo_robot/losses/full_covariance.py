"""Gaussians with a full covariance by its Cholesky factor: densities, KLs, weighted likelihoods.

The covariance is scale_tril scale_tril^T, scale_tril lower triangular with a positive diagonal. Only triangular solves
and logarithms of diagonals: determinants and inverses of the covariance square its condition number and go negative or
NaN in float32. With a diagonal factor everything here equals the functions of `losses/gaussian.py`, per dimension too.
Axes: N sampled actions, S states, A action dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor

from mpo_robot.losses.gaussian import HALF_LOG_TWO_PI, WeightedLikelihood


class FullGaussian(NamedTuple):
    """Parameters of one Gaussian per state."""

    mean: Tensor  # [S, A]
    scale_tril: Tensor  # [S, A, A] lower triangular, positive diagonal


class FullNoiseMoments(NamedTuple):
    """Weighted moments of the standard-normal noise behind actions a_n = target_mean + target_scale_tril z_n.

    Attributes:
        first: [S, A] sum_n w_n z_n.
        second: [S, A, A] sum_n w_n z_n z_n^T.
        total: Sum of the weights in each state.
    """

    first: Tensor
    second: Tensor
    total: float = 1.0


def sample(gaussian: FullGaussian, noise: Tensor) -> Tensor:
    """Actions [N, S, A] from standard-normal noise [N, S, A]."""
    return gaussian.mean + (gaussian.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)


def log_prob(gaussian: FullGaussian, action: Tensor) -> Tensor:
    """Log density in nats of actions [..., S, A]; returns [..., S]. Gradient flows to all."""
    standardized = _whiten(gaussian.scale_tril, action - gaussian.mean)
    return -(0.5 * standardized.square() + HALF_LOG_TWO_PI + _log_diagonal(gaussian.scale_tril)).sum(dim=-1)


def entropy(scale_tril: Tensor) -> Tensor:
    """Differential entropy in nats, [S]."""
    return (_log_diagonal(scale_tril) + 0.5 + HALF_LOG_TWO_PI).sum(dim=-1)


def stddev(scale_tril: Tensor) -> Tensor:
    """Marginal standard deviation of each action dimension, [S, A]."""
    return scale_tril.square().sum(dim=-1).sqrt()


def kl_mean(target_mean: Tensor, target_tril: Tensor, online_mean: Tensor) -> Tensor:
    """KL between the two means under the target's covariance, [S, A] per dimension whitened by it, never negative.

    Entry i is 1/2 y_i^2 with y = L_target^-1 (mu_online - mu_target).
    """
    return 0.5 * _whiten(target_tril, online_mean - target_mean).square()


def kl_covariance(target_tril: Tensor, online_tril: Tensor) -> Tensor:
    """KL(target || online) for a common mean, [S, A] per dimension whitened by the online factor, never negative.

    Entry i is 1/2 (sum_j M_ij^2 - 1) - log M_ii with M = L_online^-1 L_target.
    """
    return _covariance_kl(_solve(online_tril, target_tril))


def coupled_kl(online: FullGaussian, target: FullGaussian) -> Tensor:
    """KL(target || online) of mean and covariance together, [S, A], sum over A is the KL in nats.

    Per dimension whitened by the online policy. Gradient flows to `online` only.
    """
    ratio, shift = _relative(online, target)
    return 0.5 * shift.square() + _covariance_kl(ratio)


def full_noise_moments(weights: Tensor, noise: Tensor, total: float = 1.0) -> FullNoiseMoments:
    """Moments over the samples of noise [N, S, A] under weights [N, S] that sum to `total` over N."""
    by_state = noise.transpose(0, 1)  # [S, N, A]
    weighted = (weights.unsqueeze(-1) * noise).permute(1, 2, 0)  # [S, A, N]
    return FullNoiseMoments(weighted.sum(dim=-1), weighted @ by_state, total)


def weighted_likelihood(
    online: FullGaussian, target: FullGaussian, moments: FullNoiseMoments, state_weights: Tensor
) -> WeightedLikelihood:
    """Decoupled weighted negative log-likelihood: mean under the target's covariance, covariance under its mean.

    Abdolmaleki et al. 2018, equation 10 with the decoupling of appendix D.3. Gradient flows to `online` only.
    """
    target_mean, target_tril = target.mean.detach(), target.scale_tril.detach()
    first, second, total = moments
    offset = _whiten(target_tril, target_mean - online.mean)  # L^-1 (a - mu) = z + offset
    spread_mean = second.diagonal(dim1=-2, dim2=-1) + offset * (2.0 * first + total * offset)
    ratio = _solve(online.scale_tril, target_tril)
    nll_mean = 0.5 * spread_mean + total * (_log_diagonal(target_tril) + HALF_LOG_TWO_PI)
    nll_covariance = 0.5 * _spread(ratio, second) + total * (_log_diagonal(online.scale_tril) + HALF_LOG_TWO_PI)
    return WeightedLikelihood((state_weights @ nll_mean).sum(), (state_weights @ nll_covariance).sum())


def coupled_likelihood(
    online: FullGaussian, target: FullGaussian, moments: FullNoiseMoments, state_weights: Tensor
) -> Tensor:
    """-sum_s w_s sum_n q_n log N(a_n | online), a scalar in nats. Gradient flows to `online` only."""
    first, second, total = moments
    ratio, shift = _relative(online, target)  # L_online^-1 (a - mu_online) = ratio z + shift
    cross = (ratio @ first.unsqueeze(-1)).squeeze(-1)
    spread = _spread(ratio, second) + shift * (2.0 * cross + total * shift)
    return (state_weights @ (0.5 * spread + total * (_log_diagonal(online.scale_tril) + HALF_LOG_TWO_PI))).sum()


def _log_diagonal(scale_tril: Tensor) -> Tensor:
    return scale_tril.diagonal(dim1=-2, dim2=-1).log()


def _solve(scale_tril: Tensor, right: Tensor) -> Tensor:
    """L^-1 right, by forward substitution."""
    # torch.linalg's functions are made in C and carry no types.
    solve = cast("Callable[..., Tensor]", torch.linalg.solve_triangular)  # pyright: ignore[reportUnknownMemberType]
    return solve(scale_tril, right, upper=False)


def _whiten(scale_tril: Tensor, vector: Tensor) -> Tensor:
    """L^-1 x for vectors [..., A]."""
    return _solve(scale_tril, vector.unsqueeze(-1)).squeeze(-1)


def _relative(online: FullGaussian, target: FullGaussian) -> tuple[Tensor, Tensor]:
    """L_online^-1 L_target [S, A, A] and L_online^-1 (mu_target - mu_online) [S, A], in one solve."""
    shift = (target.mean.detach() - online.mean).unsqueeze(-1)
    columns = torch.cat([target.scale_tril.detach(), shift], dim=-1)
    solved = _solve(online.scale_tril, columns)
    return solved[..., :-1], solved[..., -1]


def _covariance_kl(ratio: Tensor) -> Tensor:
    """[S, A] rows of the covariance's KL from L_online^-1 L_target."""
    return 0.5 * (ratio.square().sum(dim=-1) - 1.0) - _log_diagonal(ratio)


def _spread(ratio: Tensor, second: Tensor) -> Tensor:
    """[S, A] diagonal of ratio second ratio^T, whose sum is sum_n w_n |ratio z_n|^2."""
    return (ratio @ second * ratio).sum(dim=-1)
