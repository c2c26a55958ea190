"""lerobot's robots as ours and ours as lerobot's: with a fake that follows lerobot's interface, and with lerobot itself
where it is installed."""

import importlib.util
import math
import threading

import numpy as np
import pytest
import yaml

from deploy.lerobot_adapter import LeRobotConfig, LeRobotRobot, make_robot
from deploy.lerobot_view import LeRobotView, as_lerobot
from deploy.log_reader import read_log
from deploy.robot import RobotError
from mpo_robot.cli.main import main
from mpo_robot.config import build
from mpo_robot.errors import ConfigError
from tests.support.fake_lerobot import FakeArm, FakeArmConfig
from tests.support.fake_robot import FakeRobot
from tests.support.onnx_files import small_spec, write_linear_policy

OPTIONS = {
    "robot": "tests.support.fake_lerobot:FakeArm",
    "config": {"port": "/dev/null", "id": "left"},
    "control_dt": 0.02,
    "limits": {"pan.pos": [-100, 100], "lift.pos": [-60, 60], "gripper.pos": [0, 100]},
    "home": {"pan.pos": 30.0},
    "homing_s": 0.1,
    "units": {"default": "deg", "gripper.pos": "%"},
}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("deploy.lerobot_adapter.time.sleep", lambda seconds: None)


def arm(**changes):
    fake = FakeArm(FakeArmConfig(port="x"))
    return fake, LeRobotRobot(build(LeRobotConfig, {**OPTIONS, **changes}), fake)


def test_spec_has_a_term_per_number_and_no_images():
    spec = make_robot(**OPTIONS).spec
    assert [(term.name, term.unit) for term in spec.observation] == [
        ("pan.pos", "deg"),
        ("lift.pos", "deg"),
        ("gripper.pos", "%"),
    ]
    assert spec.command_low.tolist() == [-100, -60, 0]
    assert spec.command_high.tolist() == [100, 60, 100]
    assert spec.control_dt == 0.02
    assert [term.name for term in make_robot(**OPTIONS, observe=["lift.pos"]).spec.observation] == ["lift.pos"]


def test_an_episode_goes_home_in_small_steps_and_stays_where_no_home_is_given():
    fake, robot = arm()
    robot.connect()
    first = robot.start_episode(seed=3)
    assert [round(sent["pan.pos"], 6) for sent in fake.sent] == [14.0, 18.0, 22.0, 26.0, 30.0]
    assert {sent["lift.pos"] for sent in fake.sent} == {-20.0}
    assert first.observation.tolist() == [30.0, -20.0, 50.0]
    assert first.reward == 0.0
    assert robot.safe_pose_command().tolist() == [30.0, -20.0, 50.0]


def test_commands_are_limited_and_what_was_sent_is_told():
    fake, robot = arm()
    robot.connect()
    robot.start_episode()
    assert robot.send_command(np.array([95.0, -80.0, 5.0], np.float32)).tolist() == [90.0, -60.0, 5.0]
    assert fake.sent[-1] == {"pan.pos": 90.0, "lift.pos": -60.0, "gripper.pos": 5.0}
    with pytest.raises(ValueError, match="not finite"):
        robot.send_command(np.array([np.nan, 0.0, 0.0], np.float32))
    fake.lost = {"lift.pos"}
    reading = robot.read()
    assert np.isnan(reading.observation).tolist() == [False, True, False]
    assert math.isnan(reading.reward)
    fake.send_action = lambda action: {}
    with pytest.raises(RuntimeError, match="does not say what it sent"):
        robot.send_command(np.zeros(3, np.float32))


def test_stop_disconnects_and_the_next_episode_connects_again():
    fake, robot = arm()
    robot.stop()
    robot.connect()
    robot.start_episode()
    robot.stop()
    robot.stop()
    assert fake.calls == ["connect", "disconnect"]
    count = len(fake.sent)
    assert robot.send_command(np.zeros(3, np.float32)).tolist() == [30.0, -20.0, 50.0]
    assert len(fake.sent) == count
    robot.start_episode()
    robot.disconnect()
    assert fake.calls == ["connect", "disconnect"] * 2


def test_stop_on_the_way_home(monkeypatch):
    fake, robot = arm()
    robot.connect()
    monkeypatch.setattr("deploy.lerobot_adapter.time.sleep", lambda seconds: robot.stop())
    with pytest.raises(RuntimeError, match="was stopped"):
        robot.start_episode()
    assert fake.calls[-1] == "disconnect"


@pytest.mark.parametrize("where", ["connect", "get_observation", "send_action"])
def test_a_stop_in_any_call_of_the_way_home_is_the_last_word(where):
    fake, robot = arm()
    call, stops = getattr(fake, where), []

    def stopped_meanwhile(*arguments, **settings):
        if not stops:
            stops.append(threading.Thread(target=robot.stop))
            stops[0].start()
            while not robot._stopped:
                threading.Event().wait(1e-4)
        return call(*arguments, **settings)

    setattr(fake, where, stopped_meanwhile)
    with pytest.raises((RuntimeError, ConnectionError), match=r"stopped|connected"):
        robot.start_episode()
    stops[0].join(60)
    assert len(fake.sent) == (1 if where == "send_action" else 0)
    robot.stop()
    assert not fake.is_connected


