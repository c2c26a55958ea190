"""Networks for K discrete actions: a policy that gives logits, critics that value all actions at once.

Axes: S states, O observation size, K actions, C image channels, H image height (and width).
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from mpo_robot.categorical_config import CategoricalConfig
from mpo_robot.errors import ConfigError
from mpo_robot.networks import CriticConfig, PolicyConfig, hidden_layers
from mpo_robot.specs import PolicySpec

# Channels, kernel size and stride of each convolution.
CONVOLUTIONS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "minatar": ((16, 3, 1),),
    "dqn": ((32, 8, 4), (64, 4, 2), (64, 3, 1)),
}


class Interface(NamedTuple):
    """What a network must know of a discrete task.

    Attributes:
        observation_size: O.
        num_actions: K.
        image: (C, H) if the observation is an image of C square channels, else None.
    """

    observation_size: int
    num_actions: int
    image: tuple[int, int] | None

    @staticmethod
    def of(spec: PolicySpec) -> Interface:
        """Read from a spec. Observation terms of one size that is a square, above 1, are the channels of an image.

        Raises:
            ConfigError: the spec's commands are continuous.
        """
        if spec.num_actions is None:
            raise ConfigError("a categorical policy needs a task with discrete actions")
        sizes = {term.size for term in spec.observation}
        side = math.isqrt(max(sizes))
        is_image = len(sizes) == 1 and side > 1 and side * side == max(sizes)
        return Interface(spec.observation_size, spec.num_actions, (len(spec.observation), side) if is_image else None)


def make_torso(
    interface: Interface,
    config: CategoricalConfig,
    hidden: tuple[int, ...],
    norm: bool,
    residual_expansion: int | None = None,
) -> nn.Sequential:
    """Convolutions, if any, and hidden layers: [S, O] -> [S, hidden[-1]].

    Raises:
        ConfigError: convolutions are asked for and the observation is no image, or one too small.
    """
    if config.torso == "mlp":
        return nn.Sequential(*hidden_layers(interface.observation_size, hidden, norm, residual_expansion))
    if interface.image is None:
        raise ConfigError(
            f"learner.categorical.torso is {config.torso}, but this task's observation is no image: set it to mlp"
        )
    channels, side = interface.image
    layers: list[nn.Module] = [nn.Unflatten(-1, (channels, side, side))]
    for out_channels, kernel, stride in CONVOLUTIONS[config.torso]:
        layers += [nn.Conv2d(channels, out_channels, kernel, stride), nn.ReLU(inplace=True)]
        channels, side = out_channels, (side - kernel) // stride + 1
        if side < 1:
            raise ConfigError(
                f"learner.categorical.torso is {config.torso}, for which this task's images are too small"
            )
    layers.append(nn.Flatten())
    return nn.Sequential(*layers, *hidden_layers(channels * side * side, hidden, norm, residual_expansion))


class CategoricalPolicy(nn.Module):
    """Logits over K actions; untrained it is close to uniform."""

    def __init__(self, interface: Interface, config: CategoricalConfig, policy: PolicyConfig) -> None:
        super().__init__()
        self.interface = interface
        self.is_mlp = config.torso == "mlp"
        self.scale = 1.0 / config.observation_scale
        self.torso = make_torso(interface, config, policy.hidden_sizes, policy.layer_norm)
        self.head = nn.Linear(policy.hidden_sizes[-1], interface.num_actions)
        with torch.no_grad():
            self.head.weight.mul_(0.01)
            self.head.bias.zero_()

    def forward(self, observation: Tensor) -> Tensor:
        """Logits [S, K] of observations [S, O]."""
        return self.head(self.torso(observation * self.scale))


class CategoricalCritics(nn.Module):
    """`num_critics` independent networks Q(s) -> [K]."""

    def __init__(self, interface: Interface, config: CategoricalConfig, critic: CriticConfig) -> None:
        super().__init__()
        if critic.head != "scalar":
            raise ConfigError(f"learner.critic.head is {critic.head}: discrete tasks have scalar critics only")
        self.config = critic
        self.scale = 1.0 / config.observation_scale
        self.members = nn.ModuleList(
            nn.Sequential(
                make_torso(interface, config, critic.hidden_sizes, critic.layer_norm, critic.residual_expansion),
                nn.Linear(critic.hidden_sizes[-1], interface.num_actions),
            )
            for _ in range(critic.num_critics)
        )

    def forward(self, observation: Tensor) -> Tensor:
        """All members' values, [num_critics, S, K], of observations [S, O]."""
        scaled = observation * self.scale
        return torch.stack([cast(Tensor, member(scaled)) for member in self.members])

    def combined(self, observation: Tensor) -> Tensor:
        """Minimum or mean of the members' values, [S, K]."""
        values = self(observation)
        return values.amin(dim=0) if self.config.aggregate == "min" else values.mean(dim=0)
