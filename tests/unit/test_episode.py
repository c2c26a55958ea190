import dataclasses
import math

import numpy as np
import pytest

from mpo_robot.episode import Source, episodes_from_records
from mpo_robot.errors import EpisodeError
from tests.support.records import SPEC, make_records


def edit(records, index, **changes):
    return [*records[:index], dataclasses.replace(records[index], **changes), *records[index + 1 :]]


def error(records):
    with pytest.raises(EpisodeError) as caught:
        episodes_from_records(records, SPEC)
    return str(caught.value)


def test_one_unbroken_episode_keeps_every_bit():
    records = make_records(7)
    (episode,) = episodes_from_records(records, SPEC)
    for index, record in enumerate(records):
        np.testing.assert_array_equal(episode.observations[index], record.observation)
        np.testing.assert_array_equal(episode.actions[index], record.policy_action)
        assert episode.behavior_log_probs[index] == np.float32(record.behavior_log_prob)
        assert episode.rewards[index] == np.float32(record.reward)
    np.testing.assert_array_equal(episode.observations[7], records[-1].next_observation)
    assert all(array.dtype == np.float32 for array in (episode.observations, episode.actions, episode.rewards))
    assert episode.trace_valid.all()
    assert not episode.terminated
    assert (len(episode), episode.episode_id, episode.spec_hash) == (7, "test", SPEC.spec_hash)
    assert episode.policy_versions == ("a" * 64,) * 7
    assert episode.undiscounted_return == pytest.approx(sum(record.reward for record in records), rel=1e-6)


def test_the_action_learnt_from_is_the_sample_where_the_policy_acted_and_the_sent_one_elsewhere():
    records = make_records(5)
    records = edit(records, 1, action_modified=True)
    records = edit(records, 2, source=Source.FALLBACK)
    records = edit(records, 3, source=Source.HUMAN, behavior_log_prob=math.nan)
    records = edit(records, 4, behavior_log_prob=math.nan)
    (episode,) = episodes_from_records(records, SPEC)
    assert episode.trace_valid.tolist() == [True, False, False, False, False]
    assert (episode.behavior_log_probs[1:] == 0).all()
    np.testing.assert_array_equal(episode.actions[0], records[0].policy_action)
    for index in range(1, 5):
        np.testing.assert_array_equal(episode.actions[index], records[index].sent_action)
        assert not np.array_equal(records[index].sent_action, records[index].policy_action)


def test_termination_and_truncation_are_kept_apart():
    records = make_records(3)
    assert not episodes_from_records(records, SPEC)[0].terminated
    assert episodes_from_records(edit(records, 2, terminated=True, truncated=False), SPEC)[0].terminated


def test_a_killed_episode_counts_as_truncated():
    (episode,) = episodes_from_records(make_records(5)[:3], SPEC)
    assert len(episode) == 3
    assert not episode.terminated


def test_a_gap_starts_a_new_part_that_bootstraps_from_its_own_last_observation():
    records = make_records(6)
    first, second = episodes_from_records([*records[:2], *records[3:]], SPEC)
    assert (len(first), len(second)) == (2, 3)
    np.testing.assert_array_equal(first.observations[-1], records[1].next_observation)
    np.testing.assert_array_equal(second.observations[0], records[3].observation)
    assert not first.terminated


def test_a_truncated_step_in_the_middle_starts_a_new_part():
    first, second = episodes_from_records(edit(make_records(4), 1, truncated=True), SPEC)
    assert (len(first), len(second)) == (2, 2)


def test_several_episodes_in_one_log():
    records = make_records(3, episode_id="a") + make_records(2, episode_id="b", seed=1)
    assert [(episode.episode_id, len(episode)) for episode in episodes_from_records(records, SPEC)] == [
        ("a", 3),
        ("b", 2),
    ]


def test_no_records_no_episodes():
    assert episodes_from_records([], SPEC) == []


def test_order_is_checked():
    records = make_records(4)
    assert "out of order or repeated" in error([records[0], records[2], records[1]])
    assert "step 1 follows step 1" in error([*records[:2], records[1]])


def test_nothing_follows_a_terminated_step():
    assert "follows a terminated step" in error(edit(make_records(4), 1, terminated=True))


