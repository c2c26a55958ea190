"""`mpo-robot bench compare`: what it refuses, and two tiny trainings from the command to the table."""

import csv

import pytest

from mpo_robot.cli.compare import make_plans
from mpo_robot.cli.main import build_parser, main

TASK = "dm_control:cartpole-swingup"
TINY = [
    "environment.time_limit_s=0.3",
    "environment.action_repeat=3",  # the evaluations are at 42 and 81 steps
    "training.warmup_steps=20",
    "training.updates_per_step=0.1",
    "training.evaluation_period=40",
    "training.evaluation_episodes=1",
    "training.log_period=20",
    "training.replay_capacity=200",
    "learner.policy.hidden_sizes=[8]",
    "learner.critic.hidden_sizes=[8]",
    "learner.batch_sequences=4",
]


def rows(path):
    with path.open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.timeout(600)  # two processes that import everything, on a machine that may be busy
def test_two_tiny_trainings_end_in_a_table_and_are_not_repeated(tmp_path, capsys):
    command = ["bench", "compare", "--algorithms", "mpo,sac", "--tasks", TASK, "--seeds", "3", "--steps", "80"]
    command += ["--dir", str(tmp_path), "--jobs", "2", *TINY]
    assert main(command) == 0
    output = capsys.readouterr().out
    assert "2 trainings" in output
    assert "0 finished already" in output
    table = rows(tmp_path / "comparison.csv")
    assert {row["algorithm"] for row in table} == {"mpo", "sac"}
    scores = {row["algorithm"]: row for row in rows(tmp_path / "scores.csv")}
    for algorithm in ("mpo", "sac"):
        run = tmp_path / algorithm / TASK.replace(":", "_") / "seed3"
        last = rows(run / "evaluations.csv")[-1]
        assert last["environment_steps"] == "81"
        assert float(scores[algorithm]["return"]) == float(last["return_mean"])
        assert float(scores[algorithm]["score"]) == pytest.approx(float(last["return_mean"]) / 1000.0)
    assert "temperature" in rows(tmp_path / "sac" / TASK.replace(":", "_") / "seed3" / "metrics.csv")[-1]
    assert (tmp_path / "comparison.png").exists()
    assert main(command) == 0
    assert "2 finished already" in capsys.readouterr().out
    # the same folder with other settings would mix two experiments
    assert main([*command, "learner.discount=0.9"]) == 2
    assert "learner.discount: auto there, 0.9 here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--tasks", TASK, "--score-range", f"{TASK}=9:1"], "HIGH must be above LOW"),
        (["--tasks", TASK, *(2 * ["--score-range", f"{TASK}=0:1"])], "names 'dm_control:cartpole-swingup' twice"),
        (["--tasks", TASK, "--algorithms", "a3c"], "there are: ddpg"),
        (["--tasks", TASK, "--seeds", "0,x"], "--seeds"),
        (["--tasks", TASK, "--seeds", "0,0"], "twice"),
        (["--tasks", TASK, "--steps", "15000"], "multiple of training.evaluation_period"),
        (["--tasks", TASK, "--jobs", "0"], "--jobs"),
        (["--tasks", TASK, "learner.discunt=1"], "learner.discount"),
        (["--tasks", TASK, "learner.algorithm=epg"], "learner.algorithm cannot be set here: --algorithms sets it"),
        (["--tasks", TASK, "environment.task=dm_control:walker-walk"], "--tasks sets it"),
        (["--tasks", TASK, "seed=7"], "--seeds sets it"),
        (["--tasks", TASK, "training.total_steps=9"], "--steps sets it"),
        (["--tasks", TASK, "--algorithms", "mpo,ppo", "training.environments=2"], "ppo collects from one environment"),
        (["--tasks", "gymnasium:CartPole-v1", "--algorithms", "mpo,sac"], "sac needs continuous actions"),
        (["--tasks", "gymnasium:CartPole-v1", "--algorithms", "ppo"], "ppo needs continuous actions"),
        (["--tasks", "gymnasium:CartPole-v1", "--algorithms", "mpo", "learner.categorical.torso=dqn"], "is no image"),
        (["--tasks", "gymnasium:CartPole-v1", "--algorithms", "mpo", "learner.critic.head=hl_gauss"], "scalar critics"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(arguments, text, tmp_path, capsys):
    assert main(["bench", "compare", "--dir", str(tmp_path / "runs"), *arguments]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_setting_is_for_the_algorithms_on_which_it_has_an_effect(tmp_path, capsys):
    command = ["bench", "compare", "--tasks", TASK, "--algorithms"]
    options = ["--seeds", "0", "--steps", "80", "--dir", str(tmp_path), *TINY, "learner.mpo.epsilon=0.2"]
    plans = make_plans(build_parser("bench").parse_args([*command, "mpo,sac", *options]))
    assert [plan.training.config.learner.mpo.epsilon for plan in plans] == [0.2, 0.1]
    assert main([*command, "sac,ddpg", "--dir", str(tmp_path / "runs"), "learner.mpo.epsilon=0.2"]) == 2
    assert "learner.mpo.epsilon=0.2 has no effect on any of the algorithms" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["learner.discount=0.9"], "invalid choice: 'learner.discount=0.9'"),
        (["--tasks", TASK], f"invalid choice: '{TASK}'"),  # and not every benchmark, one after the other
        (["compare"], "the following arguments are required: --tasks"),
        (["compare", "--tasks", TASK, "--vary", "learner.discount=0.9"], "unrecognized arguments: --vary"),
        (["sensitivity", "--tasks", TASK], "unrecognized arguments: --tasks"),
    ],
)
def test_options_belong_to_the_study_that_has_them(arguments, text, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["bench", *arguments])
    assert exit_.value.code == 2
    assert text in capsys.readouterr().err