def test_what_does_not_fit_is_refused():
    fake, robot = arm()
    fake.calibrated = False
    with pytest.raises(RobotError, match="lerobot-calibrate"):
        robot.connect()
    fake, robot = arm(home={})
    robot.connect()
    fake.lost = {"gripper.pos"}
    with pytest.raises(RobotError, match=r"'gripper\.pos' stands is not observed"):
        robot.start_episode()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"robot": "nothing"}, ConfigError, "package.module:Class"),
        ({"robot": "nowhere:Arm"}, RobotError, "cannot be imported"),
        ({"config": {"prt": 1}}, RobotError, "does not take robot.options.config"),
        ({"config": {"port": "refused"}}, RobotError, "no such port"),
        ({"limits": {"pan.pos": [-1, 1]}}, ConfigError, "limits lack lift.pos, gripper.pos"),
        ({"home": {"elbow.pos": 0.0}}, ConfigError, "no action 'elbow.pos'"),
        ({"observe": ["front"]}, ConfigError, "'front' is no number"),
        ({"control_dt": 0.0}, ConfigError, "control_dt"),
    ],
)
def test_configurations_that_make_no_sense(change, error, text):
    with pytest.raises(error, match=text):
        make_robot(**{**OPTIONS, **change})


def test_run_robot_drives_it_and_logs(tmp_path):
    policy = write_linear_policy(tmp_path / "policy.onnx", make_robot(**OPTIONS).spec)
    config = {
        "robot": {"kind": "module", "name": "arm", "module": "deploy.lerobot_adapter:make_robot", "options": OPTIONS},
        "policy": "local",
        "policy_path": str(policy),
        "loop": {"max_steps": 5},
        "observation": {"stale": {"mode": "off"}, "frozen": {"mode": "off"}},
        "log": {"directory": str(tmp_path / "logs")},
        "seed": 0,
    }
    (tmp_path / "robot.yaml").write_text(yaml.safe_dump(config))
    assert main(["run-robot", "--config", str(tmp_path / "robot.yaml")]) == 0
    (log,) = (read_log(path) for path in (tmp_path / "logs").glob("*.mcap"))
    assert len(log.records) == 5


def view(robot=None):
    robot = robot or FakeRobot(small_spec(observation_size=2, action_size=2))
    return robot, LeRobotView(robot, "one")


def test_our_robot_has_lerobots_features_and_names():
    _, theirs = view()
    assert theirs.observation_features == {"state.0": float, "state.1": float}
    assert theirs.action_features == {"motor.0": float, "motor.1": float}
    assert (theirs.id, theirs.name, theirs.robot_type) == ("one", "mpo_robot", "mpo_robot")
    assert theirs.is_calibrated
    assert not theirs.is_connected


def test_our_robot_connects_acts_and_disconnects_like_theirs():
    robot, theirs = view()
    for call in (theirs.get_observation, lambda: theirs.send_action({"motor.0": 0.0, "motor.1": 0.0})):
        with pytest.raises(ConnectionError, match="not connected"):
            call()
    theirs.connect()
    assert theirs.is_connected
    assert set(theirs.get_observation()) == set(theirs.observation_features)
    assert theirs.send_action({"motor.0": 1.0, "motor.1": 99.0}) == {"motor.0": 1.0, "motor.1": 4.0}
    for action, text in (({"motor.0": 1.0}, "lacks motor.1"), ({"motor.0": 1.0, "motor.1": math.nan}, "not finite")):
        with pytest.raises(ValueError, match=text):
            theirs.send_action(action)
    assert len(robot.commands) == 1
    theirs.disconnect()
    assert robot.calls == ["connect", "start_episode", "read", "send_command", "stop", "disconnect"]
    assert not theirs.is_connected


def test_a_robot_that_fails_to_start_is_stopped():
    robot, theirs = view()
    robot.start_episode = lambda seed=None: 1 / 0
    with pytest.raises(ZeroDivisionError):
        theirs.connect()
    assert robot.calls == ["connect", "stop", "disconnect"]
    assert not theirs.is_connected


def test_there_and_back_again():
    fake, ours = arm(home={})
    theirs = LeRobotView(ours)
    assert theirs.action_features == fake.action_features
    theirs.connect()
    assert theirs.send_action({"pan.pos": 1.0, "lift.pos": 2.0, "gripper.pos": 3.0}) == {
        "pan.pos": 1.0,
        "lift.pos": 2.0,
        "gripper.pos": 3.0,
    }
    assert theirs.get_observation() == {"pan.pos": 1.0, "lift.pos": 2.0, "gripper.pos": 3.0}
    theirs.disconnect()
    assert not fake.is_connected


@pytest.mark.skipif(importlib.util.find_spec("lerobot") is not None, reason="lerobot is installed")
def test_without_lerobot_the_error_names_the_extra():
    with pytest.raises(RobotError, match=r"mpo-robot\[lerobot\]"):
        as_lerobot(FakeRobot())


@pytest.mark.skipif(importlib.util.find_spec("lerobot") is None, reason="lerobot (extra `lerobot`) is not installed")
def test_with_lerobot_both_directions_are_its_own_robots(tmp_path, monkeypatch):
    from lerobot.robots import Robot, RobotConfig  # type: ignore[import-not-found]

    theirs = as_lerobot(FakeRobot(), "one")
    assert isinstance(theirs, Robot)
    with theirs:
        assert set(theirs.get_observation()) == set(theirs.observation_features)
    assert str(theirs) == "one MpoRobotView"

    class RealArm(FakeArm, Robot):
        def __init__(self, config):
            Robot.__init__(self, config)
            FakeArm.__init__(self, FakeArmConfig(port="x"))

    robot = LeRobotRobot(build(LeRobotConfig, OPTIONS), RealArm(RobotConfig(id="arm", calibration_dir=tmp_path)))
    robot.connect()
    assert robot.start_episode().observation.tolist() == [30.0, -20.0, 50.0]
    robot.disconnect()
