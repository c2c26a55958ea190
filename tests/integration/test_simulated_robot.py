"""The simulated robot: same physics as the environment, fast and by the clock; a fixed body; a driver's manners."""

from __future__ import annotations

import inspect
import json
import threading
from pathlib import Path

import numpy as np
import pytest

from deploy.robot import Measurement as DeployMeasurement
from deploy.robot import Robot
from mpo_robot.config import build
from mpo_robot.errors import ConfigError
from sim.config import EnvironmentConfig
from sim.make import make_environment
from sim.pace import Measurement
from sim.randomization_config import RandomizationConfig, RandomizationTerm
from sim.robot import SimulatedRobot, SimulatedRobotConfig

CARTPOLE, WALKER, CHEETAH = "dm_control:cartpole-swingup", "dm_control:walker-walk", "gymnasium:HalfCheetah-v4"
HUMANOID = "gymnasium:Humanoid-v4"
MISMATCH = str(Path(__file__).resolve().parents[2] / "configs" / "randomization" / "cartpole_mismatch.yaml")
DELAYS = RandomizationConfig(
    (
        RandomizationTerm("action_delay", low=3, high=3),
        RandomizationTerm("observation_delay", low=4, high=4),
        RandomizationTerm("body_mass", low=0.8, high=1.2),
    )
)


class Clock:
    """A clock that is moved by hand, ns."""

    def __init__(self) -> None:
        self.now = 5_000_000_000

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)


def ready(task: str, clock: Clock | None = None, **settings) -> SimulatedRobot:
    config = SimulatedRobotConfig(task, real_time=clock is not None, **settings)
    robot = SimulatedRobot(config) if clock is None else SimulatedRobot(config, clock)
    robot.connect()
    return robot


def commands_for(robot: SimulatedRobot, count: int) -> np.ndarray:
    actions = np.random.default_rng(0).uniform(-1, 1, (count, robot.spec.action_size))
    return robot.spec.to_command(actions)


@pytest.mark.parametrize("task", [CARTPOLE, HUMANOID])
def test_a_reading_after_a_command_advances_one_period(task):
    robot, environment = ready(task), make_environment(EnvironmentConfig(task))
    robot.spec.require_same(environment.spec)
    first = robot.start_episode(seed=3)
    np.testing.assert_array_equal(first.observation, environment.reset(seed=3)[0])
    assert (first.reward, first.terminated, first.truncated) == (0.0, False, False)
    json.dumps(first.info)
    times = [first.monotonic_ns]
    for command in commands_for(robot, 5):
        applied = robot.send_command(command)
        np.testing.assert_array_equal(applied, command)
        reading, expected = robot.read(), environment.step_command(command)
        np.testing.assert_array_equal(reading.observation, expected.observation)
        assert (reading.reward, *reading[3:5]) == expected[1:4]
        times.append(reading.monotonic_ns)
    np.testing.assert_allclose(np.diff(times), robot.spec.control_dt * 1e9)
    again = robot.read()
    assert again.monotonic_ns == reading.monotonic_ns
    assert again.reward == 0.0
    np.testing.assert_array_equal(again.observation, reading.observation)
    assert robot.start_episode().monotonic_ns > again.monotonic_ns


@pytest.mark.parametrize("mismatch", [None, DELAYS], ids=["nominal", "mismatched"])
@pytest.mark.parametrize("task", [CARTPOLE, WALKER, CHEETAH, HUMANOID])
def test_real_time_gives_the_physics_and_rewards_of_the_fast_mode(task, mismatch):
    clock = Clock()
    fast, real = ready(task, mismatch=mismatch, seed=2), ready(task, clock, mismatch=mismatch, seed=2)
    first, other = fast.start_episode(1), real.start_episode(1)
    np.testing.assert_array_equal(first.observation, other.observation)
    assert other.monotonic_ns == clock.now
    start, period = clock.now, real.spec.control_dt
    for index, command in enumerate(commands_for(fast, 12)):
        fast.send_command(command)
        real.send_command(command)
        wanted, reward = fast.read(), 0.0
        for fraction in (0.33, 0.71, 1.0):  # looking on the way changes nothing
            clock.now = start + round((index + fraction) * period * 1e9) + 1000
            reading = real.read()
            reward += reading.reward
        np.testing.assert_array_equal(reading.observation, wanted.observation)
        assert reward == wanted.reward
        assert reading.monotonic_ns == pytest.approx(start + (index + 1) * period * 1e9, abs=2)


