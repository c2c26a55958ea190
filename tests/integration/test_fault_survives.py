"""However a robot's process ends: it moves again only if it was stopped without a fault, or re-armed by a human."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpo_robot.cli.main import main
from tests.support.fake_robot import FakeRobot
from tests.support.onnx_files import small_spec, write_linear_policy
from tests.support.robot_process import RobotProcess, journal, wait_until, write_config

REARM = ("--confirm", "fake", "--i-am-at-the-robot")


def robot_file(directory: Path, **settings: Any) -> Path:
    """Endless episodes at 200 Hz, with a policy in the robot's process."""
    policy = write_linear_policy(directory / "policy.onnx", small_spec(control_dt=0.005))
    settings = {"options": {"length": 0, "control_dt": 0.005}, "loop": {"watchdog_s": 60.0}, **settings}
    return write_config(
        directory,
        policy="local",
        policy_path=str(policy),
        observation={"stale": {"mode": "off"}},
        episodes=0,
        **settings,
    )


def wait_for_commands(directory: Path, count: int = 20) -> None:
    wait_until(lambda: journal(directory).count("send_command") > count)


def latches(state_home: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in (state_home / "mpo_robot").glob("*")]


def check_refused(directory: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No way of starting it moves the robot."""
    calls = journal(directory)
    for arguments in (["--log-dir", str(directory / "today")], ["--log-dir", ""], ["robot.name=other"], []):
        assert main(["run-robot", "--config", str(config), "--episodes", "1", *arguments]) == 2
    monkeypatch.chdir(directory)
    assert main(["run-robot", "--config", str(config), "--episodes", "1", "--log-dir", "elsewhere"]) == 2
    assert journal(directory) == calls, "the robot was touched"


def check_rearm(directory: Path, config: Path, cause: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A human sees the cause, and then the robot moves again."""
    capsys.readouterr()
    assert main(["rearm", "--config", str(config), *REARM]) == 0
    assert cause in capsys.readouterr().out
    count = journal(directory).count("start_episode")
    assert main(["run-robot", "--config", str(config), "--episodes", "1", "loop.max_steps=3"]) == 0
    assert journal(directory).count("start_episode") == count + 1


def test_kill_in_the_middle_of_an_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = robot_file(tmp_path)
    with RobotProcess(config) as robot:
        wait_for_commands(tmp_path)
        assert main(["run-robot", "--config", str(config)]) == 2
        assert "in use by another program" in capsys.readouterr().err
        assert main(["rearm", "--config", str(config), *REARM]) == 2, "it is moving"
        robot.process.kill()
        robot.finish()
    check_refused(tmp_path, config, monkeypatch)
    check_rearm(tmp_path, config, "ended while it had the robot", capsys)


def test_kill_right_after_an_emergency_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = robot_file(tmp_path)
    with RobotProcess(config) as robot:
        wait_for_commands(tmp_path)
        robot.process.send_signal(signal.SIGUSR1)
        robot.process.kill()
        robot.finish()
    check_refused(tmp_path, config, monkeypatch)
    check_rearm(tmp_path, config, "ended while it had the robot", capsys)


def test_kill_during_homing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = robot_file(tmp_path, options={"homing_s": 3600.0, "control_dt": 0.005})
    with RobotProcess(config) as robot:
        wait_until(lambda: "start_episode" in journal(tmp_path))
        robot.process.kill()
        robot.finish()
    check_refused(tmp_path, config, monkeypatch)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_clean_stop_leaves_nothing_after_many_episodes(tmp_path: Path, state_home: Path, number: int) -> None:
    config = robot_file(tmp_path, options={"length": 20, "control_dt": 0.005})
    with RobotProcess(config) as robot:
        wait_until(lambda: journal(tmp_path).count("start_episode") > 2)
        assert len(latches(state_home)) == 1
        robot.process.send_signal(number)
        code, output = robot.finish()
    assert code == 0, output
    assert latches(state_home) == []


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A disk of 64 kB for logs and the user's state."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no permission to mount a small disk")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    path = folder / "full"
    with path.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        for _ in range(1000):
            stream.write(bytes(512))
    assert path.stat().st_size <= 64 * 1024
    return path


def test_disk_that_fills_up_meanwhile_forgets_no_fault(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = robot_file(tmp_path, log={"directory": str(small_disk / "logs")})
    with RobotProcess(config) as robot:
        wait_for_commands(tmp_path)
        full = fill(small_disk)
        wait_for_commands(tmp_path, journal(tmp_path).count("send_command") + 200)
        robot.process.send_signal(signal.SIGUSR1)
        code, output = robot.finish()
    assert code == 1, output
    (record,) = latches(small_disk / "state")
    assert (record["reason"], record["detail"]) == ("estop", "signal SIGUSR1")
    full.unlink()
    check_refused(tmp_path, config, monkeypatch)
    check_rearm(tmp_path, config, "signal SIGUSR1", capsys)


def test_nothing_moves_if_a_fault_could_not_be_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = robot_file(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert main(["run-robot", "--config", str(config)]) == 2
    assert "does not move" in capsys.readouterr().err
    assert journal(tmp_path) == []


def test_nothing_moves_on_a_disk_that_is_full_from_the_beginning(
    tmp_path: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = robot_file(tmp_path, log={"directory": ""})
    fill(small_disk)
    assert main(["run-robot", "--config", str(config)]) == 2
    assert "No space left" in capsys.readouterr().err
    assert journal(tmp_path) == []
    assert latches(small_disk / "state") == []


@pytest.mark.parametrize(
    ("failures", "words"), [(3, "was stopped first"), (9, "THE ROBOT COULD NOT BE STOPPED. Cut its")]
)
def test_stop_that_fails_at_the_harmless_end_of_an_episode_is_a_fault(
    tmp_path: Path,
    state_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failures: int,
    words: str,
) -> None:
    """Three failures: a later stop works. Nine: each of the three that follow the end fails."""
    script = iter([OSError("bus")] * failures)

    def stop(robot: FakeRobot) -> None:
        for error in script:
            raise error

    monkeypatch.setattr(FakeRobot, "stop", stop)
    config = robot_file(tmp_path, options={"length": 3, "control_dt": 0.005})
    assert main(["run-robot", "--config", str(config)]) == 1
    assert words in capsys.readouterr().err
    assert [record["reason"] for record in latches(state_home)] == ["error"]
    assert journal(tmp_path).count("start_episode") == 1
    assert journal(tmp_path)[-1] == "disconnect"
    assert main(["run-robot", "--config", str(config)]) == 2
