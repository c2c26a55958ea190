"""The estimator of returns that the configuration names, for every learner. Axes: B sequences, L steps."""

from __future__ import annotations

from torch import Tensor

from mpo_robot.actor_critic import TensorBatch
from mpo_robot.losses.returns import Traces, n_step, retrace, td_lambda, td_zero
from mpo_robot.mpo_config import LearnerConfig


def configured_traces(
    config: LearnerConfig, batch: TensorBatch, log_probs: Tensor, next_value: Tensor, q_taken: Tensor
) -> Traces:
    """Last arguments of `off_policy_returns` for `config.returns`.

    Args:
        log_probs: [B, L] log-probability of each action under the target policy, nats; only `retrace` needs it.
        next_value: [B, L] value of the state after each step.
        q_taken: [B, L] value of each action in its state.
    """
    valid = (batch.trace_valid > 0) & (batch.is_transition > 0)
    if config.returns == "td_zero":
        return td_zero(next_value)
    if config.returns == "td_lambda":
        return td_lambda(next_value, valid, config.retrace_lambda)
    if config.returns == "n_step":
        return n_step(next_value, valid, config.return_horizon or batch.reward.shape[1])
    log_rhos = log_probs - batch.behavior_log_prob
    return retrace(q_taken, log_rhos, valid, config.retrace_lambda, config.return_horizon)
