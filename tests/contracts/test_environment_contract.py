"""Every simulated task keeps the contract of `mpo_robot.types.Environment`, whatever simulator is behind it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from mpo_robot.errors import MpoRobotError
from mpo_robot.types import Environment, StepResult
from sim.backend import quiet_loading
from sim.config import EnvironmentConfig
from sim.environment import SimEnvironment
from sim.make import make_environment
from sim.randomization_config import RandomizationConfig, RandomizationTerm
from sim.tasks import task_names

TASKS = (
    "dm_control:cartpole-swingup",  # RK4, one physics step per period
    "dm_control:walker-walk",  # Euler, ten physics steps per period
    "dm_control:reacher-easy",  # writes its target into the model
    "dm_control:quadruped-walk",  # actuators with state
    "gymnasium:HalfCheetah-v4",
    "gymnasium:Hopper-v5",  # terminates
    "gymnasium:Humanoid-v4",  # commands in +-0.4, rewards from lagging body positions
    "gymnasium:Reacher-v4",  # a goal outside the physics
    "parkour:walker-gaps",  # a course of mocap bodies, new in every episode
    "servo:ant-walk",  # implicit integrator, position servos
)
EVERYTHING = RandomizationConfig(
    (
        RandomizationTerm("body_mass", operation="scale", low=0.8, high=1.2),
        RandomizationTerm("geom_friction", low=0.5, high=1.5, mode="interval", interval_s=(0.05, 0.1)),
        RandomizationTerm("joint_armature", operation="add", low=0.0, high=0.01, mode="startup"),
        RandomizationTerm("gravity", operation="scale", low=0.9, high=1.1),
        RandomizationTerm("initial_pose", low=-0.01, high=0.01),
        RandomizationTerm("push_force", select=(".*torso.*|cart|finger|fingertip",), low=-1, high=1,
                          interval_s=(0.05, 0.1), duration_steps=3),
        RandomizationTerm("observation_noise", distribution="gaussian", mean=0.0, stddev=0.01),
        RandomizationTerm("observation_bias", low=-0.1, high=0.1),
        RandomizationTerm("action_delay", low=1, high=7),
        RandomizationTerm("observation_delay", low=1, high=7, mode="interval", interval_s=(0.1, 0.1)),
        RandomizationTerm("dropped_observations", low=0.2, high=0.4),
    )
)  # fmt: skip


def make(task: str, randomization: RandomizationConfig | None = None, **settings) -> SimEnvironment:
    return make_environment(EnvironmentConfig(task, randomization, **settings))


@cache
def shared(task: str) -> SimEnvironment:
    """One environment per task for tests that start with a reset."""
    return make(task)


def random_actions(environment: Environment, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1.2, 1.2, (count, environment.spec.action_size)).astype(np.float32)


def roll(environment: Environment, actions: np.ndarray) -> list[StepResult]:
    """Results of the actions, up to the end of the episode."""
    results = []
    for action in actions:
        results.append(environment.step(action))
        if results[-1].terminated or results[-1].truncated:
            break
    return results


def assert_same(first: list[StepResult], second: list[StepResult]) -> None:
    assert len(first) == len(second)
    for mine, yours in zip(first, second):
        np.testing.assert_array_equal(mine.observation, yours.observation)
        assert mine[1:4] == yours[1:4]
        assert mine.info.get("randomization") == yours.info.get("randomization")


@pytest.mark.parametrize("task", TASKS)
def test_shapes_types_and_spec(task):
    environment = shared(task)
    spec = environment.spec
    observation, info = environment.reset(seed=0)
    result = environment.step(np.zeros(spec.action_size))
    for flat in (observation, result.observation):
        assert flat.shape == (spec.observation_size,)
        assert flat.dtype == np.float32
        assert np.isfinite(flat).all()
    assert isinstance(info, dict)
    assert [type(value) for value in result[1:]] == [float, bool, bool, dict]
    backend = environment.backend
    assert spec.control_dt == pytest.approx(backend.physics_dt * backend.physics_steps)
    before = backend.data.time
    environment.step(np.zeros(spec.action_size))
    assert backend.data.time - before == pytest.approx(spec.control_dt)


@pytest.mark.parametrize("task", TASKS)
def test_observations_are_not_reused(task):
    environment = shared(task)
    first, _ = environment.reset(seed=0)
    kept = first.copy()
    second = environment.step(np.ones(environment.spec.action_size)).observation
    kept_second = second.copy()
    environment.step(np.ones(environment.spec.action_size))
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(second, kept_second)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("randomization", [None, EVERYTHING], ids=["nominal", "randomized"])
@pytest.mark.parametrize("task", TASKS)
def test_a_seed_repeats_everything(task, randomization):
    runs = []
    for _ in range(2):
        environment = make(task, randomization)
        start, _ = environment.reset(seed=5)
        results = roll(environment, random_actions(environment, 15))
        again, _ = environment.reset()
        runs.append((start, results, again))
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    np.testing.assert_array_equal(runs[0][2], runs[1][2])
    assert_same(runs[0][1], runs[1][1])
    other, _ = environment.reset(seed=6)
    assert not np.array_equal(other, runs[0][0])


@pytest.mark.parametrize("randomization", [None, EVERYTHING], ids=["nominal", "randomized"])
@pytest.mark.parametrize("task", TASKS)
def test_a_saved_state_continues_exactly_in_a_fresh_instance(task, randomization):
    environment, fresh = make(task, randomization), make(task, randomization)
    environment.reset(seed=1)
    roll(environment, random_actions(environment, 6))
    if environment.ended:
        environment.reset()
    state = environment.get_state()
    actions = random_actions(environment, 20, seed=1)
    expected = roll(environment, actions)
    expected_start, expected_info = environment.reset()
    expected_second = roll(environment, actions)
    fresh.reset(seed=77)
    fresh.step(actions[0])
    fresh.set_state(state)
    assert fresh.get_state() == state
    assert_same(roll(fresh, actions), expected)
    start, info = fresh.reset()
    np.testing.assert_array_equal(start, expected_start)
    assert info.get("randomization") == expected_info.get("randomization")
    assert_same(roll(fresh, actions), expected_second)


def test_a_state_of_an_ended_episode_is_ended():
    environment, fresh = (make("dm_control:cartpole-swingup", time_limit_s=0.02) for _ in range(2))
    environment.reset(seed=0)
    roll(environment, random_actions(environment, 5))
    fresh.set_state(environment.get_state())
    with pytest.raises(RuntimeError, match="reset"):
        fresh.step([0.0])


def test_states_are_checked():
    cartpole, reacher = shared(TASKS[0]), shared(TASKS[2])
    cartpole.reset(seed=0)
    with pytest.raises(MpoRobotError, match=r"task dm_control:cartpole-swingup, this environment is .*reacher"):
        reacher.set_state(cartpole.get_state())
    with pytest.raises(MpoRobotError, match="differ in their randomisation"):
        make(TASKS[0], EVERYTHING).set_state(cartpole.get_state())
    for garbage in (b"", b"not a state", cartpole.get_state()[:200]):
        with pytest.raises(MpoRobotError, match="not the state"):
            cartpole.set_state(garbage)


@pytest.mark.parametrize("task", TASKS)
def test_the_time_limit_truncates_and_keeps_the_final_observation(task):
    environment, longer = make(task), make(task)
    period = environment.spec.control_dt
    environment = make(task, time_limit_s=3 * period)
    environment.reset(seed=2)
    longer.reset(seed=2)
    actions = random_actions(environment, 3)
    results = [environment.step(action) for action in actions]
    expected = [longer.step(action) for action in actions]
    assert [result.truncated for result in results] == [False, False, True]
    assert not results[-1].terminated
    for mine, yours in zip(results, expected):
        np.testing.assert_array_equal(mine.observation, yours.observation)
        assert mine.reward == yours.reward
    with pytest.raises(RuntimeError, match="call reset"):
        environment.step(actions[0])
    environment.reset()
    environment.step(actions[0])


def test_the_tasks_own_time_limits():
    assert shared("dm_control:walker-walk").backend.episode_periods == 1000
    assert shared("gymnasium:Reacher-v4").backend.episode_periods == 50
    environment = shared("gymnasium:Reacher-v4")
    environment.reset(seed=0)
    results = roll(environment, np.zeros((60, 2), np.float32))
    assert len(results) == 50
    assert results[-1].truncated


def test_termination_is_not_truncation():
    environment = shared("gymnasium:Hopper-v5")
    environment.reset(seed=0)
    results = roll(environment, np.ones((500, 3), np.float32))
    assert len(results) < 500
    assert results[-1].terminated
    assert not results[-1].truncated
    lqr = make("dm_control:lqr-lqr_2_1")
    lqr.reset(seed=0)
    lqr.backend.data.qpos[:] = 0
    lqr.backend.data.qvel[:] = 0
    lqr.backend.refresh_start()
    result = lqr.step([0.0])
    assert result.terminated
    assert not result.truncated


@pytest.mark.parametrize("task", TASKS)
def test_bad_actions_are_refused_and_change_nothing(task):
    environment = shared(task)
    environment.reset(seed=3)
    size = environment.spec.action_size
    state = environment.get_state()
    broken = np.zeros(size)
    broken[-1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        environment.step(broken)
    for wrong in (np.zeros(size + 1), np.zeros((1, size)), 0.0):
        with pytest.raises(ValueError, match="shape"):
            environment.step(wrong)
    assert environment.get_state() == state


@pytest.mark.parametrize("task", TASKS)
def test_actions_become_commands_as_the_spec_says(task):
    environment = shared(task)
    environment.reset(seed=0)
    for action in (*random_actions(environment, 3), np.full(environment.spec.action_size, np.inf)):
        environment.step(action)
        command = environment.spec.to_command(action)
        np.testing.assert_array_equal(environment.backend.data.ctrl, command.astype(np.float64))
    np.testing.assert_allclose(command, environment.spec.command_high, rtol=1e-6)


def test_step_before_reset_raises():
    with pytest.raises(RuntimeError, match="reset"):
        make(TASKS[0]).step([0.0])


def test_action_repeat_sums_rewards_and_stops_at_the_end():
    single, double = make(TASKS[1]), make(TASKS[1], action_repeat=2, time_limit_s=0.025 * 3)
    assert double.spec.control_dt == pytest.approx(2 * single.spec.control_dt)
    single.reset(seed=0)
    double.reset(seed=0)
    action = random_actions(single, 1)[0]
    parts = [single.step(action) for _ in range(3)]
    whole = double.step(action)
    assert whole.reward == parts[0].reward + parts[1].reward
    np.testing.assert_array_equal(whole.observation, parts[1].observation)
    cut = double.step(action)
    assert cut.truncated
    assert cut.reward == parts[2].reward


@pytest.mark.parametrize("task", ["dm_control:walker-walk", "gymnasium:HalfCheetah-v4"])
def test_divergence_truncates_with_the_last_good_observation(task):
    environment = make(task)
    environment.reset(seed=0)
    good = environment.step(np.zeros(environment.spec.action_size)).observation
    environment.backend.data.qvel[:] = np.nan
    with quiet_loading():
        result = environment.step(np.zeros(environment.spec.action_size))
    np.testing.assert_array_equal(result.observation, good)
    assert result.truncated
    assert not result.terminated
    assert result.reward == 0.0
    assert result.info["diverged"]
    environment.reset(seed=0)
    assert "diverged" not in environment.step(np.zeros(environment.spec.action_size)).info


def test_drawn_values_are_in_every_info_and_are_plain_data():
    environment = make(TASKS[1], EVERYTHING)
    _, info = environment.reset(seed=0)
    result = environment.step(np.zeros(6))
    assert json.loads(json.dumps(info["randomization"])) == info["randomization"]
    assert set(info["randomization"]["body_mass"]["values"]) >= {"torso", "left_foot"}
    assert result.info["randomization"] is environment.step(np.zeros(6)).info["randomization"]


def test_loading_leaves_no_trace(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    environment = make("gymnasium:HalfCheetah-v4")
    environment.reset(seed=0)
    environment.close()
    environment.close()
    make("dm_control:cheetah-run").close()
    assert list(Path(tmp_path).iterdir()) == []
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.slow
@pytest.mark.parametrize("task", [name for name in task_names() if name != "gymnasium:Pusher-v4"])
def test_every_task_runs_and_continues(task):
    environment, fresh = make(task), make(task)
    environment.reset(seed=0)
    actions = random_actions(environment, 8)
    roll(environment, actions)
    if environment.ended:
        environment.reset()
    fresh.set_state(environment.get_state())
    assert_same(roll(environment, actions), roll(fresh, actions))
