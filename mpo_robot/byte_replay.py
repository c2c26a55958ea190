"""Replay of observations that are whole numbers from 0 to 255, a byte each: pixels.

Axes: B batch, L sequence length, O observation size, A action size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mpo_robot.episode import Episode
from mpo_robot.errors import ConfigError
from mpo_robot.replay import FloatArray, SequenceBatch, SequenceReplay, allocate


class ByteReplay(SequenceReplay):
    """`SequenceReplay` with a quarter of the memory: 28 kB per row for four frames of 84 x 84.

    The float rows of the base class hold the number of the row instead of its observation.
    """

    def __init__(self, capacity: int, observation_size: int, action_size: int) -> None:
        if capacity >= 2**24:
            raise ConfigError(f"replay capacity must stay below {2**24:,} rows with bytes, got {capacity:,}")
        super().__init__(capacity, 1, action_size)
        self._bytes = allocate((capacity, observation_size), np.uint8)

    def add(
        self,
        observation: FloatArray,
        action: FloatArray,
        behavior_log_prob: float,
        reward: float,
        terminated: bool,
        trace_valid: bool = True,
    ) -> None:
        """As of the base class.

        Raises:
            ConfigError: the observation is not made of whole numbers from 0 to 255.
        """
        super().add(self._keep(observation), action, behavior_log_prob, reward, terminated, trace_valid)

    def end_episode(self, final_observation: FloatArray, terminated: bool) -> None:
        """As of the base class."""
        super().end_episode(self._keep(final_observation), terminated)

    def add_episode(self, episode: Episode) -> None:
        """Append a whole episode."""
        columns = (episode.actions, episode.behavior_log_probs, episode.rewards, episode.trace_valid)
        for index, (action, log_prob, reward, valid) in enumerate(zip(*columns)):
            ended = episode.terminated and index == len(episode) - 1
            self.add(episode.observations[index], action, float(log_prob), float(reward), ended, bool(valid))
        self.end_episode(episode.observations[-1], episode.terminated)

    def _keep(self, observation: FloatArray) -> FloatArray:
        """Store an observation in the next row; the number of that row, [1]."""
        row = self._bytes[self._next]
        row[:] = np.minimum(np.maximum(observation, 0.0), 255.0)
        if not np.array_equal(row, observation):
            raise ConfigError(
                "training.replay_bytes is for observations of whole numbers from 0 to 255, this task has others: "
                "set it to false"
            )
        return np.array([self._next], np.float32)

    def sample(self, rng: np.random.Generator, batch_size: int, sequence_length: int) -> SequenceBatch:
        """As of the base class; observations are floats again."""
        batch = super().sample(rng, batch_size, sequence_length)
        return batch._replace(observation=self._bytes[batch.observation[..., 0].astype(np.int64)].astype(np.float32))

    def _arrays_in_use(self) -> dict[str, Any]:
        return super()._arrays_in_use() | {"observations": self._bytes[self._rows_in_use()]}

    def load(self, path: Path, resize: bool = False) -> None:
        """Restore `save` exactly. Another capacity is refused, whatever `resize` says."""
        super().load(path)
        with np.load(path, allow_pickle=False) as data:
            observations = data["observations"] if "observations" in data else np.zeros((0, 0))
        if observations.shape != (self._size, self._bytes.shape[1]):
            raise ConfigError(f"{path} holds no bytes of {self._bytes.shape[1]} observations: replay_bytes was changed")
        self._bytes[self._rows_in_use()] = observations
