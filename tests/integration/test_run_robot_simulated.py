"""`mpo-robot run-robot` with the simulated robots of configs/robots/."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml

from deploy.log_reader import LogContents, read_log
from deploy.robot import Measurement, Robot
from deploy.robot_config import RobotConfig
from mpo_robot.cli.main import main
from mpo_robot.config import build, load_config
from mpo_robot.episode import Source, episodes_from_records
from sim.pace import Measurement as SimMeasurement
from sim.robot import SimulatedRobot, SimulatedRobotConfig
from tests.support.onnx_files import write_linear_policy

CONFIGS = [
    path
    for path in sorted((Path(__file__).parents[2] / "configs" / "robots").glob("*.yaml"))
    if yaml.safe_load(path.read_text()).get("robot", {}).get("kind") == "simulated"
]
CARTPOLE = next(path for path in CONFIGS if path.stem == "simulated_cartpole")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = yaml.safe_load(CARTPOLE.read_text())["robot"]["options"]
    robot = SimulatedRobot(build(SimulatedRobotConfig, options))
    return write_linear_policy(tmp_path_factory.mktemp("policy") / "policy.onnx", robot.spec)


def run(tmp_path: Path, policy: Path, *arguments: str) -> tuple[int, list[LogContents]]:
    logs = tmp_path / "logs"
    command = ["run-robot", "--config", str(CARTPOLE), "--policy", str(policy), "--log-dir", str(logs)]
    code = main([*command, "policy=local", "seed=3", *arguments])
    return code, [read_log(path) for path in sorted(logs.glob("*.mcap"))]


def test_simulator_has_every_member_of_the_robot_protocol() -> None:
    assert SimMeasurement._fields == Measurement._fields
    members = {name for name in vars(Robot) if not name.startswith("_")}
    assert members <= set(dir(SimulatedRobot))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parents[2])  # they may name other files of the repository
    config = load_config(RobotConfig, path)
    build(SimulatedRobotConfig, config.robot.options).environment()


def test_fast_pace_logs_a_whole_episode(tmp_path: Path, policy: Path) -> None:
    code, (log,) = run(tmp_path, policy, "loop.pace=fast", "robot.options.time_limit_s=0.5")
    assert code == 0
    assert log.complete
    assert len(log.records) == 50
    assert log.metadata["info"]["randomization"]
    assert {record.source for record in log.records} == {Source.POLICY}
    assert not any(record.action_modified for record in log.records)
    assert log.records[-1].truncated
    times = [record.monotonic_ns for record in log.records]
    assert {after - before for before, after in itertools.pairwise(times)} == {10_000_000}
    (episode,) = episodes_from_records(log.records, log.spec)
    assert episode.trace_valid.all()


def test_fast_episodes_repeat_with_the_seed(tmp_path: Path, policy: Path) -> None:
    short = ("loop.pace=fast", "robot.options.time_limit_s=0.1")
    _, first = run(tmp_path / "a", policy, *short, "--episodes", "2")
    _, second = run(tmp_path / "b", policy, *short, "--episodes", "2")
    for left, right in zip(first, second, strict=True):
        for one, other in zip(left.records, right.records, strict=True):
            assert one.next_observation.tobytes() == other.next_observation.tobytes()
            assert one.reward == other.reward


def test_real_time_pace_follows_the_clock(tmp_path: Path, policy: Path) -> None:
    code, (log,) = run(tmp_path, policy, "loop.max_steps=20", "observation.stale.mode=off")
    assert code == 0
    records = [*log.records, *log.invalid_records]
    assert len(records) == 20
    times = [record.monotonic_ns for record in records]  # of unfit readings too: a busy machine makes some
    assert max(times) - min(times) >= 180_000_000


def test_pace_and_simulator_must_agree(tmp_path: Path, policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, logs = run(tmp_path, policy, "loop.pace=fast", "robot.options.real_time=true")
    assert code == 2
    assert logs == []
    assert "contradicts loop.pace" in capsys.readouterr().err


@pytest.mark.parametrize("pace", ["fast", "real_time"])
def test_motor_commands_five_times_as_fast_as_the_policy(
    tmp_path: Path, pace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    walker = CARTPOLE.with_name("simulated_walker.yaml")
    options = yaml.safe_load(walker.read_text())["robot"]["options"]
    spec = SimulatedRobot(build(SimulatedRobotConfig, options)).spec
    policy = write_linear_policy(tmp_path / "walker.onnx", spec, stddev=0.3)
    command = ["run-robot", "--config", str(walker), "--policy", str(policy), "--log-dir", str(tmp_path / "logs")]
    settings = [f"loop.pace={pace}", "loop.command_rate=100", "loop.interpolation=linear", "loop.max_steps=20"]
    assert main([*command, "policy=local", "observation.stale.mode=off", *settings]) == 0
    output = capsys.readouterr().out
    assert "5 motor commands per action (linear)" in output
    (log,) = (read_log(path) for path in (tmp_path / "logs").glob("*.mcap"))
    records = sorted([*log.records, *log.invalid_records], key=lambda record: record.step_index)
    assert [record.step_index for record in records] == list(range(20))
    assert log.metadata["info"]["commands"] == {"per_step": 5, "interpolation": "linear"}
    statistics = log.metadata["statistics"]
    if pace == "fast":
        assert statistics["commands"] == 100
        assert not any(record.action_modified for record in records)
        assert "motor commands 100" in output
        for record in records:
            assert record.applied_command.tobytes() == spec.to_command(record.policy_action).tobytes()
    else:  # a busy machine may be late for some
        assert statistics["commands"] + statistics["skipped_commands"] == 100


def test_command_rate_above_the_physics_rate_is_refused(
    tmp_path: Path, policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, logs = run(tmp_path, policy, "loop.pace=fast", "loop.command_rate=200")
    assert (code, logs) == (2, [])
    assert "lower loop.command_rate" in capsys.readouterr().err
