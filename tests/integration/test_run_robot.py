"""`mpo-robot run-robot` in this process, with the fake robot and a policy file or a server in a thread."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.log_reader import read_log
from deploy.robot import Measurement
from mpo_robot.cli.main import main
from mpo_robot.episode import Source, episodes_from_records
from mpo_robot.specs import TermSpec
from tests.support.fake_robot import FakeRobot
from tests.support.onnx_files import small_spec, write_linear_policy
from tests.support.robot_process import journal, write_config
from tests.support.serving import ServerThread

SPEC = small_spec()
FAST: dict[str, Any] = {"loop": {"pace": "fast", "fast_timeout_s": 30.0}}


def run(config: Path, *arguments: str) -> int:
    return main(["run-robot", "--config", str(config), *arguments])


def logs(directory: Path) -> list[Path]:
    return sorted((directory / "logs").glob("*.mcap"))


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return write_linear_policy(tmp_path / "policy.onnx", SPEC)


def test_local_policy_in_real_time(tmp_path: Path, policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # No age check: a busy machine may suspend this process between reading and checking.
    observation = {"stale": {"mode": "off"}}
    config = write_config(tmp_path, policy="local", policy_path=str(policy), observation=observation)
    assert run(config, "--episodes", "2") == 0
    first, second = (read_log(path) for path in logs(tmp_path))
    for log in (first, second):
        assert log.complete
        assert len(log.records) == 10
        assert log.metadata["robot"] == "fake"
        (episode,) = episodes_from_records(log.records, SPEC)
        assert episode.trace_valid.all()
    assert first.records[0].episode_id != second.records[0].episode_id
    calls = journal(tmp_path)
    assert (calls[0], calls[-1]) == ("connect", "disconnect")
    assert calls.count("start_episode") == 2
    output = capsys.readouterr().out
    assert "50 Hz" in output
    assert "10 steps" in output
    assert "jitter [us]" in output


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"safety": {"watch": [{"term": "stat", "max_abs": 1.0}]}}, "did you mean"),
        ({"safety": {"rate": {"max_per_second": {"moter": 1.0}}}}, "did you mean"),
        ({"log": {"directory": "/proc/logs"}}, "log directory"),
        ({"safety": {"applied_tolerance": -1}}, "safety.applied_tolerance must be in [0, 1)"),
        ({"safety": {"watch": [{"term": "state", "max_abs": math.inf}]}}, "safety.watch[0].max_abs must be a finite"),
        ({"loop": {"command_rate": 5e6}}, "loop.command_rate must not be negative and at most 10000 Hz"),
        ({"loop": {"watchdog_s": 0.03}}, "loop.watchdog_s"),
        ({"loop": {"command_rate": math.inf}}, "loop.command_rate must be a finite number"),
        ({"loop": {"spin_s": math.nan}}, "loop.spin_s must be a finite number"),
        ({"loop": {"spin_s": 1e300}}, "loop.spin_s must be at most"),
        ({"server": {"timeout_s": math.inf}}, "server.timeout_s must be a finite number"),
        ({"observation": {"stale": {"max_age_s": math.inf}}}, "observation.stale.max_age_s must be a finite number"),
        ({"observation": {"frozen": {"exempt": ["stat"]}}}, "did you mean 'state'"),
        ({"safety": {"watch": [{"term": "state", "high": math.inf}]}}, "safety.watch[0].high"),
    ],
)
def test_what_the_robot_file_alone_gets_wrong_is_told_before_a_server_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, settings: Any, text: str
) -> None:
    def no_server(*_: Any, **__: Any) -> None:
        raise AssertionError("a server was asked")

    monkeypatch.setattr("deploy.robot_config.PolicyClient", no_server)
    assert run(write_config(tmp_path, **settings)) == 2
    assert text in capsys.readouterr().err
    assert journal(tmp_path) == []


def make_half_frozen(**options: Any) -> FakeRobot:
    """A robot of which the first sensor stands still from the 20th reading on, and the others do not."""

    def freeze(k: int, measurement: Measurement) -> Measurement:
        measurement.observation[:] = [min(k, 20), k, -k]
        return measurement

    sensors = tuple(TermSpec(name, 1, "rad") for name in ("encoder", "gyro", "battery"))
    return FakeRobot(replace(small_spec(), observation=sensors), length=80, edit=freeze, **options)


@pytest.mark.parametrize(
    ("frozen", "expected"),
    [({}, 1), ({"mode": "warn"}, 0), ({"exempt": ["encoder"]}, 0), ({"ticks": 200}, 0)],
    ids=["default", "warn", "exempt", "longer"],
)
def test_frozen_sensor_of_a_real_robot_is_a_fault_by_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], frozen: dict[str, Any], expected: int
) -> None:
    policy = write_linear_policy(tmp_path / "policy.onnx", make_half_frozen().spec, stddev=1.0)
    settings = {"policy": "local", "policy_path": str(policy), "observation": {"frozen": frozen}, **FAST}
    config = write_config(tmp_path, **settings)
    assert run(config, f"robot.module={__name__}:make_half_frozen") == expected
    assert ("'frozen' failed: encoder has not changed" in capsys.readouterr().err) == bool(expected)


def test_seed_makes_start_states_and_actions_repeat(tmp_path: Path, policy: Path) -> None:
    for name in ("a", "b"):
        directory = tmp_path / name
        directory.mkdir()
        assert run(write_config(directory, policy="local", policy_path=str(policy), **FAST), "--seed", "7") == 0
    left, right = (read_log(logs(tmp_path / name)[0]).records for name in ("a", "b"))
    for one, other in zip(left, right, strict=True):
        assert one.observation.tobytes() == other.observation.tobytes()
        assert one.policy_action.tobytes() == other.policy_action.tobytes()


def test_server_policy(tmp_path: Path, policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ServerThread(policy) as server:
        assert run(write_config(tmp_path, **FAST), "--endpoint", server.endpoint) == 0
        version = server.registry.current_version()
    (log,) = (read_log(path) for path in logs(tmp_path))
    assert {record.source for record in log.records} == {Source.POLICY}
    assert {record.policy_version for record in log.records} == {version}
    assert episodes_from_records(log.records, SPEC)[0].trace_valid.all()
    assert f"version {version[:12]}" in capsys.readouterr().out


def test_busy_waiting_for_the_server_is_a_setting(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_way, turns = os.sched_yield, []

    def counted() -> None:
        turns.append(None)
        give_way()

    monkeypatch.setattr(os, "sched_yield", counted)
    with ServerThread(policy) as server:
        assert run(write_config(tmp_path, **FAST), "--endpoint", server.endpoint) == 0
        assert turns == []
        spinning = write_config(tmp_path, **FAST, server={"spin_s": 0.001})
        assert run(spinning, "--endpoint", server.endpoint) == 0
        assert turns
    assert run(write_config(tmp_path, server={"spin_s": -1.0})) == 2


def test_no_logs_on_request(tmp_path: Path, policy: Path) -> None:
    config = write_config(tmp_path, policy="local", policy_path=str(policy), **FAST)
    assert run(config, "--log-dir", "") == 0
    assert logs(tmp_path) == []


def test_policy_of_another_robot_is_refused_before_anything_moves(
    tmp_path: Path, policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, options={"control_dt": 0.05}, policy="local", policy_path=str(policy))
    assert run(config) == 2
    error = capsys.readouterr().err
    assert "control_dt" in error
    assert "0.05" in error
    assert journal(tmp_path) == []


def test_missing_server_is_an_error_before_anything_moves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, server={"endpoint": f"ipc://{tmp_path}/nobody", "timeout_s": 0.2})
    assert run(config) == 2
    assert "nobody" in capsys.readouterr().err
    assert journal(tmp_path) == []


def test_driver_error_stops_and_disconnects(
    tmp_path: Path, policy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.fake_robot import FakeRobot

    def broken(self: FakeRobot) -> None:
        self._note("read")
        raise OSError("cable pulled")

    monkeypatch.setattr(FakeRobot, "read", broken)
    assert run(write_config(tmp_path, policy="local", policy_path=str(policy), **FAST), "--episodes", "3") == 1
    assert "cable pulled" in capsys.readouterr().err
    calls = journal(tmp_path)
    assert calls.count("start_episode") == 1
    after = calls[calls.index("read") + 1 :]
    assert set(after) == {"stop", "disconnect"}
    assert after[-1] == "disconnect"
    assert read_log(logs(tmp_path)[0]).metadata["statistics"]["end_reason"] == "error"


def test_safety_stop_ends_the_run_with_exit_code_1(
    tmp_path: Path, policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    safety = {"watch": [{"term": "state", "max_abs": 1e-6}]}
    config = write_config(tmp_path, policy="local", policy_path=str(policy), safety=safety, episodes=5)
    assert run(config) == 1
    assert journal(tmp_path).count("start_episode") == 1
    assert "safety stop" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["loop.pase=fast"], "did you mean loop.pace"),
        (["policy=local"], "policy_path"),
        (["episodes=-1"], "episodes"),
        (["robot.module=nonsense"], "package.module:Factory"),
        (["robot.module=no_such_module:make"], "cannot be imported"),
        (["robot.module=tests.support.fake_robot:nothing"], "cannot be imported"),
        (["robot.options.colour=red"], "does not take robot.options"),
        (["server.secret_key=a.key_secret"], "go together"),
        (["server.endpoint=tcp://0.0.0.0:1"], "CURVE"),
        (["--log-dir", "/proc/logs"], "log directory"),
        (["safety.watch=[{term: sate, max_abs: 1}]"], "did you mean 'state'"),
        (["fallback.ladder=[{do: hold}]"], "must end with"),
    ],
)
def test_bad_input_says_what_to_do(
    tmp_path: Path, policy: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    remote = any(word.startswith(("policy=", "server.endpoint")) for word in arguments)
    settings = {} if remote else {"policy": "local", "policy_path": str(policy)}
    assert run(write_config(tmp_path, **settings, **FAST), *arguments) == 2
    assert text in capsys.readouterr().err
    assert "start_episode" not in journal(tmp_path)


def test_local_rung_needs_a_policy_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, fallback={"ladder": [{"do": "local"}, {"do": "stop"}]})
    assert run(config) == 2
    assert "--policy" in capsys.readouterr().err


def test_off_in_yaml_is_a_mode_not_a_boolean(tmp_path: Path, policy: Path) -> None:
    config = write_config(tmp_path, policy="local", policy_path=str(policy), **FAST)
    config.write_text(config.read_text() + "\nsafety: {position: {mode: off}}\n")
    assert run(config) == 0


def test_command_loads_neither_torch_nor_a_simulator() -> None:
    code = (
        "import sys, mpo_robot.cli.run_robot\n"
        "heavy = {'torch', 'mujoco', 'gymnasium', 'dm_control', 'onnx', 'matplotlib', 'sim'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
