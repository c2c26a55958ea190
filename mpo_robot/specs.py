"""`PolicySpec`: the one description of a policy's inputs and outputs that every hand-over checks.

The spec travels inside the run folder, the ONNX file, every wire message (as `spec_hash`) and every log. Two sides
that differ refuse to work together and name the first differing field.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from mpo_robot.errors import ConfigError, SpecMismatchError

SPEC_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class TermSpec:
    """One named block of an observation or command vector.

    Attributes:
        name: Unique within its vector, for example `joint_position` or `left_hip`.
        size: Number of scalars in the block.
        unit: SI unit as text (`rad`, `rad/s`, `N m`), `1` for dimensionless.
        low: Finite lower bound per scalar in `unit`, or None if unbounded.
        high: Finite upper bound per scalar in `unit`, or None if unbounded.
        choices: For a discrete command: the number of actions to choose from. The scalar is then their index.
    """

    name: str
    size: int
    unit: str = "1"
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    choices: int | None = None

    @staticmethod
    def discrete(name: str, choices: int) -> TermSpec:
        """The command term of a policy that chooses one of `choices` actions by index."""
        return TermSpec(name, 1, "index", (0.0,), (choices - 1.0,), choices)

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("a term needs a name")
        if self.size < 1:
            raise ConfigError(f"term {self.name!r}: size must be at least 1, got {self.size}")
        for label, bound in (("low", self.low), ("high", self.high)):
            if bound is None:
                continue
            if len(bound) != self.size:
                raise ConfigError(f"term {self.name!r}: {label} has {len(bound)} entries, size is {self.size}")
            if not all(math.isfinite(x) for x in bound):
                raise ConfigError(f"term {self.name!r}: {label} must be finite; leave it out if there is no bound")
            # 0, -0.0 and 0.0 are equal, so they must be written, and hashed, alike.
            object.__setattr__(self, label, tuple(float(x) + 0.0 for x in bound))
        if self.low is not None and self.high is not None and any(lo >= hi for lo, hi in zip(self.low, self.high)):
            raise ConfigError(f"term {self.name!r}: every low must be below its high")
        if self.choices is not None and (self.size, self.low, self.high) != (1, (0.0,), (self.choices - 1.0,)):
            raise ConfigError(
                f"term {self.name!r}: {self.choices} choices need size 1, low 0 and high {self.choices - 1}, "
                f"got size {self.size}, low {self.low} and high {self.high}"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form at full precision. Only a discrete term has the key `choices`."""
        return {
            "name": self.name,
            "size": self.size,
            "unit": self.unit,
            "low": None if self.low is None else list(self.low),
            "high": None if self.high is None else list(self.high),
        } | ({} if self.choices is None else {"choices": self.choices})

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> TermSpec:
        """Inverse of `to_dict`."""
        low, high, choices = data.get("low"), data.get("high"), data.get("choices")
        return TermSpec(
            name=str(data["name"]),
            size=int(data["size"]),
            unit=str(data.get("unit", "1")),
            low=None if low is None else tuple(float(x) for x in low),
            high=None if high is None else tuple(float(x) for x in high),
            choices=None if choices is None else int(choices),
        )


