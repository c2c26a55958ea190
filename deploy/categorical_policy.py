"""`OnnxCategoricalPolicy`: an exported policy with discrete actions, for evaluation. Robots are not served with it.

File contract: one input `obs` [batch, O] float32; outputs `actions` [batch, 1] (index of the most probable action) and
`logits` [batch, K].
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from deploy.onnx_policy import OnnxPolicy
from deploy.policy_file import PolicyFile
from mpo_robot.errors import ConfigError

FloatArray = npt.NDArray[np.float32]


class OnnxCategoricalPolicy:
    """A loaded and checked policy.

    Attributes:
        spec, policy_version, graph_hash, metadata: As of `deploy.policy_file.PolicyFile`.
    """

    def __init__(self, file: PolicyFile, verify_graph: bool = True) -> None:
        """Check the interface on one observation.

        Raises:
            ConfigError: not this file contract, or a graph that was changed since its export.
        """
        self._session = file.session
        self.spec, self.metadata = file.spec, file.metadata
        self.policy_version, self.graph_hash = file.policy_version, file.graph_hash
        if verify_graph:
            file.require_exported_graph()
        names = [item.name for item in (*file.session.get_inputs(), *file.session.get_outputs())]
        if names != ["obs", "actions", "logits"]:
            raise ConfigError(f"{file.path}: input and outputs are {names}, expected obs, actions, logits")
        try:
            actions, logits = self.run(np.zeros((1, self.spec.observation_size), np.float32))
        except Exception as error:  # onnxruntime has no common base class for its errors
            raise ConfigError(f"{file.path} does not take observations of its own spec: {error}") from error
        if actions.shape != (1, 1) or logits.shape != (1, self.spec.num_actions) or not np.isfinite(logits).all():
            raise ConfigError(f"{file.path}: outputs are not one of {self.spec.num_actions} actions and their logits")

    def run(self, observations: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Index of the most probable action [batch, 1] and logits [batch, K] of observations [batch, O]."""
        actions, logits = self._session.run(["actions", "logits"], {"obs": observations})
        return np.asarray(actions), np.asarray(logits)

    def best_action(self, observation: FloatArray) -> FloatArray:
        """Index of the most probable action, float32 [1], for one observation [O]."""
        return self.run(observation[None])[0][0]


def open_policy(path: str | Path, verify_graph: bool = True) -> OnnxPolicy | OnnxCategoricalPolicy:
    """A policy file of either kind.

    Raises:
        ConfigError, SpecMismatchError: not a policy this program can run.
    """
    file = PolicyFile.read(path)
    kind = OnnxPolicy if file.spec.num_actions is None else OnnxCategoricalPolicy
    return kind(file, verify_graph)
