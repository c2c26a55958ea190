"""The critic's targets, by the estimator of returns that the configuration names, for every learner.

Axes: B sequences, L steps, S = B * (L + 1) states.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mpo_robot.actor_critic import TensorBatch
from mpo_robot.losses.returns import Traces, n_step, off_policy_returns, retrace, td_lambda, td_zero
from mpo_robot.mpo_config import LearnerConfig


class Targets(NamedTuple):
    """Targets of the critic, without gradient."""

    returns: Tensor  # [B, L]
    coefficients: Tensor  # [B, L]


def carries_trace(batch: TensorBatch) -> Tensor:
    """[B, L] bool, whether returns may be carried back across the action of each step."""
    return (batch.trace_valid > 0) & (batch.is_transition > 0)


def return_horizon(config: LearnerConfig, steps: int) -> int:
    """n of the uncorrected returns `td_zero` and `n_step`, in sequences of `steps`."""
    return 1 if config.returns == "td_zero" else config.return_horizon or steps


def discounts(config: LearnerConfig, batch: TensorBatch) -> Tensor:
    """[B, L] discount of the value after each step: 0 where it terminated the task."""
    return config.discount_at() * (1.0 - batch.terminated)


@torch.no_grad()
def critic_targets(
    config: LearnerConfig, batch: TensorBatch, log_probs: Tensor, value: Tensor, q_taken: Tensor
) -> Targets:
    """Returns of the configured estimator.

    Args:
        config: Discount and estimator.
        batch: Rewards in the critic's unit.
        log_probs: [B, L] log-probability of the actions taken under the policy that is evaluated, nats.
        value: [S] expected value of that policy in every state.
        q_taken: [B, L] value of the actions taken.
    """
    next_value = batch.after(value)
    traces = configured_traces(config, batch, log_probs, next_value, q_taken)
    return Targets(off_policy_returns(batch.reward, discounts(config, batch), next_value, *traces), traces.coefficients)


def configured_traces(
    config: LearnerConfig, batch: TensorBatch, log_probs: Tensor, next_value: Tensor, q_taken: Tensor
) -> Traces:
    """Last arguments of `off_policy_returns` for `config.returns`.

    Args:
        log_probs: [B, L] log-probability of each action under the target policy, nats; only `retrace` needs it.
        next_value: [B, L] value of the state after each step.
        q_taken: [B, L] value of each action in its state.
    """
    valid = carries_trace(batch)
    if config.returns == "td_zero":
        return td_zero(next_value)
    if config.returns == "td_lambda":
        return td_lambda(next_value, valid, config.retrace_lambda)
    if config.returns == "n_step":
        return n_step(next_value, valid, return_horizon(config, batch.reward.shape[1]))
    log_rhos = log_probs - batch.behavior_log_prob
    return retrace(q_taken, log_rhos, valid, config.retrace_lambda, config.return_horizon)
