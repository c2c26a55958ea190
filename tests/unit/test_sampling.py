"""Batches for the learner: rows of both sources whole, observations normalised and nothing else."""

import numpy as np
import pytest

from mpo_robot.normalization import RunningNormalizer
from mpo_robot.replay import SequenceReplay
from mpo_robot.sampling import normalize, sample_mixed
from tests.support.learning import ACTION_SIZE, OBSERVATION_SIZE, make_batch
from tests.support.tiny_run import make_episode


def replay(seed):
    result = SequenceReplay(100, 3, 2)
    result.add_episode(make_episode(40, seed))
    return result


def test_normalizing_changes_the_observations_only_and_not_in_place():
    normalizer = RunningNormalizer(OBSERVATION_SIZE)
    normalizer.update(np.random.default_rng(0).standard_normal((50, OBSERVATION_SIZE)).astype(np.float32) * 3.0 + 1.0)
    batch = make_batch()
    before = batch.observation.copy()
    result = normalize(batch, normalizer)
    assert np.array_equal(result.observation, normalizer(before))
    assert np.array_equal(batch.observation, before)
    for name in batch._fields[1:]:
        assert getattr(result, name) is getattr(batch, name)
    assert normalize(batch, None) is batch


def test_every_array_of_a_mixed_batch_has_the_same_source_order():
    simulated, real = replay(1), replay(2)
    batch = sample_mixed(np.random.default_rng(0), simulated, real, 0.25, 8, 3)
    rows = {True: real._rows, False: simulated._rows}
    for index in range(8):
        source = rows[index >= 6]
        start = int(np.flatnonzero((source[:, :3] == batch.observation[index, 0]).all(axis=1))[0])
        window = source[start : start + 4]
        assert np.array_equal(batch.observation[index], window[:, :3])
        assert np.array_equal(batch.action[index], window[:3, 3 : 3 + ACTION_SIZE])
        assert np.array_equal(batch.reward[index], window[:3, 5])
        assert np.array_equal(batch.behavior_log_prob[index], window[:3, 7])


def test_a_share_that_is_no_whole_number_of_windows_holds_on_average():
    # 0.02 of 16 windows rounded to the nearest would never learn from real data.
    simulated, real, rng = replay(1), replay(2), np.random.default_rng(0)
    first_rows = {bytes(row) for row in real._rows[:, :3]}
    for fraction in (0.02, 0.72):
        counts = []
        for _ in range(400):
            batch = sample_mixed(rng, simulated, real, fraction, 16, 3)
            counts.append(sum(bytes(row) in first_rows for row in batch.observation[:, 0]))
        assert set(counts) == {int(fraction * 16), int(fraction * 16) + 1}
        assert np.mean(counts) == pytest.approx(fraction * 16, abs=0.1)
