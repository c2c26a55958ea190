"""The policy that PPO trains, without the package that trains it: evaluation and export need torch only.

Axes: S states, O observation size, A action size.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from mpo_robot.acting import FloatArray, SampledAction
from mpo_robot.losses.gaussian import Gaussian, log_prob


class PPONetwork(nn.Module):
    """Gaussian whose mean is a tanh network and whose standard deviation is the same in all states.

    As stable-baselines3 builds it. Actions are clipped at the environment, so the density is that of the action before.
    """

    def __init__(self, torso: nn.Module, head: nn.Linear, log_stddev: nn.Parameter) -> None:
        super().__init__()
        self.torso, self.head, self.log_stddev = torso, head, log_stddev

    @staticmethod
    def build(observation_size: int, action_size: int, hidden_sizes: tuple[int, ...]) -> PPONetwork:
        """An untrained one, to load a checkpoint into."""
        layers: list[nn.Module] = []
        for size_in, size_out in pairwise((observation_size, *hidden_sizes)):
            layers += [nn.Linear(size_in, size_out), nn.Tanh()]
        head = nn.Linear(hidden_sizes[-1], action_size)
        return PPONetwork(nn.Sequential(*layers), head, nn.Parameter(torch.zeros(action_size)))

    def mean_and_stddev(self, observation: Tensor) -> Gaussian:
        """Mean and standard deviation, each [S, A], of a normalised observation [S, O]."""
        mean = self.head(self.torso(observation))
        return Gaussian(mean, self.log_stddev.exp().expand_as(mean))


class PPOActor:
    """Acts with a `PPONetwork`; it is evaluated in torch."""

    def __init__(self, network: PPONetwork) -> None:
        self._network = network

    @torch.no_grad()
    def distribution(self, observation: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation, each [A]."""
        mean, stddev = self._network.mean_and_stddev(torch.from_numpy(observation).unsqueeze(0))
        return mean[0].numpy(), stddev[0].numpy()

    def sample(self, observation: FloatArray, noise: FloatArray, noise_scale: float = 1.0) -> SampledAction:
        """Action of standard-normal `noise` [A] and its exact log density."""
        mean, stddev = self.distribution(observation)
        stddev = stddev * np.float32(noise_scale)
        action = (mean + stddev * noise).astype(np.float32, copy=False)
        density = log_prob(*(torch.from_numpy(item).double() for item in (mean, stddev, action)))
        return SampledAction(action, float(density))
