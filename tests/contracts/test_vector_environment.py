"""A vector of environments is those environments, stepped together."""

from __future__ import annotations

import numpy as np
import pytest

from mpo_robot.errors import MpoRobotError
from sim.config import EnvironmentConfig
from sim.make import make_environment
from sim.randomization_config import RandomizationConfig, RandomizationTerm
from sim.vector import VectorEnvironment

RANDOM = RandomizationConfig(
    (
        RandomizationTerm("body_mass", low=0.8, high=1.2, mode="startup"),
        RandomizationTerm("observation_noise", distribution="gaussian", mean=0.0, stddev=0.01),
        RandomizationTerm("action_delay", low=0, high=3),
    )
)
CONFIGS = (
    EnvironmentConfig("dm_control:walker-walk", RANDOM, time_limit_s=0.3),
    EnvironmentConfig("gymnasium:Hopper-v4"),
    EnvironmentConfig("parkour:walker-gaps"),
)


def task_of(config: EnvironmentConfig) -> str:
    return config.task


def actions_for(vector: VectorEnvironment, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, len(vector), vector.spec.action_size))


def roll(vector: VectorEnvironment, actions: np.ndarray) -> list:
    """Steps, with resets of what ended and their first observations in between."""
    record = []
    for action in actions:
        step = vector.step(action)
        record.append(step[:4])
        record.extend(vector.reset_at(index)[0] for index in np.flatnonzero(step.ended))
    return record


def assert_same(first: list, second: list) -> None:
    assert len(first) == len(second)
    for mine, yours in zip(first, second):
        for left, right in zip(mine, yours, strict=True):
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("config", CONFIGS, ids=task_of)
def test_each_member_is_the_single_environment(config):
    vector = VectorEnvironment(config, 3)
    observation, infos = vector.reset(seed=4)
    assert observation.shape == (3, vector.spec.observation_size)
    assert observation.dtype == np.float32
    assert len(infos) == 3
    assert len({row.tobytes() for row in observation}) == 3  # unrelated seeds
    actions = actions_for(vector, 60)
    steps = [vector.step(actions[0])]
    while not steps[-1].ended.any():
        steps.append(vector.step(actions[len(steps)]))
    assert steps[0].reward.dtype == np.float64
    assert steps[0].terminated.dtype == steps[0].truncated.dtype == bool
    for index in range(3):
        seed = int(np.random.SeedSequence([4, index]).generate_state(1)[0])
        single = make_environment(
            EnvironmentConfig(config.task, config.randomization, config.time_limit_s, startup_seed=index)
        )
        start, _ = single.reset(seed)
        np.testing.assert_array_equal(start, observation[index])
        for action, step in zip(actions[:, index], steps):
            result = single.step(action)
            np.testing.assert_array_equal(result.observation, step.observation[index])
            assert result[1:4] == (step.reward[index], step.terminated[index], step.truncated[index])
            assert result.info.get("randomization") == step.info[index].get("randomization")


@pytest.mark.parametrize("config", CONFIGS, ids=task_of)
def test_a_saved_state_continues_exactly_also_with_threads(config):
    vector, fresh = VectorEnvironment(config, 3), VectorEnvironment(config, 3, threads=2)
    vector.reset(seed=1)
    roll(vector, actions_for(vector, 7))
    state = vector.get_state()
    actions = actions_for(vector, 40, seed=1)
    expected = roll(vector, actions)
    fresh.reset(seed=9)
    fresh.set_state(state)
    assert fresh.get_state() == state
    assert_same(roll(fresh, actions), expected)
    fresh.close()
    fresh.close()


def test_ended_episodes_keep_their_final_observation_and_wait_for_a_reset():
    vector = VectorEnvironment(CONFIGS[0], 2)
    vector.reset(seed=0)
    vector.environments[1]._period_limit = 1  # one ends before the other
    actions = actions_for(vector, 1)[0]
    step = vector.step(actions)
    assert step.ended.tolist() == vector.ended.tolist() == [False, True]
    assert step.truncated.tolist() == [False, True]
    state = vector.get_state()
    with pytest.raises(RuntimeError, match=r"reset environments \[1\] first"):
        vector.step(actions)
    assert vector.get_state() == state
    start, _ = vector.reset_at(1)
    assert not np.array_equal(start, step.observation[1])
    vector.step(actions)


def test_bad_actions_move_nothing():
    vector = VectorEnvironment(CONFIGS[1], 2)
    vector.reset(seed=0)
    state = vector.get_state()
    with pytest.raises(ValueError, match="shape"):
        vector.step(np.zeros(3))
    broken = np.zeros((2, 3))
    broken[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"environments \[1\] hold NaN"):
        vector.step(broken)
    assert vector.get_state() == state


def test_states_and_sizes_are_checked():
    vector = VectorEnvironment(CONFIGS[1], 2)
    vector.reset(seed=0)
    with pytest.raises(MpoRobotError, match="2 environments, here are 3"):
        VectorEnvironment(CONFIGS[1], 3).set_state(vector.get_state())
    with pytest.raises(MpoRobotError, match="None environments"):
        vector.set_state(vector.environments[0].get_state())
    with pytest.raises(MpoRobotError, match="not the state"):
        vector.set_state(b"nothing")
    for count, threads in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            VectorEnvironment(CONFIGS[1], count, threads)


def test_an_exception_in_a_thread_reaches_the_caller():
    vector = VectorEnvironment(CONFIGS[1], 2, threads=2)
    vector.reset(seed=0)

    def fail(action):
        raise FloatingPointError("broken simulator")

    vector.environments[1].step = fail  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError, match="broken simulator"):
        vector.step(np.zeros((2, 3)))
    vector.close()
