"""Hyperparameters of the baselines that MPO does not have. Values only; all else is shared (`LearnerConfig`)."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class SACConfig:
    """Soft actor-critic.

    Attributes:
        init_temperature: Initial weight of the entropy (a value, not a raw parameter), in units of the scaled reward.
            The temperature stays above 3.4e-4, as the multipliers of MPO do: below, it could hardly rise again.
        target_entropy: Entropy in nats that the temperature is tuned for; null for minus the number of actions.
    """

    init_temperature: float = 1.0
    target_entropy: float | None = None

    def __post_init__(self) -> None:
        if not self.init_temperature > 0:
            raise ValueError(f"init_temperature must be positive, got {self.init_temperature}")
        if self.target_entropy is not None and not math.isfinite(self.target_entropy):
            raise ValueError(f"target_entropy must be finite or null, got {self.target_entropy}")


@dataclass(frozen=True)
class DDPGConfig:
    """Deep deterministic policy gradient.

    Attributes:
        noise_stddev: Standard deviation of the Gaussian that is added to the policy's action to explore.
        num_samples: With `returns: retrace`, which evaluates the exploring policy: actions sampled per state around the
            target policy's. Other estimators take the target policy's action itself.
    """

    noise_stddev: float = 0.2
    num_samples: int = 6

    def __post_init__(self) -> None:
        if not self.noise_stddev > 0:
            raise ValueError(f"noise_stddev must be positive, got {self.noise_stddev}")
        if self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {self.num_samples}")


@dataclass(frozen=True)
class EPGConfig:
    """Expected policy gradient.

    Attributes:
        num_samples: N, actions sampled per state from the online policy.
        entropy_bonus: Weight of the policy's entropy in its objective, in units of the scaled return per nat.
    """

    num_samples: int = 20
    entropy_bonus: float = 0.0

    def __post_init__(self) -> None:
        if self.num_samples < 2:
            raise ValueError(f"num_samples must be at least 2 (each needs others as baseline), got {self.num_samples}")
        if not self.entropy_bonus >= 0:
            raise ValueError(f"entropy_bonus must not be negative, got {self.entropy_bonus}")


@dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimisation, by stable-baselines3; its defaults.

    From the rest of the configuration PPO takes `discount`, `return_scale_bound`, `policy.hidden_sizes`,
    `policy.init_stddev` and `critic.hidden_sizes`; nothing else of `learner` has an effect.

    Attributes:
        learning_rate: Adam's step size.
        rollout_steps: Environment steps between two rounds of updates.
        batch_size: Steps per update; divides `rollout_steps`.
        epochs: Passes over each rollout.
        gae_lambda: Lambda of the generalised advantage estimate.
        clip_range: Bound on the change of the probability ratio.
        entropy_bonus: Weight of the policy's entropy.
        grad_clip_norm: Bound on the gradient norm.
    """

    learning_rate: float = 3e-4
    rollout_steps: int = 2048
    batch_size: int = 64
    epochs: int = 10
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    entropy_bonus: float = 0.0
    grad_clip_norm: float = 0.5

    def __post_init__(self) -> None:
        for name in ("learning_rate", "rollout_steps", "batch_size", "epochs", "clip_range", "grad_clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.batch_size < 2 or self.rollout_steps % self.batch_size:
            raise ValueError(
                f"batch_size must be at least 2 and divide rollout_steps, got {self.batch_size}, {self.rollout_steps}"
            )
        if not 0.0 <= self.gae_lambda <= 1.0 or not self.entropy_bonus >= 0.0:
            raise ValueError("gae_lambda must be in [0, 1] and entropy_bonus not negative")
