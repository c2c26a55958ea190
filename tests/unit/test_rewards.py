"""Rewards computed for logs that have none."""

import dataclasses
import math

import numpy as np
import pytest

from mpo_robot.errors import ConfigError, EpisodeError
from mpo_robot.rewards import RewardHook, load_reward_hook
from tests.support.records import SPEC, make_records


def records_with(*rewards):
    return [
        dataclasses.replace(record, reward=reward, sent_action=record.sent_action + np.float32(0.5))
        for record, reward in zip(make_records(len(rewards)), rewards)
    ]


def progress(observations, actions, next_observations, extras):
    return next_observations[:, 0] - observations[:, 0] - 0.1 * np.square(actions).sum(axis=1)


def test_null_rewards_are_computed_and_the_others_kept():
    records = records_with(1.0, math.nan, 3.0, math.nan)
    filled = RewardHook("m:progress", progress).apply(records, SPEC, {})
    for index in (1, 3):
        record = records[index]
        cost = 0.1 * float(np.square(record.sent_action).sum())
        expected = float(record.next_observation[0] - record.observation[0]) - cost
        assert filled[index].reward == pytest.approx(expected, rel=1e-5)
    assert [filled[index].reward for index in (0, 2)] == [1.0, 3.0]


def test_all_rewards_are_replaced_when_asked():
    filled = RewardHook("m:f", lambda o, a, n, e: np.arange(3), every=True).apply(records_with(7, 8, 9), SPEC, {})
    assert [record.reward for record in filled] == [0.0, 1.0, 2.0]


def test_the_function_is_not_called_where_nothing_is_to_be_computed():
    records = records_with(1.0, 2.0)
    assert RewardHook("m:f", lambda *_: pytest.fail("called")).apply(records, SPEC, {}) == records
    assert RewardHook("m:f", lambda *_: pytest.fail("called"), every=True).apply([], SPEC, {}) == []


def test_it_gets_the_whole_log_in_one_call():
    records = [records_with(*[math.nan] * 5)[index] for index in (0, 1, 3, 4)]
    seen = []

    def spy(observations, actions, next_observations, extras):
        seen.append((observations, actions, next_observations, extras))
        return np.zeros(4)

    RewardHook("m:spy", spy).apply(records, SPEC, {"goal": 2})
    ((observations, actions, next_observations, extras),) = seen
    assert observations.shape == next_observations.shape == (4, SPEC.observation_size)
    assert actions.shape == extras.applied_commands.shape == (4, SPEC.action_size)
    np.testing.assert_array_equal(actions[2], records[2].sent_action)
    np.testing.assert_array_equal(extras.applied_commands[2], records[2].applied_command)
    assert extras.step_indices.tolist() == [0, 1, 3, 4]
    assert extras.truncated.tolist() == [False, False, False, True]
    assert (extras.spec, extras.episode_id, extras.info) == (SPEC, "test", {"goal": 2})


def fails(*_):
    return {}["no such sensor"]


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (fails, r"m:f failed on episode test: KeyError: 'no such sensor'"),
        (lambda *_: 1.0, r"must return 2 numbers .* got shape \(\)"),
        (lambda *_: np.zeros(3), r"got shape \(3,\)"),
        (lambda *_: np.array([0.0, np.inf]), "never infinity"),
    ],
)
def test_a_wrong_function_is_a_mistake_of_the_settings_not_of_the_log(function, text):
    with pytest.raises(ConfigError, match=text):
        RewardHook("m:f", function).apply(records_with(math.nan, math.nan), SPEC, {})


def test_a_malformed_record_is_the_logs_mistake():
    records = records_with(math.nan, math.nan)
    records[1] = dataclasses.replace(records[1], observation=np.zeros(9, np.float32))
    with pytest.raises(EpisodeError, match="step 1: observation has shape"):
        RewardHook("m:f", progress).apply(records, SPEC, {})


def test_functions_are_found_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_bench_rewards.py").write_text("def two(o, a, n, extras):\n    return 2.0 * extras.terminated\n")
    (tmp_path / "my_broken_rewards.py").write_text("1 / 0\n")
    hook = load_reward_hook("my_bench_rewards:two", every=True)
    assert (hook.name, hook.every) == ("my_bench_rewards:two", True)
    assert hook.apply(records_with(5.0), SPEC, {})[0].reward == 0.0
    for name, text in (
        ("my_bench_rewards:three", "cannot be imported"),
        ("my_bench_rewards:__name__", "is no function"),
        ("my_broken_rewards:two", "ZeroDivisionError"),
    ):
        with pytest.raises(ConfigError, match=text):
            load_reward_hook(name)
