"""Acting with a categorical policy, on one observation [O] at a time. K actions."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from mpo_robot.acting import FloatArray, SampledAction, layers_of, run_layers
from mpo_robot.categorical_networks import CategoricalPolicy


class CategoricalActor:
    """Evaluates a `CategoricalPolicy`, in NumPy if it has no convolutions. Its parameters are the learner's own."""

    def __init__(self, policy: CategoricalPolicy) -> None:
        self._policy = policy
        self._layers = layers_of(policy.torso) if policy.is_mlp else None
        self._head_weight = policy.head.weight.detach().numpy()
        self._head_bias = policy.head.bias.detach().numpy()
        self._scale = np.float32(policy.scale)

    def log_probs(self, observation: FloatArray) -> npt.NDArray[np.float64]:
        """Log-probability of each action, [K]."""
        if self._layers is None:
            with torch.inference_mode():
                logits = self._policy(torch.from_numpy(observation).unsqueeze(0))[0].numpy()
        else:
            logits = self._head_weight @ run_layers(self._layers, observation * self._scale) + self._head_bias
        shifted = logits.astype(np.float64) - logits.max()
        return shifted - math.log(np.exp(shifted).sum())

    def distribution(self, observation: FloatArray) -> tuple[FloatArray, npt.NDArray[np.float64]]:
        """The most probable action as float [1], and `log_probs`."""
        log_probs = self.log_probs(observation)
        return np.array([log_probs.argmax()], np.float32), log_probs

    def sample(self, observation: FloatArray, noise: FloatArray, noise_scale: float = 1.0) -> SampledAction:
        """Action of standard-normal `noise` [1], and its exact log-probability.

        The noise becomes uniform by its own distribution function, and an action by the policy's inverse. So noise that
        is correlated in time gives actions that are, each with the policy's probabilities; to scale it has no meaning.
        """
        assert noise_scale == 1.0
        log_probs = self.log_probs(observation)
        uniform = 0.5 * math.erfc(-float(noise[0]) / math.sqrt(2.0))
        index = int(np.searchsorted(np.cumsum(np.exp(log_probs)), uniform, side="right"))
        index = min(index, len(log_probs) - 1)
        return SampledAction(np.array([index], np.float32), float(log_probs[index]))
