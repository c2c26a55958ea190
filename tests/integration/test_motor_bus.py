"""The control loop drives the emulated ant over a real pseudo-terminal; each fault leads to what the docs say."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from deploy.dynamixel import DynamixelConfig, make_robot
from deploy.log_reader import read_log
from mpo_robot.cli.main import main
from mpo_robot.config import apply_overrides, build, read_yaml
from mpo_robot.episode import Source, episodes_from_records
from sim.servo_ant import JOINTS
from sim.servo_bus.emulator import EmulatorConfig
from tests.support.emulated_bus import CONFIGS, EmulatedBus, free_udp_port, write_robot_file
from tests.support.onnx_files import write_linear_policy
from tests.support.robot_process import wait_until

OPTIONS = read_yaml(CONFIGS / "dynamixel_ant.yaml")["robot"]["options"]


def drive(directory, bus, steps=15, options=None, **settings):
    """Exit code of `run-robot` with a policy that moves around the middle of the joints' ranges."""
    config = write_files(directory, bus, options, **settings)
    return main(["run-robot", "--config", str(config), f"loop.max_steps={steps}"])


def write_files(directory, bus, options=None, **settings):
    config = write_robot_file(directory, bus.emulator.path, options or {}, policy_path="", **settings)
    spec = make_robot(**read_yaml(config)["robot"]["options"]).spec
    policy = write_linear_policy(directory / "policy.onnx", spec, stddev=0.2)
    return write_robot_file(directory, bus.emulator.path, options or {}, policy_path=str(policy), **settings)


def logs(directory):
    return [read_log(path) for path in sorted((directory / "logs").glob("*.mcap"))]


@pytest.mark.parametrize("fast", [False, True], ids=["sync", "fast_sync"])
def test_an_episode_over_the_terminal_is_logged_and_leaves_the_motors_off(tmp_path, fast):
    port = free_udp_port()
    body = {"module": "deploy.dynamixel.body:DatagramBody", "options": {"port": port}}
    with EmulatedBus(port) as bus:
        assert drive(tmp_path, bus, options={"fast_sync_read": fast, "body": body}) == 0
        assert not bus.any_motor_on
    (log,) = logs(tmp_path)
    assert [term.name for term in log.spec.observation][2:] == ["orientation", "angular_velocity"]
    assert len(log.records) == 15
    (episode,) = episodes_from_records([replace(record, reward=0.0) for record in log.records], log.spec)
    assert np.isfinite(episode.observations).all()
    assert {record.source for record in log.records} == {Source.POLICY}
    assert all(math.isnan(record.reward) for record in log.records)
    assert main(["inspect", str(tmp_path / "logs")]) == 0
    # The joints went where they were told, through direction and offset of each mount; the torso stayed upright.
    commands = np.array([record.applied_command for record in log.records])
    assert np.abs(commands.mean(0) - episode.observations[1:, :8].mean(0)).max() < 0.15
    assert np.abs(episode.observations[:, 16]).min() > 0.7


def test_ant_at_rest_has_no_frozen_sensor(tmp_path):
    with EmulatedBus() as bus:
        config = write_files(tmp_path, bus, observation={"frozen": {"mode": "fault", "ticks": 5}})
        assert main(["run-robot", "--config", str(config), "loop.max_steps=40", "stochastic=false"]) == 0
    (log,) = logs(tmp_path)
    positions = np.array([record.observation[:8] for record in log.records])
    assert (positions[-6:] == positions[-1]).all(), "it did not rest"


def test_driver_and_emulator_agree_on_every_joint():
    servos = {
        servo.joint: servo for servo in build(EmulatorConfig, read_yaml(CONFIGS / "emulated_ant_bus.yaml")).servos
    }
    joints = build(DynamixelConfig, OPTIONS).joints
    assert tuple(joint.name for joint in joints) == JOINTS
    for joint in joints:
        mount = servos[joint.name]
        assert (joint.id, joint.direction, joint.offset) == (mount.id, mount.direction, mount.offset)


def test_noise_on_the_wire_costs_answers_but_no_episode(tmp_path):
    # Limits of time are wide: together with the noise, a busy machine could otherwise exceed them.
    ladder = [{"do": "hold", "ticks": 50}, {"do": "stop"}]
    with EmulatedBus(bit_error_rate=5e-4, loss=0.02, seed=1) as bus:
        options = {"max_age_s": 10.0}
        assert drive(tmp_path, bus, steps=25, options=options, fallback={"ladder": ladder}) == 0
        assert not bus.any_motor_on
    (log,) = logs(tmp_path)
    assert np.isfinite([record.observation for record in log.records]).all()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({}, "safety stop: joint_velocity is nan"), ({"safety": {"watch": []}}, "fallback stop")],
    ids=["watched", "unwatched"],
)
def test_a_dead_servo_leads_down_the_ladder_or_to_a_fault(tmp_path, capsys, caplog, settings, reason):
    faults = [{"id": 3, "kind": "dead", "at_s": 1.5}]
    with EmulatedBus(servos=faults) as bus:
        assert drive(tmp_path, bus, steps=100, **settings) == 1
        assert not bus.any_motor_on
    assert reason in capsys.readouterr().err
    assert "hip_2 (id 3) does not answer" in caplog.text
    (log,) = logs(tmp_path)
    statistics = log.metadata["statistics"]
    assert statistics["end_reason"] == reason.split()[0]
    assert statistics["faults"]["non_finite"] >= 1
    assert np.isfinite([record.applied_command for record in log.records]).all()


