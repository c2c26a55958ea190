"""The replay of pixels gives what the replay of floats gives, from a quarter of the memory."""

import numpy as np
import pytest

from mpo_robot.byte_replay import ByteReplay
from mpo_robot.errors import ConfigError
from mpo_robot.replay import SequenceReplay


def fill(replay, steps=23, seed=0):
    rng = np.random.default_rng(seed)
    for step in range(steps):
        observation = rng.integers(256, size=6).astype(np.float32)
        ended = step % 5 == 4
        replay.add(observation, [step % 3], -1.0, float(step), ended and step % 2 == 0, step % 4 != 0)
        if ended:
            replay.end_episode(rng.integers(256, size=6).astype(np.float32), step % 2 == 0)
    return replay


def sampled(replay, seed=1):
    return replay.sample(np.random.default_rng(seed), 50, 4)


def assert_same(left, right):
    for mine, yours in zip(left, right):
        np.testing.assert_array_equal(mine, yours)
        assert mine.dtype == np.float32


@pytest.mark.parametrize("capacity", [100, 11])
def test_it_samples_the_same_as_floats_also_when_the_ring_has_turned(capacity):
    assert_same(sampled(fill(ByteReplay(capacity, 6, 1))), sampled(fill(SequenceReplay(capacity, 6, 1))))


@pytest.mark.parametrize("capacity", [100, 11])
def test_a_saved_replay_continues_exactly(tmp_path, capacity):
    replay = fill(ByteReplay(capacity, 6, 1))
    replay.save(tmp_path / "replay.npz")
    restored = fill(ByteReplay(capacity, 6, 1), steps=8, seed=9)
    restored.load(tmp_path / "replay.npz")
    for item in (replay, restored):
        fill(item, steps=3, seed=4)
    assert_same(sampled(replay), sampled(restored))
    assert restored.transitions_added == replay.transitions_added


def test_other_observations_are_refused():
    replay = ByteReplay(10, 2, 1)
    for wrong in ([0.5, 0.0], [256.0, 0.0], [-1.0, 0.0], [np.nan, 0.0]):
        with pytest.raises(ConfigError, match="replay_bytes"), np.errstate(invalid="ignore"):
            replay.add(np.array(wrong, np.float32), np.zeros(1, np.float32), 0.0, 0.0, False)


def test_files_of_the_other_kind_are_refused(tmp_path):
    floats = SequenceReplay(100, 1, 1)
    floats.add(np.ones(1, np.float32), np.ones(1, np.float32), 0.0, 0.0, False)
    floats.save(tmp_path / "floats.npz")
    with pytest.raises(ConfigError, match="replay_bytes was changed"):
        ByteReplay(100, 6, 1).load(tmp_path / "floats.npz")