@pytest.mark.parametrize("field", ["observation", "policy_action"])
def test_nan_is_refused_with_its_place(field):
    records = make_records(5)
    spoilt = getattr(records[3], field).copy()
    spoilt[1] = np.nan
    assert "NaN or infinity at step 3" in error(edit(records, 3, **{field: spoilt}))


def test_nan_in_the_final_observation_and_an_infinite_reward_are_refused():
    records = make_records(3)
    assert "observations holds NaN or infinity at step 3" in error(
        edit(records, 2, next_observation=np.float32([0, np.inf, 0]))
    )
    assert "rewards holds NaN or infinity at step 1" in error(edit(records, 1, reward=math.inf))


def test_a_step_without_a_reward_cuts_the_sequence_there_like_a_missing_one():
    records = make_records(6)
    cut = episodes_from_records(edit(records, 2, reward=math.nan), SPEC)
    missing = episodes_from_records([*records[:2], *records[3:]], SPEC)
    assert [len(part) for part in cut] == [2, 3]
    for left, right in zip(cut, missing):
        for field in ("observations", "actions", "rewards", "behavior_log_probs"):
            np.testing.assert_array_equal(getattr(left, field), getattr(right, field))
    assert not cut[0].terminated


def test_steps_without_a_reward_at_the_ends_are_left_out_and_order_is_checked_through_them():
    records = make_records(5)
    open_ends = edit(edit(edit(records, 0, reward=math.nan), 1, reward=math.nan), 4, reward=math.nan, terminated=True)
    (part,) = episodes_from_records(open_ends, SPEC)
    np.testing.assert_array_equal(part.rewards, np.float32([records[2].reward, records[3].reward]))
    assert not part.terminated  # the terminated step is not in it: it bootstraps from the state before
    assert episodes_from_records([dataclasses.replace(record, reward=math.nan) for record in records], SPEC) == []
    unknown = edit(records, 2, reward=math.nan)
    assert "out of order or repeated" in error([*unknown[:3], unknown[1], *unknown[3:]])
    assert "follows a terminated step" in error(edit(unknown, 2, reward=math.nan, terminated=True))


def test_an_observation_that_is_not_the_state_before_it_starts_a_new_part():
    records = make_records(5)
    other = records[3].observation.copy()
    other[0] = np.nextafter(other[0], np.float32(np.inf))  # one unit in the last place
    first, second = episodes_from_records(edit(records, 3, observation=other), SPEC)
    assert (len(first), len(second)) == (3, 2)
    np.testing.assert_array_equal(first.observations[-1], records[2].next_observation)
    np.testing.assert_array_equal(second.observations[0], other)


def test_nan_in_a_sample_that_was_not_sent_does_no_harm():
    spoilt = np.full(SPEC.action_size, np.nan, np.float32)
    (episode,) = episodes_from_records(
        edit(make_records(3), 1, policy_action=spoilt, source=Source.FALLBACK, action_modified=True), SPEC
    )
    assert np.isfinite(episode.actions).all()


@pytest.mark.parametrize("field", ["observation", "next_observation", "policy_action", "sent_action"])
def test_wrong_shapes_are_refused(field):
    records = edit(make_records(3), 1, **{field: np.zeros(9, np.float32)})
    assert f"step 1: {field} has shape (9,), expected" in error(records)


def test_another_spec_is_refused():
    assert "was recorded with spec ffffffffffff" in error(edit(make_records(3), 2, spec_hash="f" * 64))


def test_validate_checks_an_episode_made_elsewhere():
    (episode,) = episodes_from_records(make_records(4), SPEC)
    episode.validate(SPEC)
    for changes, text in (
        ({"spec_hash": "0" * 64}, "recorded with spec 000000000000"),
        ({"rewards": np.zeros(0, np.float32)}, "holds no steps"),
        ({"actions": episode.actions[:-1]}, "actions has shape (3, 2), expected (4, 2)"),
        ({"observations": episode.observations[:-1]}, "observations has shape (4, 3), expected (5, 3)"),
        ({"behavior_log_probs": np.float32([0, 0, np.inf, 0])}, "behavior_log_probs holds NaN or infinity at step 2"),
    ):
        with pytest.raises(EpisodeError) as caught:
            dataclasses.replace(episode, **changes).validate(SPEC)
        assert text in str(caught.value)
