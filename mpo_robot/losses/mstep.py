"""M-step of MPO for Gaussians: weighted maximum likelihood under constraints on KL(target || online).

Decoupled: mean and covariance are fitted apart, each with a KL of its own (Abdolmaleki et al. 2018, appendix D.3).
Single: equations 10 to 12 as they stand. Mean and covariance pay for each other then: a step of the mean is cheap while
the stddev is large, and a bound small enough for the covariance slows the mean down.
Axes: S states, A action dimensions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from mpo_robot.losses.constraint import Constraint, KLPenalty
from mpo_robot.losses.families import Family, decoupled_kls


class MStep(NamedTuple):
    """Parts of the M-step; scalars unless noted."""

    loss_policy_mean: Tensor
    loss_policy_stddev: Tensor
    penalty_mean: KLPenalty
    penalty_stddev: KLPenalty


class SingleMStep(NamedTuple):
    """Parts of an M-step with one KL.

    Attributes:
        loss_policy: Scalar weighted negative log-likelihood in nats; gradient flows to the online policy only.
        penalty: The KL and its multiplier.
    """

    loss_policy: Tensor
    penalty: KLPenalty


def decoupled_mstep(
    family: Family,
    online: Any,
    target: Any,
    moments: Any,
    on_mean: Constraint,
    on_stddev: Constraint,
    state_weights: Tensor,
) -> MStep:
    """Policy losses and KL terms of one M-step.

    The weights behind `moments` may be the sum of several E-step objectives' weights (task, out-of-bounds penalty);
    each objective's weights sum to 1, so with two the likelihood terms weigh 2 in total (as in MO-MPO).

    Args:
        family: Of the two policies.
        online: Its parameters, with gradient.
        target: Likewise; gradients are stopped here.
        moments: Weighted moments of the noise behind the sampled actions (`family.moments`).
        on_mean: Constraint on the KL of the mean.
        on_stddev: Constraint on the KL of the covariance.
        state_weights: [S], sum 1.
    """
    likelihood = family.weighted_likelihood(online, target, moments, state_weights)
    kls = decoupled_kls(family, online, target)
    return MStep(
        likelihood.loss_mean,
        likelihood.loss_stddev,
        on_mean(kls.mean, state_weights),
        on_stddev(kls.covariance, state_weights),
    )


def single_mstep(
    family: Family, online: Any, target: Any, moments: Any, constraint: Constraint, state_weights: Tensor
) -> SingleMStep:
    """Weighted likelihood under a constraint on the KL of mean and covariance together; arguments as above."""
    return SingleMStep(
        family.coupled_likelihood(online, target, moments, state_weights),
        constraint(family.coupled_kl(online, target), state_weights),
    )
