"""Sensors that repeat themselves though the robot was told to move. Each observation term is judged by itself.

Shapes: O observation size, A action size, T observation terms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from deploy.watch import check_names, term_slices
from mpo_robot.errors import ConfigError
from mpo_robot.specs import PolicySpec

FloatArray = npt.NDArray[np.float32]
CheckMode = Literal["off", "warn", "fallback", "fault", "stop"]


@dataclass(frozen=True)
class FrozenCheck:
    """A term of the observation stays the same, bit for bit, though every command has moved since it last changed.

    A robot at rest repeats itself too: encoders are coarse. So readings count only from when each scalar of the command
    has moved by `command_change` of its half range within the time that the check takes.

    Attributes:
        mode: null: `fault` for a robot of `kind: module`, `warn` for a simulated one, because ideal sensors rest
            exactly.
        ticks: Identical readings, after the commands moved, that make a frozen sensor; the time `after_s` must have
            passed as well.
        after_s: Seconds after the commands moved within which a reading must answer.
        command_change: What counts as moving, as a fraction of the half range of a command.
        rest_s: All terms the same for this long are a frozen sensor even without a command that moves; 0: never. For
            robots with a sensor that has noise, such as an IMU; coarse encoders alone may rest for any time.
        exempt: Terms that may honestly stand still: a goal, a flag, a battery.
    """

    mode: CheckMode | None = None
    ticks: int = 25
    after_s: float = 0.5
    command_change: float = 0.1
    rest_s: float = 0.0
    exempt: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.ticks < 1:
            raise ConfigError(f"observation.frozen.ticks must be at least 1, got {self.ticks}")
        if not (0 <= self.after_s < math.inf and 0 <= self.rest_s < math.inf):
            raise ConfigError("observation.frozen: after_s and rest_s must be finite and not negative")
        if not 0 < self.command_change <= 1:
            raise ConfigError(f"observation.frozen.command_change must be in (0, 1], got {self.command_change}")


class FrozenWatch:
    """Looks for frozen terms in the readings of one episode."""

    def __init__(self, config: FrozenCheck, spec: PolicySpec) -> None:
        """Raises ConfigError for an unknown term in `exempt`, or if nothing is left to check."""
        check_names("observation.frozen.exempt", config.exempt, spec.observation)
        self._names = [term.name for term in spec.observation]
        self._starts = [part.start for _, part in term_slices(spec.observation)]
        self._is_watched = np.array([name not in config.exempt for name in self._names])
        if not self._is_watched.any():
            raise ConfigError("observation.frozen.exempt names all terms: use mode: off")
        self._needed = max(config.ticks, math.ceil(config.after_s / spec.control_dt - 1e-6))
        self._rest_ticks = math.ceil(config.rest_s / spec.control_dt - 1e-6)
        self._noticeable = config.command_change * spec.command_half_range
        self._last: npt.NDArray[np.uint32] | None = None
        self._moved = np.zeros((len(self._names), spec.action_size), np.bool_)  # since the term last changed
        self._repeats = np.zeros(len(self._names), np.int64)  # of those that count
        self._at_rest = 0  # readings
        self._anchor: FloatArray | None = None
        self._anchor_age = 0

    def check(self, observation: FloatArray, command: FloatArray | None) -> str:
        """What is frozen, in words; empty if nothing is.

        Args:
            observation: [O] the next reading.
            command: [A] applied last; None: unknown, so that every reading counts.
        """
        bits = observation.copy().view(np.uint32)
        is_same = np.zeros(len(self._names), np.bool_)
        if self._last is not None:
            is_same = np.logical_and.reduceat(bits == self._last, self._starts)
        self._last = bits
        if not is_same.any():  # as it should be, and quick
            self._moved[:], self._repeats[:], self._at_rest = False, 0, 0
            self._anchor, self._anchor_age = command, 0
            return ""
        self._moved = (self._moved | self._moves(command)) & is_same[:, np.newaxis]
        self._repeats = np.where(self._moved.all(axis=1), self._repeats + 1, 0)
        self._at_rest = self._at_rest + 1 if is_same[self._is_watched].all() else 0
        frozen = (self._repeats >= self._needed) & self._is_watched
        if frozen.any():
            name = self._names[int(np.argmax(frozen))]
            return f"{name} has not changed, though all commands have (may it? observation.frozen.exempt)"
        return "nothing has changed for rest_s" if 0 < self._rest_ticks <= self._at_rest else ""

    def _moves(self, command: FloatArray | None) -> npt.NDArray[np.bool_]:
        """Which scalars [A] of the command have moved noticeably; what drifts slowly does not."""
        if command is None:
            return np.ones_like(self._moved[0])
        anchor = command if self._anchor is None else self._anchor
        is_far = np.abs(command - anchor) >= self._noticeable
        self._anchor_age = (self._anchor_age + 1) % self._needed
        self._anchor = np.where(is_far | (self._anchor_age == 0), command, anchor)
        return is_far
