"""MPO with a parametric variational distribution: the second variant of Abdolmaleki et al. 2018 (appendix D.4, Alg. 3).

The E-step improves a policy q of the same form as the target policy directly: maximise mean_s E_q A(s, a) under bounds
on KL(q || pi_target), and q becomes the policy, so there is no M-step. q is the online policy here. The KL is the
E-step's, the other way round than in the M-step, and decoupled into mean and covariance as there. A is Q minus its mean
over the samples. Axes: N sampled actions, S states, A action dimensions, K discrete actions.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mpo_robot.losses import categorical_policy, full_covariance, gaussian, mstep_single
from mpo_robot.losses.full_covariance import FullGaussian, full_noise_moments
from mpo_robot.losses.mstep import Gaussian, KLPenalty, kl_penalty, noise_moments
from mpo_robot.losses.mstep_single import SingleMStep

Estimator = Literal["likelihood_ratio", "importance"]


class Bounds(NamedTuple):
    """Multipliers ([A] or [1], positive) and bounds (nats) of the two KLs."""

    alpha_mean: Tensor
    alpha_stddev: Tensor
    epsilon_mean: float
    epsilon_stddev: float


class ParametricStep(NamedTuple):
    """Parts of the step.

    Attributes:
        loss_policy: Scalar, minus the estimate of mean_s E_q A (for the likelihood ratio: its gradient only counts).
        penalty_mean: KL(online || target) of the mean under the target's covariance.
        penalty_stddev: KL(online || target) of the covariance.
    """

    loss_policy: Tensor
    penalty_mean: KLPenalty
    penalty_stddev: KLPenalty


def advantage_weights(q_values: Tensor) -> Tensor:
    """(Q - mean over samples) / (N - 1) from [N, S]: sums to 0 over N; no gradient.

    N - 1 makes sum_n weight_n grad log q(a_n) unbiased for the gradient of E_q Q, although the baseline contains the
    action's own value. (The same as subtracting the mean of the other samples and dividing by N.)

    Raises:
        ValueError: not [N, S] with N >= 2.
    """
    if q_values.ndim != 2 or len(q_values) < 2:
        raise ValueError(f"need q_values [N, S] with at least 2 samples, got {q_values.shape}")
    values = q_values.detach()
    return (values - values.mean(dim=0)) / (len(values) - 1)


def importance_loss(
    online_log_prob: Tensor, sampled_log_prob: Tensor, q_values: Tensor, state_weights: Tensor
) -> Tensor:
    """-mean_s sum_n w_n q(a_n|s) / pi(a_n|s) with `advantage_weights` w, for actions sampled from pi.

    An estimate of -mean_s E_q A for any policy, wherever q has moved; gradient flows to `online_log_prob` only.

    Args:
        online_log_prob: [N, S] log q(a_n|s).
        sampled_log_prob: [N, S] log pi(a_n|s).
        q_values: [N, S].
        state_weights: [S], sum 1.
    """
    ratio = (online_log_prob - sampled_log_prob.detach()).exp()
    return -(state_weights @ (advantage_weights(q_values) * ratio).sum(dim=0))


def parametric_step(
    online: Gaussian,
    target: Gaussian,
    sampled_from: Gaussian,
    noise: Tensor,
    q_values: Tensor,
    bounds: Bounds,
    state_weights: Tensor,
    estimator: Estimator = "likelihood_ratio",
) -> ParametricStep:
    """Policy loss and KL terms for diagonal Gaussians.

    Args:
        online: [S, A] each, with gradient.
        target: [S, A] each; gradients are stopped here.
        sampled_from: Policy that the actions were sampled from; gradients are stopped here. For "likelihood_ratio" it
            must be the online policy as it is now (as in the paper's algorithm 3): sum_n w_n log q(a_n) has the right
            gradient there only, and no lower bound. "importance" also holds for the target policy, while the two are
            close.
        noise: [N, S, A] standard-normal noise behind the actions, N >= 2.
        q_values: [N, S] their values by the target critic; gradients are stopped here.
        bounds: Of the two KLs.
        state_weights: [S], sum 1.
        estimator: See `sampled_from`.
    """
    behavior = Gaussian(sampled_from.mean.detach(), sampled_from.stddev.detach())
    if estimator == "importance":
        actions = behavior.mean + behavior.stddev * noise
        log_probs = gaussian.log_prob(*online, actions), gaussian.log_prob(*behavior, actions)
        loss = importance_loss(*log_probs, q_values, state_weights)
    else:
        moments = noise_moments(advantage_weights(q_values), noise, total=0.0)
        loss = mstep_single.coupled_likelihood(online, behavior, moments, state_weights)
    target_mean, target_stddev = target.mean.detach(), target.stddev.detach()
    mean_kl = gaussian.kl_mean(target_mean, target_stddev, online.mean)  # symmetric in the means
    stddev_kl = gaussian.kl_stddev(online.stddev, target_stddev)
    return ParametricStep(loss, *_penalties(mean_kl, stddev_kl, bounds, state_weights))


def full_parametric_step(
    online: FullGaussian,
    target: FullGaussian,
    sampled_from: FullGaussian,
    noise: Tensor,
    q_values: Tensor,
    bounds: Bounds,
    state_weights: Tensor,
    estimator: Estimator = "likelihood_ratio",
) -> ParametricStep:
    """`parametric_step` for full covariances; per dimension means per whitened dimension."""
    behavior = FullGaussian(sampled_from.mean.detach(), sampled_from.scale_tril.detach())
    if estimator == "importance":
        actions = full_covariance.sample(behavior, noise)
        log_probs = full_covariance.log_prob(online, actions), full_covariance.log_prob(behavior, actions)
        loss = importance_loss(*log_probs, q_values, state_weights)
    else:
        moments = full_noise_moments(advantage_weights(q_values), noise, total=0.0)
        loss = full_covariance.coupled_likelihood(online, behavior, moments, state_weights)
    target_mean, target_tril = target.mean.detach(), target.scale_tril.detach()
    mean_kl = full_covariance.kl_mean(target_mean, target_tril, online.mean)  # symmetric in the means
    covariance_kl = full_covariance.kl_covariance(online.scale_tril, target_tril)
    return ParametricStep(loss, *_penalties(mean_kl, covariance_kl, bounds, state_weights))


def categorical_parametric_step(
    online_logits: Tensor,
    target_logits: Tensor,
    q_values: Tensor,
    alpha: Tensor,
    epsilon: float,
    state_weights: Tensor,
) -> SingleMStep:
    """-mean_s sum_a q(a|s) A(s, a) over all discrete actions, exact, under a bound on KL(online || target).

    Args:
        online_logits: [S, K], with gradient.
        target_logits: [S, K]; gradients are stopped here.
        q_values: [S, K] target critic's values; gradients are stopped here. A is Q minus E_target Q, which changes the
            loss, but not its gradient.
        alpha: [1] positive multiplier.
        epsilon: Bound in nats.
        state_weights: [S], sum 1.
    """
    values, target = q_values.detach(), target_logits.detach()
    advantage = values - categorical_policy.expected_value(values, target).unsqueeze(-1)
    loss = -(state_weights @ (torch.softmax(online_logits, dim=-1) * advantage).sum(dim=-1))
    divergence = categorical_policy.kl(online_logits, target).unsqueeze(-1)  # [S, 1]
    return SingleMStep(loss, kl_penalty(divergence, alpha, epsilon, state_weights))


def _penalties(
    mean_kl: Tensor, stddev_kl: Tensor, bounds: Bounds, state_weights: Tensor
) -> tuple[KLPenalty, KLPenalty]:
    return (
        kl_penalty(mean_kl, bounds.alpha_mean, bounds.epsilon_mean, state_weights),
        kl_penalty(stddev_kl, bounds.alpha_stddev, bounds.epsilon_stddev, state_weights),
    )
