"""The policy improvement that `MPOConfig` names, for either family of Gaussians.

Axes: N sampled actions, S states.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mpo_robot.duals import Duals
from mpo_robot.losses.constraint import Constraint, KLPenalty, bound, price
from mpo_robot.losses.families import Family
from mpo_robot.losses.mstep import MStep, decoupled_mstep, single_mstep
from mpo_robot.losses.parametric import parametric_step
from mpo_robot.mpo_config import MPOConfig


def policy_mstep(
    family: Family, online: Any, target: Any, moments: Any, duals: Duals, mpo: MPOConfig, state_weights: Tensor
) -> MStep:
    """The M-step named by `mpo.mstep` and `mpo.kl_form`.

    With one KL it is under `penalty_mean`, with the multiplier and bound of the mean; the other penalty is zero.
    """
    if mpo.kl_form == "bound":
        on_mean, on_stddev = _bounds(duals, mpo)
    else:
        on_mean, on_stddev = price(mpo.init_alpha_mean), price(mpo.init_alpha_stddev)
    if mpo.mstep == "decoupled":
        return decoupled_mstep(family, online, target, moments, on_mean, on_stddev, state_weights)
    single = single_mstep(family, online, target, moments, on_mean, state_weights)
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
    estimator: Any = mpo.parametric_estimator  # one of `parametric.Estimator`: MPOConfig allows no other
    sample = (sampled_from, noise, values)
    return parametric_step(family, online, target, *sample, *_bounds(duals, mpo), state_weights, estimator)


def _bounds(duals: Duals, mpo: MPOConfig) -> tuple[Constraint, Constraint]:
    """On the KL of the mean and on that of the covariance."""
    return bound(duals.alpha_mean, mpo.epsilon_mean), bound(duals.alpha_stddev, mpo.epsilon_stddev)
