"""MPO with a parametric variational distribution: the second variant of Abdolmaleki et al. 2018 (appendix D.4, Alg. 3).

The E-step improves a policy q of the same form as the target policy directly: maximise mean_s E_q A(s, a) under bounds
on KL(q || pi_target), and q becomes the policy, so there is no M-step. q is the online policy here. The KL is the
E-step's, the other way round than in the M-step, and decoupled into mean and covariance as there. A is Q minus its mean
over the samples. Axes: N sampled actions, S states, A action dimensions, K discrete actions.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from mpo_robot.losses import categorical_policy
from mpo_robot.losses.constraint import Constraint
from mpo_robot.losses.families import Family, detached, reverse_kls
from mpo_robot.losses.mstep import MStep, SingleMStep

Estimator = Literal["likelihood_ratio", "importance"]


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
    family: Family,
    online: Any,
    target: Any,
    sampled_from: Any,
    noise: Tensor,
    q_values: Tensor,
    on_mean: Constraint,
    on_stddev: Constraint,
    state_weights: Tensor,
    estimator: Estimator = "likelihood_ratio",
) -> MStep:
    """Policy loss and KL terms; the loss is minus the estimate of mean_s E_q A, under `loss_policy_mean`.

    Of the likelihood ratio's loss only the gradient counts. The KLs are KL(online || target).

    Args:
        family: Of the three policies.
        online: Its parameters, with gradient.
        target: Likewise; gradients are stopped here.
        sampled_from: Policy that the actions were sampled from; gradients are stopped here. For "likelihood_ratio" it
            must be the online policy as it is now (as in the paper's algorithm 3): sum_n w_n log q(a_n) has the right
            gradient there only, and no lower bound. "importance" also holds for the target policy, while the two are
            close.
        noise: [N, S, A] standard-normal noise behind the actions, N >= 2.
        q_values: [N, S] their values by the target critic; gradients are stopped here.
        on_mean: Constraint on the KL of the mean.
        on_stddev: Constraint on the KL of the covariance.
        state_weights: [S], sum 1.
        estimator: See `sampled_from`.
    """
    behavior = detached(sampled_from)
    if estimator == "importance":
        actions = family.sample(behavior, noise)
        log_probs = family.log_prob(online, actions), family.log_prob(behavior, actions)
        loss = importance_loss(*log_probs, q_values, state_weights)
    else:
        moments: Any = family.moments(advantage_weights(q_values), noise, 0.0)
        loss = family.coupled_likelihood(online, behavior, moments, state_weights)
    kls = reverse_kls(family, online, target)
    return MStep(
        loss,
        state_weights.new_zeros(()),
        on_mean(kls.mean, state_weights),
        on_stddev(kls.covariance, state_weights),
    )


def categorical_parametric_step(
    online_logits: Tensor,
    target_logits: Tensor,
    q_values: Tensor,
    constraint: Constraint,
    state_weights: Tensor,
) -> SingleMStep:
    """-mean_s sum_a q(a|s) A(s, a) over all discrete actions, exact, under a constraint on KL(online || target).

    Args:
        online_logits: [S, K], with gradient.
        target_logits: [S, K]; gradients are stopped here.
        q_values: [S, K] target critic's values; gradients are stopped here. A is Q minus E_target Q, which changes the
            loss, but not its gradient.
        constraint: On the KL, [S, 1].
        state_weights: [S], sum 1.
    """
    values, target = q_values.detach(), target_logits.detach()
    advantage = values - categorical_policy.expected_value(values, target).unsqueeze(-1)
    loss = -(state_weights @ (torch.softmax(online_logits, dim=-1) * advantage).sum(dim=-1))
    divergence = categorical_policy.kl(online_logits, target).unsqueeze(-1)  # [S, 1]
    return SingleMStep(loss, constraint(divergence, state_weights))