def test_a_hot_servo_ends_in_a_fault(tmp_path, capsys):
    faults = [{"id": 5, "kind": "hot", "at_s": 0.5}]
    watch = [{"term": "info.temperature", "high": 40.0, "mode": "fault"}]
    with EmulatedBus(servos=faults) as bus:
        assert drive(tmp_path, bus, steps=100, safety={"watch": watch}) == 1
        assert not bus.any_motor_on
    assert "safety stop: info.temperature" in capsys.readouterr().err


def test_an_overload_ends_in_an_error_and_the_next_run_reboots_the_servo(tmp_path, capsys):
    faults = [{"id": 6, "kind": "overload", "at_s": 1.5}]
    with EmulatedBus(servos=faults) as bus:
        assert drive(tmp_path, bus, steps=100) == 1
        assert not bus.any_motor_on
        assert "ankle_3 (id 6): overload" in capsys.readouterr().err
        assert bus.servos[6].alert
        rearm = ["rearm", "--config", str(tmp_path / "robot.yaml"), "--confirm", "ant", "--i-am-at-the-robot"]
        assert main(rearm) == 0
        assert drive(tmp_path, bus, steps=5) == 0
        assert not bus.any_motor_on
        assert not bus.servos[6].alert
    broken, good = logs(tmp_path)
    assert broken.metadata["statistics"]["end_reason"] == "error"
    assert len(good.records) == 5


def test_a_port_that_vanishes_ends_in_an_error(tmp_path, capsys):
    with EmulatedBus() as bus:
        timer = threading.Timer(2.5, bus.pull_the_plug)
        timer.start()
        try:
            assert drive(tmp_path, bus, steps=1000) == 1
        finally:
            timer.join()
    assert "BusError" in capsys.readouterr().err


def test_servos_stop_by_themselves_when_the_driver_is_gone(tmp_path):
    with EmulatedBus() as bus:
        config = write_files(tmp_path, bus, {"bus_watchdog_s": 0.5})
        command = [sys.executable, "-m", "mpo_robot.cli.main", "run-robot", "--config", str(config), "loop.max_steps=0"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: all(servo.torque_enabled for servo in bus.servos.values()))
            process.send_signal(signal.SIGKILL)
            process.wait()
            wait_until(lambda: all(servo.get_unsigned("bus_watchdog") == 255 for servo in bus.servos.values()))
        finally:
            process.kill()
            process.wait()


def test_the_emulators_command_serves_the_bus_and_the_imu(tmp_path):
    link = tmp_path / "bus"
    command = [sys.executable, "-m", "mpo_robot.cli.main", "emulate-bus", f"link={link}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("mpo-robot emulate-bus: ready on /dev/")
        assert os.path.samefile(link, line.split()[-1])
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
        assert not link.is_symlink()
    finally:
        process.kill()
        process.communicate()


def test_the_faults_of_the_tutorial_page_are_understood():
    faults = "{id: 3, kind: dead, at_s: 8}, {id: 5, kind: hot, at_s: 3}, {id: 6, kind: overload, at_s: 5}"
    override = f"faults.servos=[{faults}]"
    assert override in (CONFIGS.parents[1] / "docs" / "tutorials" / "motor_bus.md").read_text()
    config = build(EmulatorConfig, apply_overrides(read_yaml(CONFIGS / "emulated_ant_bus.yaml"), [override]))
    assert [(fault.id, fault.kind, fault.at_s) for fault in config.faults.servos] == [
        (3, "dead", 8.0),
        (5, "hot", 3.0),
        (6, "overload", 5.0),
    ]


def test_the_imu_tells_the_torsos_orientation():
    from deploy.dynamixel.body import DatagramBody
    from sim.servo_bus.emulator import Emulator

    body = DatagramBody(0)
    body.open()
    try:
        with Emulator(build(EmulatorConfig, {"imu_port": body.address[1]})) as emulator:
            wait_until(lambda: emulator.serve(0.01) or body.read() is not None)
            reading = body.read()
            assert reading is not None
            assert reading.values[:4] == pytest.approx(emulator.body.data.qpos[3:7], abs=0.1)
            assert abs(time.monotonic_ns() - reading.monotonic_ns) < 60e9
    finally:
        body.close()
