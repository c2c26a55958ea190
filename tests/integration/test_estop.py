"""Emergency stops of a running robot process, by every way in; and the way back, which only a human takes."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.estop_topic import send_estop
from deploy.log_reader import read_log
from mpo_robot.cli.main import main
from tests.support.onnx_files import small_spec, write_linear_policy
from tests.support.robot_process import ROOT, RobotProcess, journal, wait_until, write_config


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """An endless episode at 200 Hz, many of them, with a policy in the robot's process and a listener."""
    policy = write_linear_policy(tmp_path / "policy.onnx", small_spec(control_dt=0.005))
    return write_config(
        tmp_path,
        options={"length": 0, "control_dt": 0.005},
        policy="local",
        policy_path=str(policy),
        observation={"stale": {"mode": "off"}},
        loop={"watchdog_s": 60.0},
        estop={"endpoint": f"tcp://127.0.0.1:{free_port()}"},
        episodes=0,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def endpoint(config: Path) -> str:
    return next(word for word in config.read_text().split() if word.startswith("tcp://"))


def wait_for_commands(directory: Path) -> None:
    wait_until(lambda: journal(directory).count("send_command") > 20)


def check_stopped(directory: Path, code: int, output: str, reason: str) -> None:
    """Exit code 1, nothing sent after the stop, one episode, a log with the reason, a latched fault."""
    assert code == 1, output
    calls = journal(directory)
    assert calls[-1] == "disconnect"
    assert calls.count("start_episode") == 1
    # The guard's stop may come in the middle of one more command, never before a second one.
    assert calls[calls.index("stop") :].count("send_command") <= 1
    (log,) = (read_log(path) for path in (directory / "logs").glob("*.mcap"))
    assert log.metadata["statistics"]["end_reason"] == "estop"
    assert log.metadata["statistics"]["state"] == "FAULT"
    (file,) = (Path(os.environ["XDG_STATE_HOME"]) / "mpo_robot").iterdir()
    fault = json.loads(file.read_text())
    assert fault["reason"] == "estop"
    assert reason in fault["detail"]
    assert "rearm" in output


def test_signal_stops_and_only_a_rearm_lets_the_robot_move_again(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RobotProcess(config) as robot:
        wait_for_commands(tmp_path)
        robot.process.send_signal(signal.SIGUSR1)
        code, output = robot.finish()
    check_stopped(tmp_path, code, output, "signal SIGUSR1")
    calls = journal(tmp_path)
    assert main(["run-robot", "--config", str(config)]) == 2
    assert "mpo-robot rearm" in capsys.readouterr().err
    assert journal(tmp_path) == calls, "the robot was touched"
    here = "--i-am-at-the-robot"
    assert main(["rearm", "--config", str(config), "--confirm", "other", here]) == 2
    for alone in ([], [here], ["--confirm", "fake"]):
        assert main(["rearm", "--config", str(config), *alone]) == 2, "without a terminal nobody can have confirmed"
        assert "no terminal" in capsys.readouterr().err
    assert main(["rearm", "--config", str(config), "--confirm", "fake", here]) == 0
    assert "STOPPED" in capsys.readouterr().out
    assert main(["run-robot", "--config", str(config), "loop.max_steps=3", "--episodes", "1"]) == 0
    assert main(["rearm", "--config", str(config)]) == 0
    assert "not in FAULT" in capsys.readouterr().out


def test_message_stops_and_tells_the_state(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RobotProcess(config) as robot:
        wait_for_commands(tmp_path)
        assert main(["estop", endpoint(config), "--status", "--timeout", "30"]) == 0
        assert "RUN" in capsys.readouterr().out
        assert main(["estop", endpoint(config), "--reason", "arm too close", "--timeout", "30"]) == 0
        assert "arm too close" in capsys.readouterr().out
        code, output = robot.finish()
    check_stopped(tmp_path, code, output, "message: arm too close")
    assert main(["estop", endpoint(config), "--timeout", "0.2"]) == 2
    assert "another way" in capsys.readouterr().err


def test_key_of_the_terminal_stops(tmp_path: Path, config: Path) -> None:
    master, terminal = pty.openpty()
    command = [sys.executable, "-m", "mpo_robot.cli.main", "run-robot", "--config", str(config)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        wait_for_commands(tmp_path)
        os.write(master, b" ")
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(terminal)
    assert "space bar" in output
    check_stopped(tmp_path, process.returncode, output, "key")


def test_estop_during_homing_stops_at_once(tmp_path: Path, config: Path) -> None:
    """The loop is inside a driver call then; the guard's thread is not."""
    slow = write_config(
        tmp_path,
        options={"homing_s": 3600.0, "control_dt": 0.005},
        policy="local",
        policy_path=str(tmp_path / "policy.onnx"),
        estop={"endpoint": endpoint(config)},
    )
    with RobotProcess(slow) as robot:
        wait_until(lambda: "start_episode" in journal(tmp_path))
        assert send_estop(endpoint(slow), timeout_s=30).state == "HOMING"
        wait_until(lambda: "stop" in journal(tmp_path))
        robot.process.kill()
        robot.finish()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["estop", "nonsense"], "must look like"),
        (["estop", "tcp://10.0.0.1:1"], "CURVE"),
        (["estop", "tcp://127.0.0.1:1", "--secret-key", "a"], "go together"),
        (["rearm", "--config", "/nowhere.yaml"], "cannot read"),
    ],
)
def test_bad_input_says_what_to_do(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert text in capsys.readouterr().err


def test_simulated_robots_forget_faults_unless_told_where_to_keep_them(tmp_path: Path) -> None:
    from deploy.robot_config import RobotConfig, RobotSection, fault_latch
    from mpo_robot.config import build

    simulated: dict[str, Any] = {"robot": {"kind": "simulated", "name": "sim"}}
    assert fault_latch(build(RobotConfig, simulated)).path is None
    path = tmp_path / "sim.fault"
    assert fault_latch(build(RobotConfig, {**simulated, "estop": {"latch": str(path)}})).path == path
    real = RobotConfig(RobotSection("module", "arm", "a:B"))
    path = fault_latch(real).path
    assert path is not None
    assert path.parent == Path(os.environ["XDG_STATE_HOME"]) / "mpo_robot"