def test_real_time_holds_the_last_command_and_catches_up_by_the_clock():
    clock = Clock()
    robot, environment = ready(WALKER, clock), make_environment(EnvironmentConfig(WALKER))
    robot.start_episode(0)
    environment.reset(0)
    command = robot.spec.command_high * 0.3
    robot.send_command(command)
    clock.advance(0.1 + 0.0001)  # four periods pass between two readings
    reading = robot.read()
    expected = [environment.step_command(command) for _ in range(4)]
    np.testing.assert_array_equal(reading.observation, expected[-1].observation)
    assert reading.reward == pytest.approx(sum(result.reward for result in expected))
    clock.advance(0.001)  # less than a physics step: nothing new
    again = robot.read()
    assert again.monotonic_ns == reading.monotonic_ns
    assert again.reward == 0.0
    clock.advance(0.0055)  # into the third physics step of a period
    partial = robot.read()
    assert (partial.monotonic_ns - reading.monotonic_ns) == pytest.approx(0.005e9, abs=2)
    assert partial.reward == 0.0
    assert not np.array_equal(partial.observation, reading.observation)


@pytest.mark.parametrize("offset_s", [0.0, 0.0031, 0.0052, 0.0099])
def test_a_loop_at_the_rate_of_the_physics_gets_a_fresh_reading_each_period_despite_jitter(offset_s):
    clock = Clock()
    robot = ready(CARTPOLE, clock)
    period = robot.spec.control_dt
    assert robot._environment.backend.physics_dt == period
    last = robot.start_episode(0).monotonic_ns
    anchor = clock.now + round(offset_s * 1e9)  # the loop begins at any moment after the robot
    jitter = np.random.default_rng(0).uniform(0.0, 0.0015, 60)
    for index in range(1, 60):
        clock.now = anchor + round((index * period + jitter[index]) * 1e9)
        reading = robot.read()
        assert reading.monotonic_ns > last
        assert clock.now - reading.monotonic_ns <= 0.5 * period * 1e9
        last = reading.monotonic_ns
        robot.send_command(robot.spec.command_high)


def test_a_command_in_real_time_acts_from_the_moment_it_is_sent():
    clock = Clock()
    robot = ready(WALKER, clock)
    robot.start_episode(0)
    clock.advance(0.0051)
    robot.send_command(robot.spec.command_high)
    data = robot._environment.backend.data
    assert data.time == pytest.approx(0.005)
    assert np.all(data.ctrl == 0)  # so far the resting command was held
    clock.advance(0.0025)
    robot.read()
    assert np.all(data.ctrl == 1)


def test_the_time_limit_ends_an_episode_in_real_time():
    clock = Clock()
    robot = ready(CARTPOLE, clock, time_limit_s=0.03)
    robot.start_episode(0)
    clock.advance(0.1)
    final = robot.read()
    assert final.truncated
    assert not final.terminated
    clock.advance(0.1)
    again = robot.read()
    assert again.truncated
    assert again.monotonic_ns == final.monotonic_ns
    assert not robot.start_episode(0).truncated


def test_action_repeat_is_part_of_the_period():
    robot = ready(CARTPOLE, action_repeat=2)
    environment = make_environment(EnvironmentConfig(CARTPOLE, action_repeat=2))
    robot.spec.require_same(environment.spec)
    robot.start_episode(0)
    environment.reset(0)
    robot.send_command([0.5])
    assert robot.read().reward == environment.step_command(np.float32([0.5])).reward


def test_a_robot_has_one_body():
    random_mass = RandomizationConfig((RandomizationTerm("body_mass", low=0.5, high=2),))
    robot = ready(WALKER, mismatch=random_mass, seed=1)
    records = [robot.start_episode(seed).info["randomization"] for seed in (0, 1)]
    assert records[0] == records[1]
    other = ready(WALKER, mismatch=random_mass, seed=2).start_episode(0).info["randomization"]
    assert other != records[0]
    assert ready(WALKER, mismatch=random_mass, seed=1).start_episode(5).info["randomization"] == records[0]


