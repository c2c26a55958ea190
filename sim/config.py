"""`EnvironmentConfig`: which task to simulate and how. Plain data, no simulator is imported."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from mpo_robot.config import load_config
from mpo_robot.errors import ConfigError
from sim.randomization_config import RandomizationConfig


@dataclass(frozen=True)
class EnvironmentConfig:
    """One simulated task.

    Attributes:
        task: `dm_control:walker-walk` or `gymnasium:HalfCheetah-v4`, for example.
        randomization: Domain randomisation, inline or as the path of a YAML file; None simulates the nominal model.
        time_limit_s: Simulated seconds after which an episode is truncated; None keeps the task's own limit.
        action_repeat: Control periods for which each action is held. It multiplies `spec.control_dt`, and one
            environment step then advances that many control periods of the task.
        startup_seed: Seed of everything drawn in mode `startup`, that is once for the life of an environment.
    """

    task: str
    randomization: RandomizationConfig | str | None = None
    time_limit_s: float | None = None
    action_repeat: int = 1
    startup_seed: int = 0

    def __post_init__(self) -> None:
        if self.action_repeat < 1:
            raise ConfigError(f"action_repeat must be at least 1, got {self.action_repeat}")
        if self.time_limit_s is not None and not (math.isfinite(self.time_limit_s) and self.time_limit_s > 0):
            raise ConfigError(f"time_limit_s must be a positive number of seconds, got {self.time_limit_s}")
        if not 0 <= self.startup_seed < 2**63:
            raise ConfigError(f"startup_seed must be between 0 and 2**63, got {self.startup_seed}")

    def resolved(self) -> EnvironmentConfig:
        """The same configuration with a randomisation file replaced by its content.

        Raises:
            ConfigError: the file cannot be read or is malformed.
        """
        if isinstance(self.randomization, (str, Path)):
            return replace(self, randomization=load_config(RandomizationConfig, self.randomization))
        return self
