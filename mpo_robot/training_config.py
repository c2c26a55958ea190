"""Settings of the training loop around the learner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MOST_THREADS = 4096
_PINK_UP_TO_S = 0.025  # control period up to which the noise_color `auto` is 1
_LEAST_AUTO_COLOR = 0.5


@dataclass(frozen=True)
class TrainingConfig:
    """Collection, evaluation, logging and checkpoints. Every count of steps is in environment (control) steps.

    Attributes:
        total_steps: Environment steps of the whole training.
        warmup_steps: Steps with uniform actions before the first update.
        updates_per_step: Learner updates per environment step; may be below 1.
        environments: Environments that are stepped together. Every one's step counts as an environment step, and what
            is due in the middle of such a group of steps comes at its end.
        environment_threads: Threads that share the stepping of `environments`; more than 1 pays for heavy models only.
        noise_color: Exponent of the exploration noise's power spectrum: 0 white, 1 pink (correlated over the episode);
            `auto`: pink for actions of up to 25 ms, 0.5 for those of 50 ms and more (`noise_color_at`).
        white_noise_steps: Until this many steps the noise is white whatever `noise_color`: correlated noise may throw a
            body over while the policy knows nothing yet.
        noise_scale_min: Each episode is acted with the policy's standard deviation times a factor from U[this, 1]: the
            policy is used without noise, and the states of less noise should be in the replay. 1: always in full.
        replay_capacity: Rows of the replay ring.
        replay_bytes: Store observations as bytes, for tasks where they are whole numbers from 0 to 255 (Atari): 28 kB
            instead of 113 kB for four frames of 84 x 84, so a capacity of 100,000 takes 2.8 GB.
        normalize_observations: Use the running observation normaliser.
        evaluation_period: Steps between evaluations; there is always one at the end of the training.
        evaluation_episodes: Episodes per evaluation, with the mean of the averaged policy, in the nominal environment.
        log_period: Steps between rows of metrics.csv.
        checkpoint_period: Steps between checkpoints. There is always one at the end of the warm-up, at the end of the
            training and at Ctrl-C. `ppo` has no warm-up, and saves between its rollouts.
        checkpoint_minutes: A checkpoint is also written when the last one is this old.
        threads: CPU threads of torch.
    """

    total_steps: int = 200_000
    warmup_steps: int = 2_000
    updates_per_step: float = 1.0
    environments: int = 1
    environment_threads: int = 1
    noise_color: float | Literal["auto"] = "auto"
    white_noise_steps: int = 0
    noise_scale_min: float = 1.0
    replay_capacity: int = 1_000_000
    replay_bytes: bool = False
    normalize_observations: bool = True
    evaluation_period: int = 10_000
    evaluation_episodes: int = 5
    log_period: int = 1_000
    checkpoint_period: int = 50_000
    checkpoint_minutes: float = 10.0
    threads: int = 1

    @property
    def planned_updates(self) -> int:
        """Learner updates of the whole training, those that the warm-up leaves out counted too."""
        return max(1, int(self.total_steps * self.updates_per_step))

    def noise_color_at(self, control_dt: float) -> float:
        """The noise's exponent for actions of `control_dt` seconds.

        `auto` is 25 ms / control_dt, at least 0.5 and at most 1: a push is to last a while, not a number of actions.
        The pink noise that suits actions of 8 and 20 ms (Hopper, cheetah-run) throws HalfCheetah over with 50 ms
        (docs/experiments.md, "Pink noise").
        """
        if self.noise_color != "auto":
            return self.noise_color
        return min(1.0, max(_LEAST_AUTO_COLOR, _PINK_UP_TO_S / control_dt))

    def __post_init__(self) -> None:
        for name in (
            "total_steps",
            "warmup_steps",
            "environments",
            "environment_threads",
            "evaluation_period",
            "evaluation_episodes",
            "log_period",
            "checkpoint_period",
            "threads",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("updates_per_step", "checkpoint_minutes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.total_steps * self.updates_per_step >= 2**63:
            raise ValueError(f"updates_per_step {self.updates_per_step} makes more updates than can be counted")
        if self.threads > MOST_THREADS:
            raise ValueError(f"threads must be at most {MOST_THREADS}, got {self.threads}")
        if self.noise_color != "auto" and not 0.0 <= self.noise_color <= 2.0:
            raise ValueError(f"noise_color must be in [0, 2] or auto, got {self.noise_color}")
        if self.white_noise_steps < 0:
            raise ValueError(f"white_noise_steps must not be negative, got {self.white_noise_steps}")
        if not 0.0 < self.noise_scale_min <= 1.0:
            raise ValueError(f"noise_scale_min must be in (0, 1], got {self.noise_scale_min}")
