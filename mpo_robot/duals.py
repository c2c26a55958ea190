"""Positive dual variables: temperatures and Lagrange multipliers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mpo_robot.mpo_config import MPOConfig
from mpo_robot.networks import inverse_softplus

MIN_RAW_TEMPERATURE = -18.0
# softplus(-8) = 3e-4: no constraint in effect, but a gradient that Adam still sees. The gradient of a raw multiplier is
# its value times the violation, and Adam takes gradients below its epsilon of 1e-8 for nothing: with the floor of -18
# a multiplier that had reached it stayed there for thousands of updates while the KL exceeded its bound many times.
MIN_RAW_ALPHA = -8.0
FLOOR = 1e-8


def positive(raw: Tensor) -> Tensor:
    """Value of a raw dual variable: softplus(raw) + 1e-8."""
    return functional.softplus(raw) + FLOOR


def raw_of(value: Tensor) -> Tensor:
    """Raw dual variable of a positive value; the inverse of `positive`, down to values of 2e-8."""
    above = (value - FLOOR).clamp(min=FLOOR)
    return above + torch.log(-torch.expm1(-above))  # for large values they are the same


class Duals(nn.Module):
    """Raw parameters behind softplus: value = softplus(raw) + 1e-8; `clamp_` keeps raw above a floor after each step.

    Softplus has a non-zero gradient everywhere in that range, so that a multiplier that fell low can rise again.
    """

    def __init__(self, action_size: int, config: MPOConfig) -> None:
        super().__init__()
        shape = action_size if config.per_dim_constraining else 1
        self.raw_temperature = nn.Parameter(torch.full((1,), inverse_softplus(config.init_temperature)))
        self.raw_penalty_temperature = nn.Parameter(torch.full((1,), inverse_softplus(config.init_temperature)))
        self.raw_alpha_mean = nn.Parameter(torch.full((shape,), inverse_softplus(config.init_alpha_mean)))
        self.raw_alpha_stddev = nn.Parameter(torch.full((shape,), inverse_softplus(config.init_alpha_stddev)))

    @property
    def temperature(self) -> Tensor:
        """E-step temperature, [1]."""
        return positive(self.raw_temperature)

    @property
    def penalty_temperature(self) -> Tensor:
        """Temperature of the out-of-bounds objective, [1]."""
        return positive(self.raw_penalty_temperature)

    @property
    def alpha_mean(self) -> Tensor:
        """Multiplier of the mean's KL bound, [A] or [1]."""
        return positive(self.raw_alpha_mean)

    @property
    def alpha_stddev(self) -> Tensor:
        """Multiplier of the stddev's KL bound, [A] or [1]."""
        return positive(self.raw_alpha_stddev)

    @torch.no_grad()
    def set_temperatures_(self, temperatures: Tensor) -> None:
        """Write the temperature, and the penalty's if there are two, from positive values [1] or [2]."""
        raw = raw_of(temperatures)
        self.raw_temperature.copy_(raw[:1])
        if len(raw) > 1:
            self.raw_penalty_temperature.copy_(raw[1:])

    @torch.no_grad()
    def clamp_(self) -> None:
        """Projection after each optimiser step."""
        for parameter in (self.raw_temperature, self.raw_penalty_temperature):
            parameter.clamp_(min=MIN_RAW_TEMPERATURE)
        for parameter in (self.raw_alpha_mean, self.raw_alpha_stddev):
            parameter.clamp_(min=MIN_RAW_ALPHA)
