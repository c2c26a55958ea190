"""The configuration file of a training: environment, loop and learner in one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mpo_robot.config import load_config, read_yaml, to_dict
from mpo_robot.errors import ConfigError
from mpo_robot.mpo_config import LearnerConfig
from mpo_robot.older_runs import completed
from mpo_robot.run_folder import RunFolder
from mpo_robot.settings_check import objections
from mpo_robot.training_config import TrainingConfig
from sim.config import EnvironmentConfig


@dataclass(frozen=True)
class RunConfig:
    """What `mpo-robot train --config FILE` reads.

    Attributes:
        environment: Task and domain randomisation.
        training: Loop settings.
        learner: Networks and MPO hyperparameters.
        seed: Seed of everything but what `environment.startup_seed` draws: runs of other seeds have the same body.
    """

    environment: EnvironmentConfig
    training: TrainingConfig = field(default_factory=TrainingConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed must not be negative, got {self.seed}")
        if self.seed >= 2**63:
            raise ConfigError(f"seed must be below 2**63, got {self.seed}")

    def resolved(self) -> RunConfig:
        """The same configuration with a randomisation file replaced by its content (which may change later).

        Raises:
            ConfigError: the file cannot be read or is malformed.
        """
        return replace(self, environment=self.environment.resolved())

    def nominal_environment(self) -> EnvironmentConfig:
        """The environment as it is evaluated: without randomisation, with a game's own rewards."""
        return self.environment.nominal()


def check_settings(config: RunConfig, num_actions: int | None, refuse: bool) -> None:
    """Look for settings that make no sense (`settings_check`): refuse them, or only say so.

    Args:
        num_actions: Number of discrete actions of the task; None if they are continuous.
        refuse: Whether this is a new training. A run on record must stay usable, whatever its settings.

    Raises:
        ConfigError: with everything found.
    """
    found = list(objections(config.training, config.learner, num_actions))
    if found and refuse:
        raise ConfigError("; ".join(found))
    for text in found:
        print(f"warning: {text}", file=sys.stderr)


def training_record(config: RunConfig, origin: dict[str, Any]) -> dict[str, Any]:
    """What an exported policy says about its training: where it comes from, task, nominal environment, seed."""
    environment = config.nominal_environment()
    return {**origin, "task": environment.task, "environment": to_dict(environment), "seed": config.seed}


def load_run_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the configuration of a new training; a randomisation file in it is read too."""
    return load_config(RunConfig, path, overrides).resolved()


def load_recorded_config(folder: RunFolder, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the configuration of a run on record; what is older than a setting keeps what it did without.

    A randomisation file, which older records name by its path, is left to `resolved`: a policy can be evaluated and
    exported without it.

    Raises:
        ConfigError: no run folder, its configuration is damaged, or a bad override.
    """
    folder.require()
    return load_config(RunConfig, completed(read_yaml(folder.config_file)), overrides)
