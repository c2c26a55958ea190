"""Training through the CLI's own code: resume repeats the uninterrupted run, Ctrl-C saves, bad input is refused."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from mpo_robot.cli.main import main
from mpo_robot.cli.settings import load_recorded_config, load_run_config
from mpo_robot.cli.train import make_trainer
from mpo_robot.run_folder import RunFolder

SMALL = {
    "environment": {"task": "dm_control:cartpole-swingup", "time_limit_s": 0.5},
    "training": {
        "total_steps": 250,  # no multiple of the evaluation period
        "warmup_steps": 50,
        "updates_per_step": 0.75,
        "evaluation_period": 60,
        "evaluation_episodes": 1,
        "log_period": 20,
        "checkpoint_period": 1000,
        "replay_capacity": 150,
    },
    "learner": {
        "batch_sequences": 4,
        "sequence_length": 3,
        "policy": {"hidden_sizes": [16]},
        "critic": {"hidden_sizes": [16]},
        "mpo": {"num_samples": 4},
        "target_update_period": 10,
        "target_update_rate": None,
    },
}


def rows(path):
    with path.open() as stream:
        return [
            {k: v for k, v in row.items() if "wall" not in k and "per_second" not in k}
            for row in csv.DictReader(stream)
        ]


def start(folder, overrides=()):
    config = load_run_config(SMALL, overrides)
    return make_trainer(config, RunFolder(folder))


@pytest.mark.parametrize(
    ("stop_at", "overrides"),
    [
        (97, []),
        (151, []),
        (200, []),
        (151, ["learner.mpo.variational=parametric", "learner.mpo.parametric_estimator=likelihood_ratio"]),
        # Pieces of 8 steps and pink noise: some of everything that an environment has of its own is under way.
        (99, ["training.environments=3", "training.white_noise_steps=70", "training.noise_scale_min=0.3"]),
        (152, ["training.environments=4", "training.environment_threads=2"]),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, monkeypatch, stop_at, overrides):
    monkeypatch.setattr("mpo_robot.collection.PIECE_STEPS", 8)
    whole = start(tmp_path / "whole", overrides)
    whole.run()
    first = start(tmp_path / "parts", overrides)
    collect = first._collect_step

    def stop_there():
        collect()
        first.stop_requested = first.environment_steps == stop_at

    first._collect_step = stop_there
    first.run()
    second = make_trainer(load_run_config(SMALL, overrides), RunFolder(tmp_path / "parts"), resume=True)
    assert second.environment_steps == stop_at
    assert second.learner.learner_steps > 0
    second.run()
    for name in ("metrics.csv", "evaluations.csv"):
        assert rows(tmp_path / "whole" / name) == rows(tmp_path / "parts" / name)
    left, right = whole.learner.state_dict(), second.learner.state_dict()
    for name in ("policy", "critic", "target_policy", "target_critic", "duals", "generator"):
        assert left[name].equal(right[name]), name
    assert whole.normalizer.state_dict() == second.normalizer.state_dict()
    assert whole.return_scale.state_dict() == second.return_scale.state_dict()
    assert (whole.replay._rows == second.replay._rows).all()


def test_a_run_stopped_before_its_first_checkpoint_is_started_again(tmp_path, capsys):
    config, run = tmp_path / "small.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(SMALL))
    make_trainer(load_run_config(SMALL), RunFolder(run))  # killed here
    assert main(["train", "--resume", str(run), "--quiet"]) == 2
    assert "without --resume" in capsys.readouterr().err
    command = ["train", "--config", str(config), "--run", str(run), "--quiet", "training.total_steps=60"]
    assert main(command) == 0
    assert main(command) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main(["train", "--resume", str(run), "--quiet"]) == 0


def test_a_resume_keeps_the_settings_that_were_in_force(tmp_path):
    config, run = tmp_path / "small.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(SMALL | {"training": SMALL["training"] | {"total_steps": 60}}))
    assert main(["train", "--config", str(config), "--run", str(run), "--quiet", "learner.policy_update_period=1"]) == 0
    folder = RunFolder(run)
    recorded = yaml.safe_load(folder.config_file.read_text())
    del recorded["learner"]["policy_update_period"]  # of a version that had none
    folder.config_file.write_text(yaml.safe_dump(recorded))
    assert main(["train", "--resume", str(run), "--quiet", "training.total_steps=70"]) == 0
    assert load_recorded_config(folder).learner.policy_update_period == 1
    (session,) = json.loads(folder.run_file.read_text())["resumed"]
    assert session["changed_settings"] == {"training.total_steps": [60, 70]}


def test_changed_settings_of_a_resume_are_kept_and_those_before_are_on_record(tmp_path, capsys):
    run = tmp_path / "run"
    start(run, ["training.total_steps=60"]).run()
    before = load_run_config(run / "config.yaml")
    assert main(["train", "--resume", str(run), "--quiet", "training.total_steps=75", "learner.discount=0.9"]) == 0
    now = load_run_config(run / "config.yaml")
    assert (now.training.total_steps, now.learner.discount) == (75, 0.9)
    (session,) = json.loads((run / "run.json").read_text())["resumed"]
    assert session["environment_steps"] == 60
    changed = {"training.total_steps": [60, 75], "learner.discount": [before.learner.discount, 0.9]}
    assert session["changed_settings"] == changed
    capsys.readouterr()
    assert main(["inspect", str(run), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["checkpoint_steps"] == facts["progress"]["environment_steps"] == 75  # the last metrics row is at 60
    assert "learner.discount: auto -> 0.9" in facts["resumed"][0]["changed_settings"]


def test_a_resume_with_settings_that_do_not_fit_the_checkpoint_says_which(tmp_path, capsys):
    run = tmp_path / "run"
    start(run, ["training.total_steps=60"]).run()
    config = (run / "config.yaml").read_text()
    for override, text in (
        ("learner.policy.hidden_sizes=[32]", "learner.policy.hidden_sizes from [16] to [32]"),
        ("learner.return_scale_bound=null", "one has a return scale, the other has none"),
        ("training.normalize_observations=false", "one has a normalizer, the other has none"),
        ("training.replay_capacity=100", "training.replay_capacity from 150 to 100"),
        ("training.environments=2", "saved with training.environments 1, and here are 2"),
        ("seed=3", "a run keeps its seed"),
        ("training.total_steps=59", "total_steps 59 is below the 60 steps that the run has made"),
        ("--run=elsewhere", "leave --run out"),
    ):
        assert main(["train", "--resume", str(run), "--quiet", override]) == 2
        assert text in capsys.readouterr().err
        assert (run / "config.yaml").read_text() == config


def test_metrics_after_a_crash_are_not_repeated(tmp_path):
    run = start(tmp_path / "run", ["training.checkpoint_period=100", "training.total_steps=180"])
    run.save = lambda: run.environment_steps == 100 and type(run).save(run)  # the save at the end is lost
    run.run()
    resumed = make_trainer(load_run_config(SMALL), RunFolder(tmp_path / "run"), resume=True)
    assert resumed.environment_steps == 100
    resumed.run()
    steps = [int(row["environment_steps"]) for row in rows(tmp_path / "run" / "metrics.csv")]
    assert steps == list(range(20, 241, 20))
    assert [int(row["environment_steps"]) for row in rows(tmp_path / "run" / "evaluations.csv")] == [
        60,
        120,
        180,
        240,
        250,
    ]


def test_same_seed_same_metrics_other_seed_other_metrics(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        start(tmp_path / name, [f"seed={seed}", "training.total_steps=120"]).run()
    assert rows(tmp_path / "a" / "metrics.csv") == rows(tmp_path / "b" / "metrics.csv")
    assert rows(tmp_path / "a" / "metrics.csv") != rows(tmp_path / "c" / "metrics.csv")


def test_ctrl_c_saves_and_stops_cleanly(tmp_path):
    config = tmp_path / "small.yaml"
    config.write_text("environment: {task: 'dm_control:cartpole-swingup'}\n")
    run = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "mpo_robot.cli.main",
        "train",
        "--config",
        str(config),
        "--run",
        str(run),
        "--quiet",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 60
        while not (run / "metrics.csv").exists() or len((run / "metrics.csv").read_text().splitlines()) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "Continue: mpo-robot train --resume" in output
    assert list((run / "checkpoints").glob("step_*/state.pt"))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["train"], "--config"),
        (["train", "--config", "no_such.yaml"], "no_such.yaml"),
        (["train", "--resume", "no_such_run"], "no_such_run"),
        (["export", "no_such_run"], "no_such_run"),
    ],
)
def test_bad_input_exits_with_2_and_says_why(arguments, text, capsys):
    assert main(arguments) == 2
    assert text in capsys.readouterr().err


def test_unknown_keys_are_refused_with_a_suggestion(tmp_path, capsys):
    config = tmp_path / "typo.yaml"
    config.write_text("environment: {task: 'dm_control:cartpole-swingup'}\nlearner: {mpo: {num_sample: 3}}\n")
    assert main(["train", "--config", str(config), "--run", str(tmp_path / "run")]) == 2
    assert "did you mean learner.mpo.num_samples?" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
