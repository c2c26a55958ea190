"""`ingest` and `learn` as a user runs them: real log files, a real registry, a real process."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from deploy.log_writer import EpisodeLogWriter
from deploy.onnx_policy import OnnxPolicy
from deploy.registry import PolicyRegistry
from mpo_robot.cli.log_intake import LogIntake
from mpo_robot.cli.main import main
from mpo_robot.errors import SpecMismatchError
from mpo_robot.specs import PolicySpec
from tests.support.learn_logs import QUICK, learner_of, take_in, write_log
from tests.support.records import make_records
from tests.support.tiny_run import SPEC, make_run


@pytest.fixture
def folder(tmp_path):
    return make_run(tmp_path / "run")


def test_records_reach_the_replay_bit_exact(folder, tmp_path):
    write_log(tmp_path / "logs", "one", steps=20)
    learner = learner_of(folder)
    take_in(learner, tmp_path / "logs")
    rows = learner.real_replay._rows[:21]
    records = make_records(20, SPEC, episode_id="one")
    for row, record in zip(rows, records):
        assert row[:3].tobytes() == record.observation.tobytes()
        assert row[3:5].tobytes() == record.policy_action.tobytes()
    assert rows[20][:3].tobytes() == records[-1].next_observation.tobytes()


def test_bad_files_are_set_aside_with_the_reason_and_nothing_is_lost(folder, tmp_path):
    logs = tmp_path / "logs"
    write_log(logs, "good")
    other = PolicySpec(SPEC.observation, SPEC.command, 0.5)
    write_log(logs, "foreign", spec=other)
    (logs / "garbage.mcap").write_bytes(b"this is no log")
    content = (logs / "foreign.mcap").read_bytes()
    intake = take_in(learner_of(folder), logs)
    assert (intake.logs, intake.steps) == (1, 30)
    assert {path.name for path in intake.rejected} == {"garbage.mcap"}
    assert (logs / "rejected" / "garbage.reason.txt").exists()
    assert (logs / "good.mcap").exists()
    assert intake.foreign == (logs / "foreign.mcap",)  # another run's: not bad, so it stays
    assert (logs / "foreign.mcap").read_bytes() == content


def test_a_folder_of_another_robots_logs_is_refused_and_left_alone(folder, tmp_path):
    logs = tmp_path / "logs"
    for name in ("one", "two"):
        write_log(logs, name, spec=PolicySpec(SPEC.observation, SPEC.command, 0.5))
    before = {path: path.read_bytes() for path in logs.iterdir()}
    with pytest.raises(SpecMismatchError, match=r"no log in .* is of this run's interface: .*control_dt"):
        take_in(learner_of(folder), logs)
    assert main(["learn", str(folder), "--logs", str(logs)]) == 2
    assert {path: path.read_bytes() for path in logs.iterdir()} == before


def test_a_killed_writers_log_is_recovered_once_it_is_quiet(folder, tmp_path):
    logs = tmp_path / "logs"
    path = write_log(logs, "killed", close=False)
    learner, lines = learner_of(folder), []
    recent = take_in(learner, logs, lines, later=0.0)
    assert recent.waiting == (path,)
    assert learner.ledger == {}
    assert "waiting for killed.mcap: it is not complete and changed less than 5 s ago" in lines[0]
    later = take_in(learner, logs)
    assert later.logs == 1
    assert 0 < later.steps < 30


def test_a_log_in_its_writers_hands_is_left_alone(folder, tmp_path):
    writer = EpisodeLogWriter(tmp_path / "logs", SPEC, "running")
    try:
        for record in make_records(5, SPEC, episode_id="running"):
            writer.append(record)
        learner = learner_of(folder)
        lines = []
        intake = LogIntake(learner, tmp_path / "logs", say=lines.append, wall_clock=lambda: time.time() + 99)
        assert intake.take_in().waiting == (writer.path,)
        assert intake.take_in().waiting == (writer.path,)
        assert lines == ["waiting for running.mcap: it is still being written"]  # once
    finally:
        writer.close()
    assert take_in(learner, tmp_path / "logs").steps == 5


def test_no_log_is_ingested_twice(folder, tmp_path, capsys):
    write_log(tmp_path / "logs", "one")
    assert main(["ingest", str(folder.path), "--logs", str(tmp_path / "logs")]) == 0
    assert "1 logs ingested (30 steps)" in capsys.readouterr().out
    assert main(["ingest", str(folder.path), "--logs", str(tmp_path / "logs")]) == 0
    assert "0 logs ingested (0 steps)" in capsys.readouterr().out


def test_learn_publishes_a_new_version_and_rolls_back(folder, tmp_path, capsys):
    command = ["learn", str(folder.path), "--logs", str(tmp_path / "logs"), *QUICK]
    write_log(tmp_path / "logs", "one", seed=1)
    assert main(command) == 0
    registry = PolicyRegistry(folder.policies)
    first = registry.current_version()
    write_log(tmp_path / "logs", "two", seed=2)
    assert main(command) == 0
    second = registry.current_version()
    assert second != first
    record = OnnxPolicy(registry.current()).metadata["training"]
    assert record["real_steps"] == 60
    assert record["environment"]["task"] == "dm_control:cartpole-swingup"
    assert "published policy" in capsys.readouterr().out
    assert main(["serve", str(folder.policies), "--rollback"]) == 0
    assert registry.current_version() == first


def test_export_says_which_checkpoint_it_takes(folder, tmp_path, capsys):
    write_log(tmp_path / "logs", "one")
    assert main(["learn", str(folder.path), "--logs", str(tmp_path / "logs"), "--no-publish", *QUICK]) == 0
    export = ["export", str(folder.path), "-o", str(tmp_path / "policy.onnx")]
    assert main(export) == 0
    assert f"policy of {folder.learn_checkpoints}" in capsys.readouterr().out
    newer = make_run(tmp_path / "newer", environment_steps=900)  # as if the run had been trained on
    (newer.checkpoints / "step_000000000900").rename(folder.checkpoints / "step_000000000900")
    assert main(export) == 0
    assert "Not used: what was learnt from 30 real steps" in capsys.readouterr().out
    assert OnnxPolicy(tmp_path / "policy.onnx").metadata["training"]["real_steps"] == 0


def test_the_policy_in_force_stays_if_publishing_fails(folder, tmp_path, monkeypatch):
    command = ["learn", str(folder.path), "--logs", str(tmp_path / "logs"), *QUICK]
    write_log(tmp_path / "logs", "one", seed=1)
    assert main(command) == 0
    registry = PolicyRegistry(folder.policies)
    first = registry.current_version()
    write_log(tmp_path / "logs", "two", seed=2)
    monkeypatch.setattr("mpo_robot.export.PARITY_TOLERANCE", -1.0)
    assert main(command) == 2
    assert registry.current_version() == first
    # The data of the second log is in the saved replay all the same.
    assert learner_of(folder).real_steps == 60


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["real_fractoin=0.5"], "did you mean real_fraction"),
        (["real_fraction=0"], "real_fraction must be in"),
        (["--min-new-steps", "-5"], "--min-new-steps must be at least 1"),
        (["--poll", "-1", "--watch"], "--poll must be a positive number"),
        (["--poll", "nan", "--watch"], "--poll must be a positive number"),
        (["reward=nothing"], "must look like package.module:function"),
        (["reward=no_such_module:reward"], "cannot be imported"),
    ],
)
def test_bad_settings_exit_with_2(folder, tmp_path, arguments, text, capsys):
    write_log(tmp_path / "logs", "one")
    assert main(["learn", str(folder.path), *arguments, "--logs", str(tmp_path / "logs")]) == 2
    assert text in capsys.readouterr().err


def test_a_missing_log_directory_exits_with_2(folder, tmp_path, capsys):
    assert main(["learn", str(folder.path), "--logs", str(tmp_path / "none")]) == 2
    assert "no log directory" in capsys.readouterr().err


def test_watch_takes_new_logs_in_until_ctrl_c(folder, tmp_path):
    logs = tmp_path / "logs"
    write_log(logs, "one", seed=1)
    command = [sys.executable, "-m", "mpo_robot.cli.main", "learn", str(folder.path), "--logs", str(logs)]
    process = subprocess.Popen(
        [*command, "--watch", "--poll", "0.05", *QUICK],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "published policy" in line and len(lines) < 6:
                write_log(logs, "two", seed=2)
            elif "published policy" in line:
                process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
        process.stdout.close()
    finally:
        process.kill()
        process.wait()
    assert "stopped" in lines[-1]
    history = (folder.policies / "history.jsonl").read_text().splitlines()
    assert len([line for line in history if "publish" in json.loads(line)["event"]]) == 2
