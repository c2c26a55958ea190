"""Hyperparameters of MPO for discrete actions. Values only."""

from __future__ import annotations

from dataclasses import dataclass

TORSOS = ("mlp", "minatar", "dqn")


@dataclass(frozen=True)
class CategoricalConfig:
    """E-step, M-step and input of a categorical policy; used where a task's actions are discrete.

    The KL bounds and initial multipliers are those of acme's categorical MPO.

    Attributes:
        epsilon: Bound on the E-step's KL(q || pi_target), nats.
        epsilon_policy: Bound on the M-step's KL(pi_target || pi_online), nats; with `mpo.variational: parametric` on
            KL(pi_online || pi_target).
        init_temperature: Initial temperature of the E-step (a value, not a raw parameter).
        init_alpha: Initial multiplier of the M-step's KL.
        torso: What comes before the hidden layers of policy and critics: nothing (`mlp`), or the convolutions of the
            `minatar` (Young and Tian 2019) or `dqn` (Mnih et al. 2015) network, for observations that are images.
        observation_scale: Observations are divided by it first: 255 for grey levels.
    """

    epsilon: float = 0.1
    epsilon_policy: float = 0.0025
    init_temperature: float = 3.0
    init_alpha: float = 3.0
    torso: str = "mlp"
    observation_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("epsilon", "epsilon_policy", "init_temperature", "init_alpha", "observation_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.torso not in TORSOS:
            raise ValueError(f"torso must be one of {', '.join(TORSOS)}, got {self.torso!r}")
