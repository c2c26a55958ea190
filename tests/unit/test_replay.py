"""Replay: windows across episode borders by hand, the ring, whole episodes, exact restore."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpo_robot.episode import Episode
from mpo_robot.errors import ConfigError
from mpo_robot.replay import SequenceReplay

O, A = 2, 1  # noqa: E741


def observation(value: float) -> np.ndarray:
    return np.array([value, -value], np.float32)


def fill(replay: SequenceReplay, steps: int, start: float, terminated: bool) -> None:
    """Observations start, start + 1, ...; reward and action of a step equal its observation."""
    for index in range(steps):
        value = start + index
        last = terminated and index == steps - 1
        replay.add(observation(value), np.array([value], np.float32), -value, value, last)
    replay.end_episode(observation(start + steps), terminated)


class FirstWindow:
    """A generator that always takes the oldest window, plus `offset`."""

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset

    def integers(self, high: int, size: int) -> np.ndarray:
        assert self.offset < high
        return np.full(size, self.offset)


def window(replay: SequenceReplay, length: int, offset: int = 0):
    return replay.sample(FirstWindow(offset), 1, length)


def test_a_window_across_a_termination_by_hand():
    replay = SequenceReplay(50, O, A)
    fill(replay, 2, 10, terminated=True)  # rows 10, 11, final 12
    fill(replay, 3, 20, terminated=False)  # rows 20, 21, 22, final 23
    batch = window(replay, 5)
    assert batch.observation[0, :, 0].tolist() == [10, 11, 12, 20, 21, 22]
    assert batch.is_transition[0].tolist() == [1, 1, 0, 1, 1]
    assert batch.terminated[0].tolist() == [0, 1, 1, 0, 0]
    assert batch.reward[0].tolist() == [10, 11, 0, 20, 21]
    assert batch.behavior_log_prob[0].tolist() == [-10, -11, 0, -20, -21]
    assert batch.trace_valid[0].tolist() == [1, 1, 0, 1, 1]
    assert batch.policy_state[0].tolist() == [1, 1, 0, 1, 1, 1]


def test_the_final_observation_of_a_truncated_episode_is_there_to_bootstrap_from():
    replay = SequenceReplay(50, O, A)
    fill(replay, 2, 10, terminated=False)
    batch = window(replay, 2)
    assert batch.observation[0, :, 0].tolist() == [10, 11, 12]
    assert batch.terminated[0].tolist() == [0, 0]
    assert batch.policy_state[0].tolist() == [1, 1, 1]


def test_the_last_transition_before_a_termination_is_sampled():
    # Pitfall 12: its reward must reach the learner.
    replay = SequenceReplay(50, O, A)
    fill(replay, 4, 1, terminated=True)
    batch = window(replay, 1, offset=3)
    assert batch.reward[0].tolist() == [4]
    assert batch.terminated[0].tolist() == [1]


def test_sampling_covers_every_window_about_equally():
    replay = SequenceReplay(50, O, A)
    fill(replay, 9, 0, terminated=False)
    batch = replay.sample(np.random.default_rng(0), 8000, 2)
    counts = np.bincount(batch.observation[:, 0, 0].astype(int))
    assert len(counts) == 8  # ten rows hold eight windows of three
    assert counts.min() > 800


def test_too_few_rows_and_too_small_capacities_are_refused():
    replay = SequenceReplay(50, O, A)
    replay.add(observation(1), np.zeros(1, np.float32), 0.0, 0.0, False)
    assert not replay.can_sample(1)
    with pytest.raises(ValueError, match="need 2 rows"):
        window(replay, 1)
    with pytest.raises(ConfigError, match="at least 2"):
        SequenceReplay(1, O, A)
    with pytest.raises(ConfigError, match=r"takes 400000\.0 GB.*: lower training.replay_capacity"):
        SequenceReplay(10**13, O, 10 - O - 5)
    long = Episode(np.zeros((61, O), np.float32), np.zeros((60, A), np.float32), np.zeros(60, np.float32),
                   np.ones(60, np.bool_), np.zeros(60, np.float32), False, "")  # fmt: skip
    with pytest.raises(ConfigError, match="does not fit"):
        replay.add_episode(long)


@pytest.mark.parametrize("terminated", [True, False])
def test_a_whole_episode_is_stored_as_its_steps_are(terminated):
    rng = np.random.default_rng(0)
    episode = Episode(
        observations=rng.standard_normal((6, O)).astype(np.float32),
        actions=rng.standard_normal((5, A)).astype(np.float32),
        behavior_log_probs=rng.standard_normal(5).astype(np.float32),
        trace_valid=np.array([True, False, True, True, False]),
        rewards=rng.standard_normal(5).astype(np.float32),
        terminated=terminated,
        spec_hash="",
    )
    whole, stepwise = SequenceReplay(20, O, A), SequenceReplay(20, O, A)
    whole.add_episode(episode)
    for index in range(5):
        stepwise.add(
            episode.observations[index],
            episode.actions[index],
            float(episode.behavior_log_probs[index]),
            float(episode.rewards[index]),
            terminated and index == 4,
            bool(episode.trace_valid[index]),
        )
    stepwise.end_episode(episode.observations[5], terminated)
    assert whole._rows.tobytes() == stepwise._rows.tobytes()
    assert whole.transitions_added == stepwise.transitions_added == 5


@given(
    st.integers(4, 30),
    st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=12),
    st.integers(1, 4),
)
@settings(deadline=None, max_examples=60)
def test_the_ring_equals_a_list_of_rows(capacity, episodes, length):
    replay, rows, value = SequenceReplay(capacity, O, A), [], 0
    for steps, terminated in episodes:
        fill(replay, steps, value, terminated)
        rows += [(value + index, index < steps) for index in range(steps + 1)]
        value += steps + 1
    rows = rows[-capacity:]
    assert len(replay) == len(rows)
    assert replay.can_sample(length) == (len(rows) > length)
    for offset in range(len(rows) - length):
        batch = window(replay, length, offset)
        expected = rows[offset : offset + length + 1]
        assert batch.observation[0, :, 0].tolist() == [row[0] for row in expected]
        assert batch.is_transition[0].tolist() == [row[1] for row in expected[:-1]]


def test_saved_and_restored_it_goes_on_exactly(tmp_path):
    one = SequenceReplay(12, O, A)
    fill(one, 7, 0, terminated=True)
    fill(one, 6, 10, terminated=False)  # wraps round
    one.save(tmp_path / "replay.npz")
    two = SequenceReplay(12, O, A)
    two.load(tmp_path / "replay.npz")
    for replay in (one, two):
        fill(replay, 3, 30, terminated=False)
    assert one._rows.tobytes() == two._rows.tobytes()
    assert (len(one), one._next, one.transitions_added) == (len(two), two._next, two.transitions_added)
    with pytest.raises(ConfigError, match="capacity 12"):
        SequenceReplay(13, O, A).load(tmp_path / "replay.npz")
    with pytest.raises(ConfigError, match="row width"):
        SequenceReplay(12, O, A + 1).load(tmp_path / "replay.npz")


@pytest.mark.parametrize(("capacity", "kept"), [(30, 12), (12, 12), (5, 5)])
def test_a_replay_of_another_capacity_is_taken_over_if_asked_newest_rows_first(tmp_path, capacity, kept):
    one = SequenceReplay(12, O, A)
    fill(one, 7, 0, terminated=True)
    fill(one, 6, 10, terminated=False)  # wraps round
    one.save(tmp_path / "replay.npz")
    two = SequenceReplay(capacity, O, A)
    two.load(tmp_path / "replay.npz", resize=True)
    newest = np.take(one._rows, np.arange(one._next - kept, one._next), axis=0, mode="wrap")
    assert (len(two), two.transitions_added) == (kept, 13)
    for offset in range(kept - 2):
        assert window(two, 2, offset).observation[0].tolist() == newest[offset : offset + 3, :O].tolist()
    fill(two, 2, 50, terminated=False)  # it goes on behind them
    assert window(two, 2, len(two) - 3).observation[0, :, 0].tolist() == [50, 51, 52]
    with pytest.raises(ConfigError, match="row width"):
        SequenceReplay(capacity, O, A + 1).load(tmp_path / "replay.npz", resize=True)
