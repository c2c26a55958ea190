"""The optional `/joint_states` topic: Foxglove's well-known schema `foxglove.JointStates`, in JSON.

Foxglove draws a robot model (URDF) from it and plots it by joint name. Which observation terms hold joint positions,
velocities and efforts is taken from their names; the names of the joints are those of the commands if there is one
for each joint.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from mpo_robot.episode import StepRecord
from mpo_robot.errors import ConfigError
from mpo_robot.specs import PolicySpec, TermSpec

JOINT_STATES_SCHEMA = "foxglove.JointStates"  # Foxglove knows the schema by this name
_QUANTITIES = ("position", "velocity", "effort")
_RADIANS = math.pi / 180
# Factor to the units that the schema asks for: rad or m, rad/s or m/s, N m or N. "1" is a term without a unit.
_FACTORS = {
    "position": {"rad": 1.0, "m": 1.0, "SI": 1.0, "1": 1.0, "deg": _RADIANS},
    "velocity": {"rad/s": 1.0, "m/s": 1.0, "SI": 1.0, "1": 1.0, "deg/s": _RADIANS},
    "effort": {"N m": 1.0, "N*m": 1.0, "Nm": 1.0, "N": 1.0, "SI": 1.0, "1": 1.0},
}
_encoder = msgspec.json.Encoder()


@dataclass(frozen=True)
class JointStatesConfig:
    """Joint states beside the step record.

    Attributes:
        enabled: Write the topic.
        position: Observation term with the joints' positions.
        velocity: Observation term with their velocities.
        effort: Observation term with their torques or forces. Of the three, at least one must exist.
        names: Of the joints, as in the robot model. Empty: those of the commands if there are as many, else numbered.
    """

    enabled: bool = False
    position: str = "joint_position"
    velocity: str = "joint_velocity"
    effort: str = "joint_torque"
    names: tuple[str, ...] = ()


class JointStates:
    """Encoder of the joint states in the observations of one spec."""

    def __init__(self, config: JointStatesConfig, spec: PolicySpec) -> None:
        """Find the terms.

        Raises:
            ConfigError: none of them exists, one that was named does not, their sizes or the number of names differ, or
                a unit is not known.
        """
        terms, starts, start = {term.name: term for term in spec.observation}, {}, 0
        for term in spec.observation:
            starts[term.name] = start
            start += term.size
        default = JointStatesConfig()
        self._parts: list[tuple[str, int, float]] = []  # quantity, first scalar of the observation, factor
        sizes: dict[str, int] = {}
        for quantity in _QUANTITIES:
            name = getattr(config, quantity)
            if name not in terms:
                if name != getattr(default, quantity) and name:
                    raise ConfigError(f"log.joint_states.{quantity}: no observation term {name!r}; {_known(terms)}")
                continue
            self._parts.append((quantity, starts[name], _factor(quantity, terms[name])))
            sizes[name] = terms[name].size
        if not sizes:
            raise ConfigError(
                f"log.joint_states needs an observation term with joint positions, velocities or efforts: say which "
                f"with log.joint_states.position=TERM; {_known(terms)}"
            )
        if len(set(sizes.values())) > 1:
            raise ConfigError(f"log.joint_states: the terms differ in size: {sizes}")
        self.names = _joint_names(config.names, sizes, spec)

    def encode(self, record: StepRecord) -> bytes:
        """JSON bytes of the state in `record.observation`; a quantity that is not finite is left out."""
        seconds, nanoseconds = divmod(record.wall_time_ns, 1_000_000_000)
        joints: list[dict[str, Any]] = [{"name": name} for name in self.names]
        values: list[float] = record.observation.tolist()
        for quantity, start, factor in self._parts:
            for joint, value in zip(joints, values[start : start + len(joints)]):
                if math.isfinite(value):
                    joint[quantity] = value * factor
        return _encoder.encode({"timestamp": {"sec": seconds, "nsec": nanoseconds}, "joints": joints})


def joint_states_json_schema() -> bytes:
    """JSON schema of `foxglove.JointStates` (docs.foxglove.dev/docs/sdk/schemas/joint-states)."""
    number = {"type": "number"}
    joint = {
        "type": "object",
        "title": "foxglove.JointState",
        "properties": {
            "name": {"type": "string"},
            "position": {**number, "description": "rad, or m of a prismatic joint"},
            "velocity": {**number, "description": "rad/s or m/s"},
            "acceleration": {**number, "description": "rad/s^2 or m/s^2"},
            "effort": {**number, "description": "N m or N"},
        },
    }
    time = {
        "type": "object",
        "title": "time",
        "properties": {"sec": {"type": "integer", "minimum": 0}, "nsec": {"type": "integer", "minimum": 0}},
    }
    properties = {"timestamp": time, "joints": {"type": "array", "items": joint}}
    return json.dumps({"title": JOINT_STATES_SCHEMA, "type": "object", "properties": properties}).encode()


def scalar_names(terms: Sequence[TermSpec]) -> list[str]:
    """One name for each scalar of a vector: the term's, with an index if it has several."""
    return [term.name if term.size == 1 else f"{term.name}[{index}]" for term in terms for index in range(term.size)]


def _factor(quantity: str, term: TermSpec) -> float:
    factors = _FACTORS[quantity]
    if term.unit not in factors:
        known = ", ".join(unit for unit in factors if unit != "1")
        raise ConfigError(f"log.joint_states.{quantity}: term {term.name!r} is in {term.unit!r}, not in {known}")
    return factors[term.unit]


def _joint_names(names: tuple[str, ...], sizes: dict[str, int], spec: PolicySpec) -> tuple[str, ...]:
    (first, size), *_ = sizes.items()
    if names:
        if len(names) != size or len(set(names)) != size:
            raise ConfigError(f"log.joint_states.names must be {size} different names, as {first!r} has; got {names}")
        return names
    commands = scalar_names(spec.command)
    return tuple(commands if len(commands) == size else (f"joint_{index}" for index in range(size)))


def _known(terms: dict[str, TermSpec]) -> str:
    return f"the observation has: {', '.join(terms)}"
