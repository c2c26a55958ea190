"""`run-robot` in a process whose files may not grow beyond a limit, as on a full disk; parts taken in by `ingest`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from deploy.log_parts import read_episode
from deploy.log_reader import read_log
from deploy.log_retention import INGESTED
from deploy.log_writer import EpisodeLogWriter, LogConfig
from mpo_robot.cli.main import main
from tests.support.learn_logs import learner_of, take_in
from tests.support.onnx_files import small_spec, write_linear_policy
from tests.support.records import make_records
from tests.support.robot_process import ROOT, write_config
from tests.support.tiny_run import SPEC, make_run

LIMITED = """\
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
from mpo_robot.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_full_disk_is_told_and_what_fitted_is_kept(tmp_path: Path) -> None:
    policy = write_linear_policy(tmp_path / "policy.onnx", small_spec())
    loop = {"pace": "fast", "fast_timeout_s": 30.0}
    config = write_config(tmp_path, policy="local", policy_path=str(policy), loop=loop, options={"length": 200})
    command = [sys.executable, "-c", LIMITED, "run-robot", "--config", str(config), "--episodes", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "the log could not be written" in done.stderr
    assert "File too large" in done.stderr
    (path,) = (tmp_path / "logs").glob("*.mcap")  # no second episode after that
    contents = read_log(path)
    found = [record.step_index for record in contents.records]
    assert found == list(range(len(found)))
    assert 0 < len(found) < 200
    assert f"steps NOT logged: {200 - len(found)}" in done.stdout
    assert path.stat().st_size == 20_000


def write_parts(directory: Path, name: str) -> list[Path]:
    writer = EpisodeLogWriter(directory, SPEC, name, config=LogConfig(max_seconds=0.01))
    for record in make_records(30, SPEC, name):
        writer.append(record)
    writer.close()
    paths = sorted(directory.glob(f"{name}*.mcap"))
    assert len(paths) == 3
    return paths


def test_parts_are_ingested_as_one_episode_and_marked(tmp_path: Path) -> None:
    folder, logs = make_run(tmp_path / "run"), tmp_path / "logs"
    paths = write_parts(logs, "walk")
    assert main(["ingest", str(folder.path), "--logs", str(logs)]) == 0
    learner = learner_of(folder)
    assert learner.ledger == {"walk": {"steps": 30, "file": "walk.mcap", "problem": "", "parts": [0, 1, 2]}}
    assert len(learner.real_replay) == 31, "one unbroken sequence and its final state"
    marks = [json.loads(line) for line in (logs / INGESTED).read_text().splitlines() if line]
    assert {mark["file"]: mark["bytes"] for mark in marks} == {path.name: path.stat().st_size for path in paths}
    assert main(["ingest", str(folder.path), "--logs", str(logs)]) == 0
    assert learner_of(folder).real_steps == 30


def test_part_that_turns_up_later_is_ingested_by_itself(tmp_path: Path) -> None:
    folder, logs = make_run(tmp_path / "run"), tmp_path / "logs"
    paths = write_parts(logs, "walk")
    late = paths[1].rename(tmp_path / "late.mcap")
    learner, lines = learner_of(folder), []
    assert take_in(learner, logs, lines, later=0.0).waiting == (paths[0], paths[2]), "it may still be on its way"
    assert take_in(learner, logs, lines).steps == 20
    assert "part 1 is missing" in lines[-1]
    late.rename(paths[1])
    assert take_in(learner, logs, lines).steps == 10
    assert list(learner.ledger) == ["walk", "walk part 1"]
    assert take_in(learner, logs).steps == 0
    assert read_episode(paths).complete


def test_nothing_is_marked_before_it_is_saved(tmp_path: Path) -> None:
    folder, logs = make_run(tmp_path / "run"), tmp_path / "logs"
    write_parts(logs, "walk")
    take_in(learner_of(folder), logs)
    assert not (logs / INGESTED).exists()