@dataclass(frozen=True)
class PolicySpec:
    """Interface of a policy: ordered observation terms, ordered command terms with finite bounds, and the period.

    The learner and the log work with *actions* in [-1, 1] per dimension (before clipping they may lie outside);
    robots and simulators take *commands* in physical units. `to_command` and `to_action` are the affine maps between.
    A discrete policy has one command term, with `choices`: action and command are then both the index, as a float.

    Attributes:
        observation: Ordered observation terms; their sizes add up to `observation_size`.
        command: Ordered command terms; each needs finite `low` and `high`.
        control_dt: Policy period in seconds.
    """

    observation: tuple[TermSpec, ...]
    command: tuple[TermSpec, ...]
    control_dt: float
    schema_version: int = SPEC_SCHEMA_VERSION

    def __post_init__(self) -> None:
        if not self.observation or not self.command:
            raise ConfigError("a policy spec needs at least one observation term and one command term")
        for vector in (self.observation, self.command):
            names = [term.name for term in vector]
            if len(set(names)) != len(names):
                raise ConfigError(f"term names must be unique, got {names}")
        for term in self.command:
            if term.low is None or term.high is None:
                raise ConfigError(f"command term {term.name!r} needs finite low and high for each of its scalars")
            if not _distinct_in_float32(term.low, term.high):
                raise ConfigError(
                    f"command term {term.name!r}: a low and its high are too close or too large for float32"
                )
        for vector, discrete in ((self.observation, 0), (self.command, len(self.command) == 1)):
            if sum(term.choices is not None for term in vector) > discrete:
                raise ConfigError("only a command of a single term can have choices")
        if not (math.isfinite(self.control_dt) and self.control_dt > 0):
            raise ConfigError(f"control_dt must be a positive number of seconds, got {self.control_dt}")
        object.__setattr__(self, "control_dt", float(self.control_dt))

    @cached_property
    def observation_size(self) -> int:
        """O, the length of the flat observation vector."""
        return sum(term.size for term in self.observation)

    @cached_property
    def action_size(self) -> int:
        """A, the length of the flat action (and command) vector."""
        return sum(term.size for term in self.command)

    @property
    def num_actions(self) -> int | None:
        """K, the number of actions a discrete policy chooses from; None for continuous commands."""
        return self.command[0].choices

    @cached_property
    def command_low(self) -> npt.NDArray[np.float32]:
        """Lower command bounds, [A], physical units."""
        return np.array([x for term in self.command for x in term.low or ()], np.float32)

    @cached_property
    def command_high(self) -> npt.NDArray[np.float32]:
        """Upper command bounds, [A], physical units."""
        return np.array([x for term in self.command for x in term.high or ()], np.float32)

    @cached_property
    def command_center(self) -> npt.NDArray[np.float32]:
        """Middle of the command range, [A]."""
        return ((self.command_low + self.command_high) / 2).astype(np.float32)

    @cached_property
    def command_half_range(self) -> npt.NDArray[np.float32]:
        """Half the width of the command range, [A]."""
        return ((self.command_high - self.command_low) / 2).astype(np.float32)

    def to_command(self, action: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Physical command for an action [..., A]: clipped to [-1, 1], then scaled to the command bounds.

        For discrete policies the nearest index.
        """
        if self.num_actions is not None:
            index = np.rint(np.asarray(action, np.float32))
            return np.minimum(np.maximum(index, self.command_low), self.command_high)
        clipped = np.minimum(np.maximum(np.asarray(action, np.float32), np.float32(-1)), np.float32(1))
        command = self.command_center + self.command_half_range * clipped
        return np.minimum(np.maximum(command, self.command_low), self.command_high)

    def to_action(self, command: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Action for a physical command [..., A]; not clipped, so that a command outside the bounds stays visible."""
        if self.num_actions is not None:
            return np.asarray(command, np.float32)
        action = (np.asarray(command, np.float32) - self.command_center) / self.command_half_range
        return action.astype(np.float32, copy=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form at full precision; the input of `spec_hash`."""
        return {
            "schema_version": self.schema_version,
            "control_dt": self.control_dt,
            "observation": [term.to_dict() for term in self.observation],
            "command": [term.to_dict() for term in self.command],
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> PolicySpec:
        """Inverse of `to_dict`.

        Raises:
            ConfigError: a field is missing or malformed, or the schema version is not this program's.
        """
        try:
            version = int(data["schema_version"])
            if version != SPEC_SCHEMA_VERSION:
                raise ConfigError(f"policy spec has schema_version {version}, this program reads {SPEC_SCHEMA_VERSION}")
            return PolicySpec(
                observation=tuple(TermSpec.from_dict(term) for term in data["observation"]),
                command=tuple(TermSpec.from_dict(term) for term in data["command"]),
                control_dt=float(data["control_dt"]),
                schema_version=version,
            )
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise ConfigError(f"malformed policy spec: {error!r}") from error

    @cached_property
    def spec_hash(self) -> str:
        """SHA-256 (64 hex digits) of the canonical JSON of `to_dict`."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def require_same(self, other: PolicySpec, ours: str = "this side", theirs: str = "the other side") -> None:
        """Check that two specs are equal.

        Raises:
            SpecMismatchError: they differ; the text names the first differing field and both values.
        """
        # Both sides list the same fields in the same order up to the first that differs. Only one may have `choices`.
        both = zip_longest(_leaves(self.to_dict()), _leaves(other.to_dict()), fillvalue=("", None))
        for (mine_path, mine), (path, yours) in both:
            path = path or mine_path
            if mine != yours:
                raise SpecMismatchError(
                    f"policy spec differs at {path}: {ours} has {mine!r}, {theirs} has {yours!r}. "
                    "Use a policy that was trained for this robot, or correct the robot's spec."
                )


def _distinct_in_float32(low: tuple[float, ...], high: tuple[float, ...]) -> bool:
    """Whether every range keeps a finite width above zero in single precision, so that scaling has an inverse."""
    with np.errstate(over="ignore"):
        width = np.array(high, np.float64).astype(np.float32) - np.array(low, np.float64).astype(np.float32)
    return bool(np.isfinite(width).all() and (width > 0).all())


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Depth-first (path, value) pairs of nested dicts and lists of dicts; a list's length comes before its entries."""
    if isinstance(value, dict):
        for key, item in cast("dict[str, Any]", value).items():
            yield from _leaves(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and isinstance(value[0], dict):
        items = cast("list[Any]", value)
        yield f"len({path})", len(items)
        for index, item in enumerate(items):
            yield from _leaves(item, f"{path}[{index}]")
    else:
        yield path, value
