"""Replay of sequences: one packed float32 ring. NumPy only; exact to save and restore.

An episode of T transitions takes T + 1 consecutive rows: row t holds the observation before step t and everything
about step t; the last row holds the final observation and is no transition. So any window of L + 1 consecutive rows
gives L usable positions and one bootstrap state, across episode borders too: rows that are no transition are masked
and cut the trace. Axes: B batch, L sequence length, O observation size, A action size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpo_robot.episode import Episode
from mpo_robot.errors import ConfigError

FloatArray = npt.NDArray[np.float32]

_REWARD, _TERMINATED, _LOG_PROB, _TRACE_VALID, _IS_TRANSITION = range(5)
_EXTRA = 5


class SequenceBatch(NamedTuple):
    """Sampled windows.

    Attributes:
        observation: [B, L + 1, O].
        action: [B, L, A] as sampled by the behaviour policy, before clipping.
        reward: [B, L].
        terminated: [B, L] 1 where the step ended the task.
        behavior_log_prob: [B, L] nats.
        trace_valid: [B, L] 1 where an importance ratio exists.
        is_transition: [B, L] 1 where the row is a transition.
        policy_state: [B, L + 1] 1 where a policy acts in the state (0 for states after termination).
    """

    observation: FloatArray
    action: FloatArray
    reward: FloatArray
    terminated: FloatArray
    behavior_log_prob: FloatArray
    trace_valid: FloatArray
    is_transition: FloatArray
    policy_state: FloatArray


def allocate(shape: tuple[int, int], kind: npt.DTypeLike) -> npt.NDArray[Any]:
    """Zeros for so many rows.

    Raises:
        ConfigError: the machine cannot hold them.
    """
    try:
        return np.zeros(shape, kind)
    except (MemoryError, ValueError) as error:  # the second: more than could be addressed
        size = shape[0] * shape[1] * np.dtype(kind).itemsize / 1e9
        raise ConfigError(
            f"a replay of {shape[0]:,} rows takes {size:.1f} GB, which this machine does not have: lower "
            "training.replay_capacity"
        ) from error


class SequenceReplay:
    """Ring of the newest `capacity` rows."""

    def __init__(self, capacity: int, observation_size: int, action_size: int) -> None:
        if capacity < 2:
            raise ConfigError(f"replay capacity must be at least 2 rows, got {capacity}")
        self.capacity = capacity
        self.observation_size = observation_size
        self.action_size = action_size
        self._rows = allocate((capacity, observation_size + action_size + _EXTRA), np.float32)
        self._extra = observation_size + action_size
        self._next = 0  # next row to write
        self._size = 0  # rows in use
        self.transitions_added = 0

    def __len__(self) -> int:
        """Rows in use (transitions plus final observations)."""
        return self._size

    def add(
        self,
        observation: FloatArray,
        action: FloatArray,
        behavior_log_prob: float,
        reward: float,
        terminated: bool,
        trace_valid: bool = True,
    ) -> None:
        """Append one transition: `observation` before it, `action` as sampled. Its episode must be ended in time."""
        row = self._rows[self._next]
        row[: self.observation_size] = observation
        row[self.observation_size : self._extra] = action
        row[self._extra :] = (reward, terminated, behavior_log_prob, trace_valid, 1.0)
        self._advance(1)
        self.transitions_added += 1

    def end_episode(self, final_observation: FloatArray, terminated: bool) -> None:
        """Append the final observation of the episode whose transitions were just added."""
        row = self._rows[self._next]
        row[:] = 0.0
        row[: self.observation_size] = final_observation
        row[self._extra + _TERMINATED] = terminated
        self._advance(1)

    def add_episode(self, episode: Episode) -> None:
        """Append a whole episode, bit-exact."""
        steps = len(episode)
        if steps + 1 > self.capacity:
            raise ConfigError(f"episode of {steps} steps does not fit a replay of {self.capacity} rows")
        rows = np.zeros((steps + 1, self._rows.shape[1]), np.float32)
        rows[:, : self.observation_size] = episode.observations
        rows[:steps, self.observation_size : self._extra] = episode.actions
        extra = rows[:, self._extra :]
        extra[:steps, _REWARD] = episode.rewards
        extra[steps - 1 :, _TERMINATED] = episode.terminated
        extra[:steps, _LOG_PROB] = episode.behavior_log_probs
        extra[:steps, _TRACE_VALID] = episode.trace_valid
        extra[:steps, _IS_TRANSITION] = 1.0
        self._rows[(self._next + np.arange(steps + 1)) % self.capacity] = rows
        self._advance(steps + 1)
        self.transitions_added += steps

    def _advance(self, rows: int) -> None:
        self._next = (self._next + rows) % self.capacity
        self._size = min(self._size + rows, self.capacity)

    def can_sample(self, sequence_length: int) -> bool:
        """Whether at least one window of `sequence_length` + 1 rows exists."""
        return self._size >= sequence_length + 1

    def sample(self, rng: np.random.Generator, batch_size: int, sequence_length: int) -> SequenceBatch:
        """Windows that start anywhere with equal probability.

        Raises:
            ValueError: the replay holds fewer than `sequence_length` + 1 rows.
        """
        if not self.can_sample(sequence_length):
            raise ValueError(f"need {sequence_length + 1} rows to sample, have {self._size}")
        starts = rng.integers(self._size - sequence_length, size=batch_size)
        oldest = self._next - self._size
        index = (oldest + starts)[:, None] + np.arange(sequence_length + 1)
        rows = np.take(self._rows, index, axis=0, mode="wrap")  # [B, L + 1, W]
        steps = rows[:, :-1]
        extra = steps[..., self._extra :]
        last = rows[..., self._extra :]
        after_termination = (last[..., _TERMINATED] > 0) & (last[..., _IS_TRANSITION] == 0)
        return SequenceBatch(
            observation=rows[..., : self.observation_size],
            action=steps[..., self.observation_size : self._extra],
            reward=extra[..., _REWARD],
            terminated=extra[..., _TERMINATED],
            behavior_log_prob=extra[..., _LOG_PROB],
            trace_valid=extra[..., _TRACE_VALID],
            is_transition=extra[..., _IS_TRANSITION],
            policy_state=(~after_termination).astype(np.float32),
        )

    def save(self, path: Path) -> None:
        """Write the rows in use and the counters to an .npz file."""
        counters: dict[str, Any] = {"next": self._next, "added": self.transitions_added, "capacity": self.capacity}
        with path.open("wb") as stream:
            np.savez(stream, **counters, **self._arrays_in_use())

    def _arrays_in_use(self) -> dict[str, Any]:
        """What `save` writes of each row in use, oldest first."""
        return {"rows": self._rows[self._rows_in_use()]}

    def _rows_in_use(self) -> npt.NDArray[np.int64]:
        """Row numbers, oldest first."""
        return np.arange(self._next - self._size, self._next) % self.capacity

    def load(self, path: Path, resize: bool = False) -> None:
        """Restore `save` exactly, positions in the ring included.

        Args:
            path: File to read.
            resize: Take a file of another capacity as well: its newest rows that fit.

        Raises:
            ConfigError: the file was written for another capacity or other sizes.
        """
        with np.load(path, allow_pickle=False) as data:
            rows, capacity, start = data["rows"], int(data["capacity"]), int(data["next"])
            added = int(data["added"])
        if (capacity != self.capacity and not resize) or rows.shape[1] != self._rows.shape[1]:
            raise ConfigError(
                f"{path} holds a replay of capacity {capacity} and row width {rows.shape[1]}; "
                f"this run needs {self.capacity} and {self._rows.shape[1]}"
            )
        if capacity != self.capacity:
            rows = rows[-self.capacity :]
            start = len(rows) % self.capacity
        self._next, self._size, self.transitions_added = start, len(rows), added
        self._rows[self._rows_in_use()] = rows
