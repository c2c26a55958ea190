"""What goes wrong in a soak, second by second: a pure function of its seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

VERSIONS = 8  # policies that are published and taken back
SERVOS = 8

# kind -> weight. What takes long to recover from is rarer.
KINDS: dict[str, int] = {
    "server_kill": 3,
    "server_suspend": 4,
    "net_cut": 8,
    "net_delay": 8,
    "net_stall": 6,
    "net_corrupt": 8,
    "disk_slow": 8,
    "disk_full": 6,
    "disk_stuck": 5,
    "servo_noise": 8,
    "servo_dead": 3,
    "servo_hot": 2,
    "servo_overload": 2,
    "wall_jump": 8,
    "policy_publish": 12,
    "policy_rollback": 4,
    "policy_publish_killed": 4,
    "garbage": 8,
    "robot_suspend": 3,
    "estop": 2,
    "operator_stop": 2,
}


@dataclass(frozen=True)
class Fault:
    """One fault: when (seconds after the start), which, for how long if it lasts, and its numbers."""

    second: float
    kind: str
    seconds: float = 0.0
    values: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        numbers = "".join(f" {name} {value}" for name, value in self.values.items())
        return f"{self.second:8.2f} s {self.kind}{numbers}" + (f" for {self.seconds:.2f} s" if self.seconds else "")


def make_schedule(seed: int, seconds: int) -> list[Fault]:
    """One fault in each second, at a random moment of it. Equal arguments give equal faults.

    Every kind comes once before chance alone decides, as far as there are seconds for it.
    """
    rng = np.random.default_rng(seed)
    kinds, weights = list(KINDS), np.array(list(KINDS.values()), np.float64)
    order = [kinds[index] for index in rng.permutation(len(kinds))]
    order += [kinds[index] for index in rng.choice(len(kinds), max(0, seconds - len(kinds)), p=weights / weights.sum())]
    return [_draw(rng, kind, second + round(float(rng.random()), 3)) for second, kind in enumerate(order[:seconds])]


def _draw(rng: np.random.Generator, kind: str, second: float) -> Fault:
    longest = {
        "server_suspend": 1.5, "net_cut": 2.0, "net_delay": 1.5, "net_stall": 2.0, "net_corrupt": 1.5,
        "disk_slow": 2.0, "disk_full": 2.0, "disk_stuck": 2.0,
        "servo_noise": 1.5, "servo_dead": 0.8, "servo_hot": 0.8, "robot_suspend": 1.4,
    }.get(kind, 0.0)  # fmt: skip
    seconds = round(longest * float(rng.uniform(0.1, 1.0)), 3)
    servo = int(rng.integers(1, SERVOS + 1))
    values: dict[str, Any] = {}
    if kind == "net_delay":
        values = {"delay_s": round(float(rng.choice([0.002, 0.02, 0.1, 0.3])), 3)}
    elif kind == "net_corrupt":
        values = {"probability": round(float(rng.choice([0.02, 0.2, 1.0])), 3)}
    elif kind == "disk_slow":
        values = {"delay_s": round(float(rng.uniform(0.01, 0.3)), 3)}
    elif kind == "servo_noise":
        values = {"bit_error_rate": float(rng.choice([1e-4, 5e-4, 5e-3])), "loss": float(rng.choice([0.0, 0.02, 0.3]))}
    elif kind.startswith("servo_"):
        values = {"id": servo}
    elif kind == "wall_jump":
        size = float(rng.choice([1.0, 60.0, 3600.0, 86_400.0, 3.0e8]))
        values = {"jump_s": size if rng.random() < 0.5 else -size}
    elif kind.startswith("policy_publish"):
        values = {"policy": int(rng.integers(VERSIONS))}
        if kind == "policy_publish_killed":
            values["after_s"] = round(float(rng.uniform(0.0, 0.6)), 3)
    elif kind == "garbage":
        values = {"frames": int(rng.integers(10, 400))}
    return Fault(second, kind, seconds, values)
