"""From replay rows to learner batches: mixing simulated and real sequences, normalising observations."""

from __future__ import annotations

import numpy as np

from mpo_robot.errors import ConfigError
from mpo_robot.normalization import RunningNormalizer
from mpo_robot.replay import SequenceBatch, SequenceReplay


def sample_mixed(
    rng: np.random.Generator,
    simulated: SequenceReplay | None,
    real: SequenceReplay | None,
    real_fraction: float,
    batch_sequences: int,
    sequence_length: int,
) -> SequenceBatch:
    """`batch_sequences` windows, of which the share `real_fraction` comes from the real replay.

    Where the share is no whole number of windows it is rounded up or down at random, so that it holds on average (a
    small share would otherwise be rounded to nothing). A replay that is absent or too short to sample gives its share
    to the other.

    Raises:
        ConfigError: neither replay can be sampled.
    """
    sources = [
        replay if replay is not None and replay.can_sample(sequence_length) else None for replay in (simulated, real)
    ]
    usable_simulated, usable_real = sources
    if usable_simulated is None and usable_real is None:
        raise ConfigError(f"no replay holds a window of {sequence_length} steps yet: collect more data first")
    share = real_fraction * batch_sequences
    real_count = int(share) + int(rng.random() < share - int(share)) if usable_real is not None else 0
    if usable_simulated is None:
        real_count = batch_sequences
    parts = []
    if usable_simulated is not None and real_count < batch_sequences:
        parts.append(usable_simulated.sample(rng, batch_sequences - real_count, sequence_length))
    if usable_real is not None and real_count:
        parts.append(usable_real.sample(rng, real_count, sequence_length))
    if len(parts) == 1:
        return parts[0]
    return SequenceBatch(*(np.concatenate(arrays) for arrays in zip(*parts)))


def normalize(batch: SequenceBatch, normalizer: RunningNormalizer | None) -> SequenceBatch:
    """The batch with normalised observations."""
    return batch if normalizer is None else batch._replace(observation=normalizer(batch.observation))
