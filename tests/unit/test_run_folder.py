"""Run folders: what identifies a run, atomic files, CSV logs that survive a resume."""

import csv
import json
import os

import pytest

from mpo_robot.errors import ConfigError
from mpo_robot.metrics import EVALUATION_COLUMNS, MetricsWriter, metric_columns
from mpo_robot.run_folder import CsvLog, RunFolder, run_record, write_atomically
from tests.support.point_environment import SPEC


def rows(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_new_folder_holds_config_spec_and_record(tmp_path):
    folder = RunFolder(tmp_path / "deep" / "run")
    folder.create("seed: 3\n", SPEC, seed=3)
    folder.require()
    assert folder.config_file.read_text() == "seed: 3\n"
    assert folder.spec() == SPEC
    record = json.loads(folder.run_file.read_text())
    assert record["seed"] == 3
    assert record["versions"]["torch"] != "not installed"
    assert record["machine"]["cores"] == os.cpu_count()
    assert set(record["git"]) == {"commit", "dirty"}
    assert not list(folder.path.glob(".*"))  # no temporary file is left


@pytest.mark.parametrize("place", ["checkpoints", "learn/checkpoints"])
def test_a_folder_that_holds_a_checkpoint_is_not_overwritten(tmp_path, place):
    folder = RunFolder(tmp_path)
    folder.create("a: 1\n", SPEC, seed=0)
    (tmp_path / place / "step_000000000001").mkdir(parents=True)
    with pytest.raises(ConfigError, match="--resume"):
        folder.create("a: 2\n", SPEC, seed=0)
    assert folder.config_file.read_text() == "a: 1\n"


def test_a_run_without_a_checkpoint_is_replaced_and_leaves_no_rows_behind(tmp_path):
    folder = RunFolder(tmp_path)
    folder.create("a: 1\n", SPEC, seed=0)
    for path in (folder.metrics_file, folder.evaluations_file, folder.tensorboard / "events"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("environment_steps,learner_steps\n10,0\n")
    (folder.checkpoints / ".tmp_step_000000000001").mkdir(parents=True)  # of a crash while the first was written
    folder.create("a: 2\n", SPEC, seed=1)
    assert folder.config_file.read_text() == "a: 2\n"
    assert json.loads(folder.run_file.read_text())["seed"] == 1
    assert not any(path.exists() for path in (folder.metrics_file, folder.evaluations_file, folder.tensorboard))


def test_results_whose_checkpoints_were_deleted_are_not_overwritten(tmp_path):
    folder = RunFolder(tmp_path)
    folder.create("a: 1\n", SPEC, seed=0)
    folder.evaluations_file.write_text("environment_steps,learner_steps,return_mean\n10,0,1.0\n20,7,2.0\n")
    with pytest.raises(ConfigError, match=r"whose checkpoints are gone: move it away"):
        folder.create("a: 2\n", SPEC, seed=0)
    folder.evaluations_file.write_text("environment_steps,learner_steps,return_mean\n10,0,1.0\n")  # nothing learnt yet
    folder.create("a: 2\n", SPEC, seed=0)


def test_a_folder_is_used_by_one_process_at_a_time(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.in_use():
        with pytest.raises(ConfigError, match="another process trains or learns"), RunFolder(tmp_path / "run").in_use():
            pass
        folder.create("a: 1\n", SPEC, seed=0)
    with folder.in_use():
        pass
    assert folder.config_file.exists()


def test_a_folder_in_which_nothing_was_made_goes_again(tmp_path):
    with pytest.raises(KeyError), RunFolder(tmp_path / "run").in_use():
        raise KeyError
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not a run folder"):
        RunFolder(tmp_path).require()
    with pytest.raises(ConfigError, match="not a run folder"):
        RunFolder(tmp_path).spec()


def test_the_record_survives_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert run_record(0)["git"] == {"commit": None, "dirty": None}


def test_a_crash_while_writing_leaves_the_old_text(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_atomically(path, "old")

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert path.read_text() == "old"


def test_csv_rows_keep_their_columns(tmp_path):
    path = tmp_path / "metrics.csv"
    log = CsvLog(path, ("environment_steps", "a", "b"))
    log.append({"environment_steps": 10, "b": 0.1})
    log.append({"b": 2, "environment_steps": 20, "a": -1e-9})
    assert path.read_text() == "environment_steps,a,b\n10,,0.1\n20,-1e-09,2\n"
    with pytest.raises(ValueError, match="not in fieldnames"):
        log.append({"environment_steps": 30, "typo": 1})


def test_an_existing_csv_is_continued(tmp_path):
    path = tmp_path / "metrics.csv"
    CsvLog(path, ("environment_steps", "a")).append({"environment_steps": 10, "a": 1})
    CsvLog(path, ("environment_steps", "a")).append({"environment_steps": 20, "a": 2})
    assert [row["environment_steps"] for row in rows(path)] == ["10", "20"]


def test_on_resume_rows_after_the_checkpoint_go_and_columns_follow_the_program(tmp_path):
    path = tmp_path / "metrics.csv"
    log = CsvLog(path, ("environment_steps", "gone", "a"))
    for step in (10, 20, 30):
        log.append({"environment_steps": step, "gone": 5, "a": step / 10})
    resumed = CsvLog(path, ("environment_steps", "a", "new"), resume_step=20)
    assert rows(path) == [
        {"environment_steps": "10", "a": "1.0", "new": ""},
        {"environment_steps": "20", "a": "2.0", "new": ""},
    ]
    resumed.append({"environment_steps": 30, "a": 3, "new": 7})
    assert rows(path)[-1] == {"environment_steps": "30", "a": "3", "new": "7"}


def test_damaged_files_of_a_run_are_clear_errors(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create("seed: 1\n", SPEC, 1)
    folder.metrics_file.write_text("environment_steps,a\n10,1\n2")  # cut off within a number
    CsvLog(folder.metrics_file, ("environment_steps", "a"), resume_step=15)
    assert [row["environment_steps"] for row in rows(folder.metrics_file)] == ["10"]
    folder.metrics_file.write_text("\x00\x00,a\n10,1\n")
    with pytest.raises(ConfigError, match="its first line names no environment_steps"):
        CsvLog(folder.metrics_file, ("environment_steps", "a"), resume_step=15)
    folder.run_file.write_text('{"seed": ')
    with pytest.raises(ConfigError, match=r"run.json is damaged"):
        folder.record_resume(10, {}, "")
    folder.spec_file.write_text("[]")
    with pytest.raises(ConfigError, match=r"spec.json must hold a JSON object"):
        folder.spec()
    folder.spec_file.unlink()
    with pytest.raises(ConfigError, match=r"cannot read .*spec.json: No such file"):
        folder.spec()


def test_the_writer_fills_both_files_and_tensorboard(tmp_path):
    metrics, evaluations = tmp_path / "metrics.csv", tmp_path / "evaluations.csv"
    writer = MetricsWriter(
        CsvLog(metrics, metric_columns(["loss_critic"])),
        CsvLog(evaluations, EVALUATION_COLUMNS),
        tmp_path / "tensorboard",
        None,
    )
    writer.metrics({"environment_steps": 100, "loss_critic": 0.5})
    writer.evaluation({"environment_steps": 100, "return_mean": 12.0})
    writer.close()
    assert rows(metrics)[0]["loss_critic"] == "0.5"
    assert rows(evaluations)[0]["return_mean"] == "12.0"
    events = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert b"train/loss_critic" in events
    assert b"evaluation/return_mean" in events
