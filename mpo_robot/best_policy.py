"""The best policy of a training, kept beside its checkpoints: returns go down as well as up."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mpo_robot.checkpoint import read_state
from mpo_robot.errors import ConfigError, first_line
from mpo_robot.evaluation import Evaluation
from mpo_robot.run_folder import write_atomically

_log = logging.getLogger(__name__)


class BestPolicy:
    """Keeps, in one file, the policy whose evaluation had the highest mean return so far.

    The file says itself how good its policy was, so that a resumed training goes on from it. That return is a maximum
    over evaluations of few episodes, all with the same start states: too high an estimate. For an honest one evaluate
    the policy again, with other seeds.

    Args:
        path: The file.
        environment_steps: Of the training so far. A better policy from later, which a crash or another setting has
            made one that never was, is replaced by the next evaluation's.
    """

    def __init__(self, path: Path, environment_steps: int) -> None:
        self.path = path
        self.return_mean = -float("inf")
        if path.exists():
            try:
                kept = load_best_policy(path)
                if int(kept["environment_steps"]) <= environment_steps:
                    self.return_mean = float(kept["return_mean"])
            except ConfigError as error:
                _log.warning("%s; the next evaluation replaces it", error)

    def offer(self, evaluation: Evaluation, environment_steps: int, state: Callable[[], dict[str, Any]]) -> None:
        """Keep the policy of `state()` (its `learner` and `normalizer`) if this evaluation is the best so far."""
        return_mean = float(evaluation.returns.mean())
        if not return_mean > self.return_mean:
            return
        kept = {"environment_steps": environment_steps, "return_mean": return_mean, **state()}
        stream = io.BytesIO()
        torch.save(kept, stream)
        write_atomically(self.path, stream.getvalue())
        self.return_mean = return_mean


def load_best_policy(path: Path) -> dict[str, Any]:
    """What `BestPolicy` kept: `learner`, `normalizer`, `environment_steps` and `return_mean`.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    if not path.exists():
        raise ConfigError(f"no {path}: the run was not evaluated yet, or is older than this file's invention")
    try:
        return read_state(path)
    except Exception as error:
        raise ConfigError(f"cannot read the best policy, {path}: {first_line(error)}") from error