def test_episodes_repeat_by_the_robots_seed():
    runs = []
    for _ in range(2):
        robot = ready(WALKER, seed=4)
        runs.append([robot.start_episode().observation for _ in range(3)])
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0][0], runs[0][1])


def test_the_mismatch_moves_differently_under_the_nominal_interface():
    nominal, robot = ready(CARTPOLE), ready(CARTPOLE, mismatch=MISMATCH)
    nominal.spec.require_same(robot.spec)
    first, second = nominal.start_episode(0), robot.start_episode(0)
    np.testing.assert_array_equal(first.observation, second.observation)
    for _ in range(30):
        for one in (nominal, robot):
            one.send_command([1.0])
        first, second = nominal.read(), robot.read()
    position = {"nominal": float(first.observation[0]), "mismatched": float(second.observation[0])}
    assert 0 < position["mismatched"] < 0.5 * position["nominal"]
    model = robot._environment.backend.model
    assert model.body("pole_1").mass == pytest.approx(0.2)
    assert second.info["randomization"]["action_delay"]["values"] == 2


def test_commands_are_clipped_and_nan_is_refused():
    robot = ready(HUMANOID)
    robot.start_episode(0)
    size = robot.spec.action_size
    np.testing.assert_allclose(robot.send_command(np.full(size, np.inf)), 0.4, rtol=1e-6)
    for wrong, text in ((np.full(size, np.nan), "NaN"), (np.zeros(size + 1), "shape"), (0.0, "shape")):
        with pytest.raises(ValueError, match=text):
            robot.send_command(wrong)
    robot.read()
    np.testing.assert_allclose(robot._environment.backend.data.ctrl, 0.4, rtol=1e-6)  # the last good one


def test_stop_holds_for_the_episode_and_may_come_any_time():
    clock = Clock()
    robot = SimulatedRobot(SimulatedRobotConfig(WALKER, real_time=True), clock)
    robot.stop()
    robot.disconnect()
    with pytest.raises(RuntimeError, match="connect"):
        robot.start_episode()
    robot.connect()
    for call in (robot.read, lambda: robot.send_command(np.zeros(6))):
        with pytest.raises(RuntimeError, match="start an episode"):
            call()
    robot.start_episode(0)
    robot.send_command(np.ones(6))
    clock.advance(0.05)
    robot.read()
    other = threading.Thread(target=robot.stop)
    other.start()
    other.join()
    robot.stop()
    np.testing.assert_array_equal(robot.send_command(np.ones(6)), np.zeros(6))
    clock.advance(0.05)
    robot.read()
    assert np.all(robot._environment.backend.data.ctrl == 0)
    robot.start_episode(0)
    np.testing.assert_array_equal(robot.send_command(np.ones(6)), np.ones(6))
    robot.disconnect()
    robot.disconnect()


def test_a_stopped_robot_stands_still_in_fast_mode():
    robot = ready(CARTPOLE)
    first = robot.start_episode(0)
    robot.send_command([1.0])
    robot.stop()
    stopped = robot.read()
    assert np.all(robot._environment.backend.data.ctrl == 0)
    assert stopped.monotonic_ns > first.monotonic_ns


def test_the_safe_pose_is_no_torque_or_the_start_pose_of_servos():
    robot = ready(CHEETAH)
    robot.start_episode(0)
    np.testing.assert_array_equal(robot.safe_pose_command(), np.zeros(6))
    fish = ready("dm_control:fish-swim")
    fish.start_episode(0)
    data, safe = fish._environment.backend.data, fish.safe_pose_command()
    for index, term in enumerate(fish.spec.command):
        assert term.low[0] <= safe[index] <= term.high[0]
        if term.unit == "rad":
            joint = data.model.joint(int(data.model.actuator_trnid[index, 0])).name
            wanted = np.clip(data.joint(joint).qpos[0], term.low[0], term.high[0])
            assert safe[index] == pytest.approx(wanted)


