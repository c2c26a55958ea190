"""Delays, forces and readings, step by step against hand-made sequences and hand-driven simulators."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.actuation import Actuation
from sim.backend import quiet_loading
from sim.config import EnvironmentConfig
from sim.dm_control_backend import load_suite
from sim.make import make_environment
from sim.randomization_config import RandomizationConfig, RandomizationTerm
from sim.sensing import Sensing

CARTPOLE, WALKER, CHEETAH = "dm_control:cartpole-swingup", "dm_control:walker-walk", "gymnasium:HalfCheetah-v4"
PERIOD = 4


class Recorder:
    """Backend that notes the control of every physics step."""

    physics_steps = PERIOD

    def __init__(self) -> None:
        self.data = SimpleNamespace(ctrl=np.zeros(1))
        self.controls: list[float] = []
        self.calls = 0

    def run_physics(self, steps: int) -> None:
        self.controls += [float(self.data.ctrl[0])] * steps
        self.calls += 1


def drive(actuation: Actuation, recorder: Recorder, commands: list[float]) -> list[float]:
    for command in commands:
        recorder.data.ctrl[:] = command
        actuation.advance_period()
    return recorder.controls


@pytest.mark.parametrize(
    ("delay", "expected"),
    [
        (0, [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]),
        (1, [0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]),
        (3, [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3]),
        (4, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]),
        (6, [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2]),
        (20, [0] * 12),
    ],
)
def test_a_command_takes_effect_a_delay_later(delay, expected):
    recorder = Recorder()
    actuation = Actuation(recorder, lambda step: None)
    actuation.start()
    actuation.delay = delay
    assert drive(actuation, recorder, [1, 2, 3]) == expected
    assert recorder.calls <= 2 * 3  # stretches of equal control are one call
    recorder.data.ctrl[:] = 9  # as a reset may leave it
    actuation.start()
    recorder.controls.clear()
    assert drive(actuation, recorder, [1])[:1] == [9 if delay else 1]


def test_the_delay_may_change_on_the_way():
    recorder = Recorder()
    actuation = Actuation(recorder, lambda step: None)
    actuation.start()
    actuation.delay = 6
    drive(actuation, recorder, [1, 2])  # 0 0 0 0 0 0 1 1
    actuation.delay = 1
    drive(actuation, recorder, [3])  # the 2 is overtaken by nothing: it is due at once, then the 3
    actuation.delay = 6
    assert drive(actuation, recorder, [4, 5]) == [0] * 6 + [1] * 2 + [2] + [3] * 3 + [3] * 6 + [4] * 2


@given(st.integers(0, 11), st.lists(st.floats(-1, 1), min_size=1, max_size=8))
def test_delayed_controls_are_the_undelayed_ones_shifted(delay, commands):
    recorder = Recorder()
    actuation = Actuation(recorder, lambda step: None)
    actuation.start()
    actuation.delay = delay
    undelayed = [command for command in commands for _ in range(PERIOD)]
    assert drive(actuation, recorder, commands) == ([0.0] * delay + undelayed)[: len(undelayed)]


@given(st.integers(0, 9), st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_observations_are_captured_where_they_will_be_needed(delay, parts):
    whole, single = [], []
    recorder = Recorder()
    actuation = Actuation(recorder, whole.append)
    actuation.start()
    actuation.observation_delay = delay
    drive(actuation, recorder, [0.0] * 5)
    assert whole == [step for step in range(1, 5 * PERIOD + 1) if (step + delay) % PERIOD == 0]
    actuation = Actuation(recorder, single.append)
    actuation.start()
    actuation.observation_delay, actuation.capture_all = delay, True
    for part in parts:
        actuation.run(part)
    assert single == list(range(1, sum(parts) + 1))


def test_forces_end_in_the_middle_of_a_period():
    recorder, ended = Recorder(), []
    actuation = Actuation(recorder, lambda step: None)
    actuation.register_force(7, lambda: ended.append(actuation.now))
    actuation.start()
    actuation.start_force(7, 6)
    drive(actuation, recorder, [1, 1, 1])
    assert ended == [6]


def test_readings_are_late_and_lost_ones_repeat():
    sensing, generator = Sensing(1), np.random.default_rng(0)
    observation = lambda step: np.array([step], np.float32)  # noqa: E731
    sensing.start(observation(0))
    sensing.delay = 3
    readings = []
    for step in range(1, 9):
        sensing.capture(observation(step), step)
        readings.append(float(sensing.read(step, generator)[0]))
    assert readings == [0, 0, 0, 1, 2, 3, 4, 5]
    sensing.drop_probability = 1.0
    sensing.capture(observation(9), 9)
    assert sensing.read(9, generator)[0] == 5
    sensing.drop_probability = 0.0
    assert sensing.read(9, generator)[0] == 6


def environment_with(task: str, *terms: RandomizationTerm):
    return make_environment(EnvironmentConfig(task, RandomizationConfig(terms)))


def fixed(parameter: str, value: float, **settings) -> RandomizationTerm:
    return RandomizationTerm(parameter, low=value, high=value, **settings)


def raw_walker(seed: int):
    with quiet_loading():
        raw = load_suite().load("walker", "walk", task_kwargs={"random": seed})
    raw.reset()
    return raw.physics, raw.task


def flat(task, physics) -> np.ndarray:
    return np.concatenate([np.ravel(v) for v in task.get_observation(physics).values()]).astype(np.float32)


@pytest.mark.parametrize("task", [CARTPOLE, CHEETAH])
@pytest.mark.parametrize("parameter", ["action_delay", "observation_delay"])
def test_a_delay_of_whole_periods_shifts_the_sequence(task, parameter):
    nominal = make_environment(EnvironmentConfig(task))
    steps = nominal.backend.physics_steps
    delayed = environment_with(task, fixed(parameter, 2 * steps))
    actions = np.random.default_rng(0).uniform(-1, 1, (8, nominal.spec.action_size)).astype(np.float32)
    start, _ = nominal.reset(seed=0)
    first, info = delayed.reset(seed=0)
    np.testing.assert_array_equal(first, start)
    assert info["randomization"][parameter] == {"operation": "abs", "values": 2 * steps}
    if parameter == "action_delay":
        expected = [nominal.step(a).observation for a in (np.zeros_like(actions[0]),) * 2 + tuple(actions[:-2])]
    else:
        expected = [start, start] + [nominal.step(action).observation for action in actions[:-2]]
    for action, wanted in zip(actions, expected):
        np.testing.assert_array_equal(delayed.step(action).observation, wanted)


def test_an_action_delay_within_a_period_by_hand():
    environment = environment_with(WALKER, fixed("action_delay", 4))
    environment.reset(seed=0)
    physics, task = raw_walker(0)
    old = np.zeros(6)
    for action in np.random.default_rng(0).uniform(-1, 1, (5, 6)).astype(np.float32):
        result = environment.step(action)
        for step in range(10):
            physics.set_control(old if step < 4 else action)
            physics.step()
        old = action
        np.testing.assert_array_equal(result.observation, flat(task, physics))
        assert result.reward == task.get_reward(physics)


def test_an_observation_delay_within_a_period_by_hand():
    environment = environment_with(WALKER, fixed("observation_delay", 13))
    first, _ = environment.reset(seed=0)
    physics, task = raw_walker(0)
    history = [first]
    for period, action in enumerate(np.random.default_rng(0).uniform(-1, 1, (5, 6)).astype(np.float32), start=1):
        result = environment.step(action)
        for _ in range(10):
            physics.set_control(action)
            physics.step()
            history.append(flat(task, physics))
        np.testing.assert_array_equal(result.observation, history[max(0, 10 * period - 13)])
        assert result.reward == task.get_reward(physics)  # rewards are of the true state


def test_a_push_force_by_hand():
    push = fixed("push_force", 50.0, select=("torso",), components=(0,), interval_s=(0.05, 0.05), duration_steps=7)
    environment = environment_with(WALKER, push)
    _, info = environment.reset(seed=0)
    assert "push_force" not in info["randomization"]
    physics, task = raw_walker(0)
    for period in range(5):
        result = environment.step(np.zeros(6))
        for step in range(10):
            physics.named.data.xfrc_applied["torso", 0] = 50.0 if period in (2, 4) and step < 7 else 0.0
            physics.step()
        np.testing.assert_array_equal(result.observation, flat(task, physics))
    assert result.info["randomization"]["push_force"]["values"] == {"torso": 50.0}


@pytest.mark.parametrize("task", [WALKER, CHEETAH])
def test_a_velocity_push_by_hand(task):
    push = fixed("push_velocity", 1.5, select=("rootx",), interval_s=(0.1, 0.1))
    environment, nominal = environment_with(task, push), make_environment(EnvironmentConfig(task))
    environment.reset(seed=0)
    nominal.reset(seed=0)
    period = round(0.1 / nominal.spec.control_dt)
    for count in range(2 * period + 1):
        if count in (period, 2 * period):
            nominal.backend.data.joint("rootx").qvel[:] += 1.5
            nominal.backend.refresh_running()
        mine, wanted = environment.step(np.zeros(6)), nominal.step(np.zeros(6))
        np.testing.assert_array_equal(mine.observation, wanted.observation)
        assert mine.reward == wanted.reward


def test_the_start_pose_moves_within_the_joint_range():
    environment = environment_with(WALKER, fixed("initial_pose", 0.3, select=("right_.*",)))
    nominal = make_environment(EnvironmentConfig(WALKER))
    observation, _ = environment.reset(seed=0)
    other, _ = nominal.reset(seed=0)
    moved, model = environment.backend.data, environment.backend.model
    for joint in range(model.njnt):
        start, name = int(model.jnt_qposadr[joint]), model.joint(joint).name
        wanted = nominal.backend.data.qpos[start]
        if name.startswith("right_"):
            wanted = min(wanted + 0.3, model.jnt_range[joint, 1])
        assert moved.qpos[start] == wanted, name
    assert not np.array_equal(observation, other)  # orientations follow the pose
    absolute = environment_with(
        "dm_control:humanoid-run", fixed("initial_pose", 2.5, select=("root",), operation="abs")
    )
    absolute.reset(seed=0)
    assert absolute.backend.data.qpos[:3].tolist() == [2.5] * 3


def test_bias_is_constant_and_noise_is_not():
    start, _ = (nominal := make_environment(EnvironmentConfig(WALKER))).reset(seed=0)
    biased = environment_with(WALKER, RandomizationTerm("observation_bias", select=("velocity",), low=1, high=2))
    observation, info = biased.reset(seed=0)
    bias = np.array(list(info["randomization"]["observation_bias"]["values"].values()), np.float32)
    assert "velocity[0]" in info["randomization"]["observation_bias"]["values"]
    assert len(set(bias.tolist())) == 9
    wanted = nominal.step(np.zeros(6)).observation
    np.testing.assert_array_equal(observation[:15], start[:15])
    np.testing.assert_allclose(observation[15:], start[15:] + bias, rtol=1e-6)
    np.testing.assert_allclose(biased.step(np.zeros(6)).observation[15:], wanted[15:] + bias, rtol=1e-6)

    noise = RandomizationTerm("observation_noise", select=("height",), distribution="gaussian", mean=0, stddev=0.1)
    noisy = environment_with(WALKER, noise)
    nominal.reset(seed=0)
    observation, info = noisy.reset(seed=0)
    assert info["randomization"] == {}  # drawn for every reading, not worth recording
    errors = [observation[14] - start[14]]
    for _ in range(50):
        mine, true = noisy.step(np.zeros(6)).observation, nominal.step(np.zeros(6)).observation
        np.testing.assert_array_equal(np.delete(mine, 14), np.delete(true, 14))
        errors.append(mine[14] - true[14])
    assert 0.05 < np.std(errors) < 0.2
    scale = fixed("observation_noise", 0.5, operation="scale")
    np.testing.assert_array_equal(environment_with(WALKER, scale).reset(seed=0)[0], start * np.float32(0.5))


def test_readings_are_dropped_as_often_as_drawn():
    environment = environment_with(CARTPOLE, fixed("dropped_observations", 0.3))
    nominal = make_environment(EnvironmentConfig(CARTPOLE))
    previous, _ = environment.reset(seed=0)
    nominal.reset(seed=0)
    dropped = 0
    for _ in range(200):
        mine, true = environment.step([0.3]).observation, nominal.step([0.3]).observation
        lost = np.array_equal(mine, previous)
        assert lost or np.array_equal(mine, true)
        dropped += lost
        previous = mine
    assert 40 < dropped < 80
