"""`EnvironmentConfig`: which task to simulate and how. Plain data, no simulator is imported."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from mpo_robot.config import load_config
from mpo_robot.errors import ConfigError
from sim.randomization_config import RandomizationConfig


@dataclass(frozen=True)
class AtariConfig:
    """Preprocessing of Atari games.

    Attributes:
        frame_skip: Frames for which each action is held; the last two are max-pooled.
        frame_stack: Results of the newest steps that make up an observation.
        sticky_actions: Probability with which the console repeats the action before instead, at each frame.
        clip_rewards: Train on the sign of the reward. Evaluations count the game's own score.
        life_loss_terminates: End training episodes at the loss of a life (the next one is then a new game).
        full_action_space: All 18 actions of the console instead of those that the game uses.
    """

    frame_skip: int = 4
    frame_stack: int = 4
    sticky_actions: float = 0.25
    clip_rewards: bool = True
    life_loss_terminates: bool = False
    full_action_space: bool = False

    def __post_init__(self) -> None:
        if self.frame_skip < 1 or self.frame_stack < 1:
            raise ConfigError(f"frame_skip and frame_stack must be at least 1: {self.frame_skip}, {self.frame_stack}")
        if not 0.0 <= self.sticky_actions < 1.0:
            raise ConfigError(f"sticky_actions must be in [0, 1), got {self.sticky_actions}")


@dataclass(frozen=True)
class EnvironmentConfig:
    """One simulated task.

    Attributes:
        task: `dm_control:walker-walk` or `gymnasium:HalfCheetah-v4`, for example.
        randomization: Domain randomisation, inline or as the path of a YAML file; null simulates the nominal model.
        time_limit_s: Simulated seconds after which an episode is truncated; null keeps the task's own limit.
        action_repeat: Control periods of the task for which each action is held; it multiplies `spec.control_dt`.
            Every period counts as an environment step of the training.
        atari: Preprocessing of `ale:` tasks; null for the usual one.
        startup_seed: Seed of everything drawn in mode `startup`, that is once for the life of an environment.
    """

    task: str
    randomization: RandomizationConfig | str | None = None
    time_limit_s: float | None = None
    action_repeat: int = 1
    startup_seed: int = 0
    atari: AtariConfig | None = None

    def __post_init__(self) -> None:
        if self.action_repeat < 1:
            raise ConfigError(f"action_repeat must be at least 1, got {self.action_repeat}")
        if self.time_limit_s is not None and not (math.isfinite(self.time_limit_s) and self.time_limit_s > 0):
            raise ConfigError(f"time_limit_s must be a positive number of seconds, got {self.time_limit_s}")
        if not 0 <= self.startup_seed < 2**63:
            raise ConfigError(f"startup_seed must be between 0 and 2**63, got {self.startup_seed}")

    def nominal(self) -> EnvironmentConfig:
        """The same task as it is evaluated: not randomised, rewards as the game gives them, whole games."""
        atari = None
        if self.task.startswith("ale:"):
            atari = replace(self.atari or AtariConfig(), clip_rewards=False, life_loss_terminates=False)
        return replace(self, randomization=None, atari=atari)

    def resolved(self) -> EnvironmentConfig:
        """The same configuration with a randomisation file replaced by its content.

        Raises:
            ConfigError: the file cannot be read or is malformed.
        """
        if isinstance(self.randomization, (str, Path)):
            return replace(self, randomization=load_config(RandomizationConfig, self.randomization))
        return self
