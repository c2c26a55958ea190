"""`mpo-robot train --seeds`: real processes side by side, finished ones skipped, all of them stopped and continued."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from mpo_robot.cli.main import main
from mpo_robot.cli.settings import load_run_config
from mpo_robot.cli.trainings import Training
from mpo_robot.run_folder import RunFolder

TINY = {
    "environment": {"task": "dm_control:cartpole-swingup", "time_limit_s": 0.3},
    "training": {
        "total_steps": 80,
        "warmup_steps": 20,
        "updates_per_step": 0.1,
        "evaluation_period": 40,
        "evaluation_episodes": 1,
        "log_period": 20,
        "replay_capacity": 200,
    },
    "learner": {"batch_sequences": 4, "policy": {"hidden_sizes": [8]}, "critic": {"hidden_sizes": [8]}},
}


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def state_of(output, seed):
    """Last word of a seed's line in the table."""
    (line,) = [line for line in output.splitlines() if line.split()[:1] == [str(seed)]]
    return line.split()[-1]


@pytest.mark.timeout(600)  # processes that import everything, on a machine that may be busy
def test_a_failed_seed_is_told_a_finished_one_skipped_and_a_longer_training_continued(config, tmp_path, capsys):
    command = ["train", "--config", str(config), "--seeds", "3,4", "--jobs", "2"]
    runs = {seed: RunFolder(tmp_path / "runs" / f"tiny-seed{seed}") for seed in (3, 4)}
    with runs[4].in_use():  # as if another training were running in it
        assert main(command) == 1
    captured = capsys.readouterr()
    assert "2 runs, 0 finished already, 2 at a time" in captured.out
    assert "seed 3  step        40  return" in captured.out
    assert "seed 3  step        80  return" in captured.out
    assert (state_of(captured.out, 3), state_of(captured.out, 4)) == ("finished", "failed")
    assert "tiny-seed4.log" in captured.err
    assert "another process trains or learns" in (tmp_path / "runs" / "tiny-seed4.log").read_text()

    before = runs[3].evaluations_file.read_text()
    assert main(command) == 0
    output = capsys.readouterr().out
    assert "2 runs, 1 finished already" in output
    assert state_of(output, 4) == "finished"
    assert "of 2 seeds" in output
    assert runs[3].evaluations_file.read_text() == before
    assert before != runs[4].evaluations_file.read_text()
    assert [load_run_config(runs[seed].config_file).seed for seed in runs] == [3, 4]

    assert main([*command[:3], "--seeds", "3", "training.total_steps=120"]) == 0
    output = capsys.readouterr().out
    assert next(line for line in output.splitlines() if line.startswith("seed 3")).startswith("seed 3  step       120")
    (resumed,) = json.loads(runs[3].run_file.read_text())["resumed"]
    assert resumed["environment_steps"] == 80
    assert runs[3].evaluations_file.read_text().startswith(before)
    # the same folders with other settings would be other runs
    assert main([*command, "learner.discount=0.9"]) == 2
    assert "tiny-seed3 holds a run of other settings" in capsys.readouterr().err


@pytest.mark.timeout(600)
def test_a_stop_reaches_every_seed_and_each_one_saves(config, tmp_path):
    command = [sys.executable, "-m", "mpo_robot.cli.main", "train", "--config", str(config), "--seeds", "0,1,2"]
    command += ["--jobs", "2", "training.total_steps=1000000", "training.evaluation_period=500000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    folders = [RunFolder(tmp_path / "runs" / f"tiny-seed{seed}") for seed in (0, 1, 2)]
    try:
        deadline = time.monotonic() + 300
        while not all(any(folder.checkpoints.glob("step_*")) for folder in folders[:2]):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    finally:
        os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
        process.wait()
    assert process.returncode == 130
    assert [state_of(output, seed) for seed in (0, 1, 2)] == ["stopped"] * 3
    for folder in folders[:2]:
        text = folder.path.with_name(folder.path.name + ".log").read_text()
        assert "Continue: mpo-robot train --resume" in text  # its own words after it saved
        with folder.in_use():  # nobody trains there any more
            pass
    assert not folders[2].path.exists()  # its turn never came


def test_the_runs_may_be_elsewhere(config, tmp_path):
    command = ["train", "--config", str(config), "--quiet", "--run", str(tmp_path / "there" / "v1.5"), "--seeds", "0"]
    assert main(command) == 0
    assert RunFolder(tmp_path / "there" / "v1.5-seed0").config_file.exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--seeds", "0,x"], "whole numbers"),
        (["--seeds", "0,0"], "twice"),
        (["--seeds=-1,0"], "negative"),
        (["--seeds", "0,1", "--jobs", "0"], "--jobs"),
        (["--seeds", "0,1", "--resume", "there"], "without --resume"),
        (["--seeds", "0,1", "seed=3"], "seed cannot be set"),
        (["--seeds", "0,1", "training.threads=2"], "one thread"),
        (["--seeds", "0,1", "learner.discunt=1"], "learner.discount"),
        (["--jobs", "2"], "give --seeds"),
        (["--seeds", "0,1", "--run", "."], "names begin with, got ."),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(arguments, text, config, tmp_path, capsys):
    assert main(["train", "--config", str(config), *arguments]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_finished_is_what_was_evaluated_at_its_end_and_saved(config, tmp_path):
    folder = RunFolder(tmp_path / "run.with.dots")
    training = Training(config, (), load_run_config(config), folder)
    assert training.log_file == tmp_path / "run.with.dots.log"
    assert not training.is_finished
    folder.path.mkdir()
    header = "environment_steps,return_mean\n"
    folder.evaluations_file.write_text(header + "40,1.0\n80,2")  # still being written
    assert not training.is_finished
    folder.evaluations_file.write_text(header + "40,1.0\n81,2.0\n")  # three environments end a step later
    assert training.is_finished  # checkpoints may have been deleted since
    (folder.checkpoints / "step_000000000040").mkdir(parents=True)
    assert not training.is_finished  # it crashed before the last one
    (folder.checkpoints / "step_000000000081").mkdir()
    assert training.is_finished
