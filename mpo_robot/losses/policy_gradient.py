"""Policy losses of the baselines, each a scalar whose gradient is the algorithm's policy gradient.

Axes: N sampled actions, S states, A action dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mpo_robot.losses.parametric import advantage_weights


class PolicyLoss(NamedTuple):
    """Attributes:
    loss: Scalar to minimise.
    objective: Scalar estimate of what is maximised, without gradient.
    """

    loss: Tensor
    objective: Tensor


def deterministic_policy_gradient(
    action: Tensor, q_values: Tensor, q_slope: Tensor, state_weights: Tensor
) -> PolicyLoss:
    """Gradient of sum_s w_s Q(s, a(s)) by the chain rule: dQ/da times da/dtheta (Silver et al. 2014, equation 9).

    Args:
        action: [S, A] of the policy; the gradient flows to it.
        q_values: [S] Q(s, a).
        q_slope: [S, A] dQ/da there, a constant.
        state_weights: [S], sum 1.
    """
    loss = -(state_weights @ (q_slope.detach() * action).sum(dim=-1))
    return PolicyLoss(loss, state_weights @ q_values.detach())


def soft_policy_gradient(
    action: Tensor,
    log_prob: Tensor,
    q_values: Tensor,
    q_slope: Tensor,
    temperature: Tensor,
    state_weights: Tensor,
) -> PolicyLoss:
    """Gradient of sum_s w_s [Q(s, a) - temperature log pi(a|s)] for a reparameterised action.

    Haarnoja et al. 2018b, equations 9 and 10.

    Args:
        action: [S, A] as a function of the policy's parameters and of fixed noise.
        log_prob: [S] log pi(action|s), gradient through both; nats.
        q_values: [S] Q(s, a).
        q_slope: [S, A] dQ/da there, a constant.
        temperature: Scalar or [1]; a constant here.
        state_weights: [S], sum 1.
    """
    critic = deterministic_policy_gradient(action, q_values, q_slope, state_weights)
    entropy = -(state_weights @ log_prob)
    weight = temperature.detach().squeeze()
    return PolicyLoss(critic.loss - weight * entropy, critic.objective + weight * entropy.detach())


def entropy_temperature_loss(
    temperature: Tensor, log_prob: Tensor, target_entropy: float, state_weights: Tensor
) -> Tensor:
    """temperature (entropy - target_entropy), scalar: it falls while the entropy is above its target.

    Haarnoja et al. 2018b, equation 18. Gradient flows to the temperature only. `log_prob` [S], `state_weights` [S].
    """
    entropy = -(state_weights @ log_prob.detach())
    return (temperature * (entropy - target_entropy)).sum()


def expected_policy_gradient(q_values: Tensor, log_prob: Tensor, state_weights: Tensor) -> PolicyLoss:
    """Gradient of sum_s w_s E_{a ~ pi}[Q(s, a)] from N actions per state, by the likelihood ratio.

    1/N sum_n (Q(s, a_n) - b_n) grad log pi(a_n|s), where b_n is the mean value of the *other* actions, so that the
    estimate stays unbiased (Ciosek and Whiteson 2018; baseline of Kool et al. 2019).

    Args:
        q_values: [N, S] of actions sampled from the policy itself; constants.
        log_prob: [N, S] log pi(a_n|s) with gradient to the policy, none through the actions.
        state_weights: [S], sum 1.

    Raises:
        ValueError: fewer than 2 actions per state.
    """
    advantages = advantage_weights(q_values)
    loss = -((advantages * log_prob).sum(dim=0) @ state_weights)
    return PolicyLoss(loss, q_values.detach().mean(dim=0) @ state_weights)
