"""Acting with NumPy: the policy network on one observation, several times faster than an eager torch call.

The arrays are views of the learner's parameters, so that an actor always acts with the newest policy.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import nn

from mpo_robot.networks import GaussianPolicy

FloatArray = npt.NDArray[np.float32]

_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


class SampledAction(NamedTuple):
    """An action [A] as sampled, before clipping, and its log density in nats."""

    action: FloatArray
    log_prob: float


Layers = list[tuple[type[nn.Module], list[FloatArray]]]


def layers_of(torso: nn.Sequential) -> Layers:
    """Kind and parameters (views) of each layer of a torso of Linear, LayerNorm and ReLU."""
    return [(type(layer), [p.detach().numpy() for p in layer.parameters()]) for layer in torso]


def run_layers(layers: Layers, observation: FloatArray) -> FloatArray:
    """Output [H] of a torso for one observation [O]."""
    hidden = observation
    for kind, parameters in layers:
        if kind is nn.Linear:
            hidden = parameters[0] @ hidden
            hidden += parameters[1]
        elif kind is nn.LayerNorm:
            hidden -= hidden.mean()
            hidden *= 1.0 / math.sqrt(float(hidden @ hidden) / len(hidden) + 1e-5)
            hidden *= parameters[0]
            hidden += parameters[1]
        else:
            np.maximum(hidden, 0.0, out=hidden)
    return hidden


class NumpyActor:
    """Evaluates a `GaussianPolicy` on one normalised observation [O] at a time."""

    def __init__(self, policy: GaussianPolicy) -> None:
        self._layers = layers_of(policy.torso)
        self._head_weight = policy.head.weight.detach().numpy()
        self._head_bias = policy.head.bias.detach().numpy()
        self._min_stddev = np.float32(policy.config.min_stddev)
        self._tanh_mean = policy.config.tanh_mean
        self._size = policy.action_size
        self._below = np.tril_indices(self._size, -1) if policy.config.covariance == "full" else None

    def distribution(self, observation: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation (the marginal one), each [A]."""
        mean, scale = self._parameters(observation)
        return mean, scale if scale.ndim == 1 else np.sqrt(np.square(scale).sum(axis=1))

    def _parameters(self, observation: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean [A], and standard deviation [A] or Cholesky factor [A, A]."""
        output = self._head_weight @ run_layers(self._layers, observation) + self._head_bias
        mean, raw = output[: self._size], output[self._size : 2 * self._size]
        mean = np.tanh(mean) if self._tanh_mean else mean
        scale = np.logaddexp(raw, np.float32(0.0)) + self._min_stddev
        if self._below is None:
            return mean, scale
        scale_tril = np.diag(scale)
        scale_tril[self._below] = output[2 * self._size :]
        return mean, scale_tril

    def sample(self, observation: FloatArray, noise: FloatArray, noise_scale: float = 1.0) -> SampledAction:
        """Action of standard-normal `noise` [A] and its exact log density, with `noise_scale` times the stddev."""
        mean, scale = self._parameters(observation)
        scale = scale * np.float32(noise_scale)
        offset = scale * noise if scale.ndim == 1 else scale @ noise
        action = (mean + offset).astype(np.float32, copy=False)
        difference = action.astype(np.float64) - mean  # of the action as it was rounded
        exact = scale.astype(np.float64)
        if exact.ndim == 1:
            standardized, diagonal = difference / exact, exact
        else:
            standardized, diagonal = np.linalg.solve(exact, difference), np.diagonal(exact)
        density = 0.5 * standardized @ standardized + np.log(diagonal).sum()
        return SampledAction(action, -float(density) - _HALF_LOG_TWO_PI * len(mean))


def uniform_action(action_size: int, rng: np.random.Generator, num_actions: int | None = None) -> SampledAction:
    """Uniform over [-1, 1]^A, with its exact log density -A log 2; or over `num_actions` indices.

    Used before the first policy update.
    """
    if num_actions is not None:
        return SampledAction(np.array([rng.integers(num_actions)], np.float32), -math.log(num_actions))
    action = rng.uniform(-1.0, 1.0, action_size).astype(np.float32)
    return SampledAction(action, -action_size * math.log(2.0))