def test_it_has_the_shape_of_deploys_protocol():
    members = [name for name in vars(Robot) if not name.startswith("_")]
    assert len(members) >= 8
    for name in members:
        mine, wanted = vars(SimulatedRobot)[name], vars(Robot)[name]
        if isinstance(wanted, property):
            assert isinstance(mine, property), name
        else:
            assert list(inspect.signature(mine).parameters) == list(inspect.signature(wanted).parameters), name
    assert Measurement._fields == DeployMeasurement._fields


def test_the_configuration_comes_from_yaml_options():
    config = build(SimulatedRobotConfig, {"task": CARTPOLE, "mismatch": MISMATCH, "seed": 7})
    assert config.environment().startup_seed == 7
    with pytest.raises(ConfigError, match="unknown key reel_time: did you mean real_time"):
        build(SimulatedRobotConfig, {"task": CARTPOLE, "reel_time": True})


@pytest.mark.parametrize(("task", "settings"), [(WALKER, {}), (CARTPOLE, {"action_repeat": 4}), (CHEETAH, {})])
def test_equal_commands_within_a_period_are_one_command(task, settings):
    whole, parts = ready(task, **settings), ready(task, **settings, commands_per_period=3)
    first, same = whole.start_episode(3), parts.start_episode(3)
    np.testing.assert_array_equal(first.observation, same.observation)
    for command in commands_for(whole, 12):
        whole.send_command(command)
        for _ in range(3):
            parts.send_command(command)
        one, other = whole.read(), parts.read()
        np.testing.assert_allclose(other.observation, one.observation, rtol=1e-5, atol=1e-6)
        assert other.reward == pytest.approx(one.reward, rel=1e-5, abs=1e-6)
        assert (other.monotonic_ns, other.terminated, other.truncated) == (one.monotonic_ns, False, False)
    assert parts.read().reward == 0.0, "read again"


def test_each_command_of_a_period_acts_for_its_share_of_the_physics():
    robot = ready(WALKER, commands_per_period=5)
    assert robot._environment.backend.physics_steps == 10
    robot.start_episode(0)
    low, high = robot.spec.command_low, robot.spec.command_high
    seen = []
    run = robot._pace._stepper.run
    robot._pace._stepper.run = lambda command, steps: (seen.append((float(command[0]), steps)), run(command, steps))[1]
    for share in range(5):
        robot.send_command(low + (high - low) * np.float32(share / 4))
    robot.read()
    assert seen == [(-1.0, 2), (-0.5, 2), (0.0, 2), (0.5, 2), (1.0, 2)]
    seen.clear()
    robot.send_command(low)  # a late action: one command for the whole period
    robot.read()
    assert seen == [(-1.0, 10)]


def test_an_episode_ends_in_the_middle_of_a_period_of_commands():
    robot = ready(WALKER, commands_per_period=5, time_limit_s=0.05)
    robot.start_episode(0)
    readings = []
    for command in commands_for(robot, 3):
        for _ in range(5):
            robot.send_command(command)
        readings.append(robot.read())
    assert [reading.truncated for reading in readings] == [False, True, True]
    assert readings[2].reward == 0.0


def test_more_commands_than_physics_steps_are_refused():
    with pytest.raises(ConfigError, match="command_rate"):
        SimulatedRobot(SimulatedRobotConfig(WALKER, commands_per_period=11))
    SimulatedRobot(SimulatedRobotConfig(WALKER, commands_per_period=11, real_time=True))
    with pytest.raises(ConfigError, match="at least 1"):
        SimulatedRobotConfig(WALKER, commands_per_period=0)


def test_a_stop_while_an_episode_starts_is_not_forgotten(monkeypatch) -> None:
    robot = ready(CARTPOLE)
    reset = robot._environment.reset
    monkeypatch.setattr(robot._environment, "reset", lambda seed: (robot.stop(), reset(seed))[1])
    robot.start_episode()
    robot.read()
    np.testing.assert_array_equal(robot.send_command(robot.spec.command_high), robot.safe_pose_command())
    monkeypatch.undo()
    robot.start_episode()
    np.testing.assert_array_equal(robot.send_command(robot.spec.command_high), robot.spec.command_high)
