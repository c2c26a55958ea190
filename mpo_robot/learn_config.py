"""Settings of continued learning, and where a run remembers them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mpo_robot.config import dump_yaml, load_config
from mpo_robot.run_folder import RunFolder, write_atomically


@dataclass(frozen=True)
class LearnConfig:
    """How real data are learnt from.

    Attributes:
        real_fraction: Share of each batch that comes from real logs; the rest comes from the run's simulated replay.
        updates_per_real_step: Learner updates for each newly ingested real step.
        min_updates: Least number of updates per round.
        max_updates: Largest number of updates per round.
        real_capacity: Rows of the real replay; a changed value keeps the newest rows that fit.
        use_simulated_data: Mix in the run's simulated replay; False learns from real logs only.
        reward: `package.module:function` that computes rewards the robot did not give (docs/log_format.md); null: none.
        reward_for: `missing` computes the rewards that are null in the log, `all` replaces every reward.
    """

    real_fraction: float = 0.75
    updates_per_real_step: float = 1.0
    min_updates: int = 500
    max_updates: int = 20_000
    real_capacity: int = 1_000_000
    use_simulated_data: bool = True
    reward: str | None = None
    reward_for: Literal["missing", "all"] = "missing"

    def __post_init__(self) -> None:
        if not 0.0 < self.real_fraction <= 1.0:
            raise ValueError(f"real_fraction must be in (0, 1], got {self.real_fraction}")
        if not 0 <= self.min_updates <= self.max_updates:
            raise ValueError(f"need 0 <= min_updates <= max_updates, got {self.min_updates} and {self.max_updates}")
        if self.updates_per_real_step < 0.0:
            raise ValueError(f"updates_per_real_step must not be negative, got {self.updates_per_real_step}")
        if self.reward is not None and self.reward.count(":") != 1:
            raise ValueError(f"reward must look like package.module:function, got {self.reward!r}")

    def updates_for(self, new_steps: int) -> int:
        """Number of updates after ingesting `new_steps` real steps."""
        return int(min(max(self.updates_per_real_step * new_steps, self.min_updates), self.max_updates))


def config_file(folder: RunFolder) -> Path:
    """Where a run remembers how its real data are learnt from."""
    return folder.path / "learn" / "config.yaml"


def load_learn_config(folder: RunFolder, overrides: Sequence[str] = ()) -> LearnConfig:
    """The settings last used with this run, or the defaults, with overrides.

    Raises:
        ConfigError: unknown key, wrong type or impossible value.
    """
    path = config_file(folder)
    return load_config(LearnConfig, path if path.exists() else {}, overrides)


def remember(folder: RunFolder, config: LearnConfig) -> None:
    """Keep the settings for the next `ingest` or `learn` of this run."""
    path = config_file(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, dump_yaml(config))
