"""Observations and rewards are those of the raw simulators for the same actions."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest

from sim.backend import quiet_loading
from sim.config import EnvironmentConfig
from sim.dm_control_backend import load_suite
from sim.make import make_environment


def actions_for(environment, count=25):
    return np.random.default_rng(3).uniform(-1.1, 1.1, (count, environment.spec.action_size)).astype(np.float32)


@pytest.mark.parametrize(
    ("domain", "task"),
    [
        ("cartpole", "swingup"),
        ("walker", "walk"),
        ("cheetah", "run"),
        ("reacher", "easy"),
        ("manipulator", "bring_ball"),
        ("quadruped", "run"),
    ],
)
def test_dm_control(domain, task):
    environment = make_environment(EnvironmentConfig(f"dm_control:{domain}-{task}"))
    with quiet_loading():
        raw = load_suite().load(domain, task, task_kwargs={"random": 11})
    observation, _ = environment.reset(seed=11)
    time_step = raw.reset()
    for action in (None, *actions_for(environment)):
        if action is not None:
            observation, reward, terminated, truncated, _ = environment.step(action)
            time_step = raw.step(environment.spec.to_command(action))
            assert reward == time_step.reward
            assert (terminated or truncated) == time_step.last()
        flat = np.concatenate([np.ravel(value) for value in time_step.observation.values()])
        np.testing.assert_array_equal(observation, flat.astype(np.float32))
    names = [term.name for term in environment.spec.observation]
    assert names == list(time_step.observation)
    assert [term.size for term in environment.spec.observation] == [
        np.size(value) for value in time_step.observation.values()
    ]
    assert environment.spec.control_dt == pytest.approx(raw.control_timestep())


@pytest.mark.parametrize(
    "task",
    ["HalfCheetah-v4", "HalfCheetah-v5", "Swimmer-v4", "Hopper-v4", "Humanoid-v4", "Ant-v4", "Ant-v5", "Reacher-v4"],
)
def test_gymnasium(task):
    environment = make_environment(EnvironmentConfig(f"gymnasium:{task}"))
    with quiet_loading(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gymnasium.make advises against -v4
        raw = gymnasium.make(task)
    observation, info = environment.reset(seed=11)
    expected, expected_info = raw.reset(seed=11)
    np.testing.assert_array_equal(observation, np.asarray(expected, np.float32))
    assert set(info) == set(expected_info)
    ends = 0
    for action in actions_for(environment, 60):
        result = environment.step(action)
        expected, reward, terminated, truncated, expected_info = raw.step(environment.spec.to_command(action))
        np.testing.assert_array_equal(result.observation, np.asarray(expected, np.float32))
        assert result[1:4] == (reward, terminated, truncated)
        assert set(result.info) == set(expected_info)
        if terminated or truncated:
            ends += 1
            environment.reset()
            raw.reset()
    raw.close()
    assert (ends > 0) == (not task.startswith(("HalfCheetah", "Swimmer")))


def test_the_names_of_joints_are_told_apart_where_the_task_has_them():
    spec = make_environment(EnvironmentConfig("gymnasium:HalfCheetah-v4")).spec
    assert [(term.name, term.size) for term in spec.observation] == [("qpos", 8), ("qvel", 9)]
    assert [term.name for term in spec.command] == ["bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot"]
    spec = make_environment(EnvironmentConfig("gymnasium:Humanoid-v5")).spec
    assert [term.name for term in spec.observation] == ["qpos", "qvel", "cinert", "cvel", "qfrc_actuator", "cfrc_ext"]
    assert spec.command[0].low == pytest.approx((-0.4,))
