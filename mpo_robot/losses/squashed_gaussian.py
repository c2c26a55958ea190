"""Log density of a Gaussian that tanh squashes into (-1, 1). Axes: A action dimensions."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional

from mpo_robot.losses.gaussian import log_prob

LARGEST_ACTION = 1.0 - 2.0**-24  # the largest float32 below 1: the density is of an open interval


def squashed_log_prob(mean: Tensor, stddev: Tensor, pre_squash: Tensor) -> Tensor:
    """Log density in nats of tanh(pre_squash) for pre_squash [..., A] from N(mean, diag(stddev^2)); returns [...].

    log N(u) - sum_i log(1 - tanh(u_i)^2), Haarnoja et al. 2018b, appendix C; the logarithm is written as
    2 (log 2 - u - softplus(-2 u)), which does not overflow. Gradient flows to all arguments.
    """
    log_slope = 2.0 * (math.log(2.0) - pre_squash - functional.softplus(-2.0 * pre_squash))
    return log_prob(mean, stddev, pre_squash) - log_slope.sum(dim=-1)


def squashed_log_prob_of(mean: Tensor, stddev: Tensor, action: Tensor) -> Tensor:
    """The same for an action [..., A] that is given squashed; outside (-1, 1) it is taken as the nearest inside."""
    return squashed_log_prob(mean, stddev, action.clamp(-LARGEST_ACTION, LARGEST_ACTION).atanh())
