"""Expected policy gradient with Retrace: MPO's data, critic and action samples without its E- and M-step.

The ablation of Abdolmaleki et al. 2018: the policy follows the gradient of E_pi[Q] by N sampled actions, with neither a
KL constraint nor a target policy, optionally with an entropy bonus. Axes: B sequences, L steps, S = B * (L + 1) states,
N sampled actions, A action size.
"""

from __future__ import annotations

from typing import NamedTuple

from mpo_robot.acting import NumpyActor
from mpo_robot.actor_critic import TensorBatch
from mpo_robot.continuous import ContinuousActorCritic
from mpo_robot.losses.gaussian import entropy, log_prob
from mpo_robot.losses.policy_gradient import expected_policy_gradient
from mpo_robot.networks import GaussianPolicy
from mpo_robot.replay import SequenceBatch
from mpo_robot.return_estimator import critic_targets


class Metrics(NamedTuple):
    """Scalars of one update, by name in `metrics.csv`; values of returns and Q in units of reward."""

    loss_critic: float
    loss_policy: float
    entropy: float
    stddev_mean: float
    q_mean: float
    q_min: float
    q_max: float
    return_target_mean: float
    trace_coefficient_mean: float
    out_of_bounds_mean: float


class EPG(ContinuousActorCritic):
    """Expected policy gradient. The same sampled actions serve the policy and E_pi Q of the critic's target."""

    metric_names = Metrics._fields
    online_policy: GaussianPolicy

    def make_actor(self, policy: GaussianPolicy) -> NumpyActor:
        """The Gaussian in NumPy, as MPO's."""
        return NumpyActor(policy)

    def backward(self, batch: SequenceBatch, reward_scale: float = 1.0, want_metrics: bool = False) -> Metrics | None:
        """First half of `update`: all losses, and their gradients in the parameters' `grad`."""
        tensors = TensorBatch.of(batch, reward_scale)
        weights = self.state_weights(tensors)
        policy = self.online_policy(tensors.observation.flatten(0, 1))
        mean, stddev = policy.mean.detach(), policy.stddev.detach()
        actions = mean + stddev * self.noise(self.config.epg.num_samples, *mean.shape)
        q_values, q_taken = self.target_values(tensors, actions)
        taken_log_prob = log_prob(tensors.before(mean), tensors.before(stddev), tensors.action)
        targets = critic_targets(self.config, tensors, taken_log_prob, q_values.mean(dim=0), q_taken)
        loss_critic = self.critic_loss(tensors, targets.returns)
        gradient = expected_policy_gradient(q_values, log_prob(policy.mean, policy.stddev, actions), weights)
        entropies = entropy(policy.stddev)
        loss = loss_critic + gradient.loss - self.config.epg.entropy_bonus * (weights @ entropies)
        self.require_finite(loss)
        loss.backward()
        if not want_metrics:
            return None
        return Metrics(
            loss_critic=float(loss_critic.detach()),
            loss_policy=-float(gradient.objective),
            entropy=float(entropies.detach().mean()),
            stddev_mean=float(stddev.mean()),
            out_of_bounds_mean=float((actions.abs() > 1.0).any(dim=-1).float().mean()),
            **self.value_metrics(tensors, q_values, *targets, reward_scale)._asdict(),
        )
