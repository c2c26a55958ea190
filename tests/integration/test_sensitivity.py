"""`mpo-robot bench sensitivity`: what it refuses, and tiny trainings from the command to table and plot."""

import csv

import numpy as np
import pytest

from mpo_robot.cli.main import build_parser, main
from mpo_robot.cli.sensitivity import make_plans
from mpo_robot.report.sensitivity_chart import Variation, draw_sensitivity

CONFIG = """
environment: {task: "dm_control:cartpole-swingup", time_limit_s: 0.3, action_repeat: 3}
training:
  {warmup_steps: 20, updates_per_step: 0.1, evaluation_period: 40, evaluation_episodes: 1, log_period: 20,
   replay_capacity: 200}
learner: {policy: {hidden_sizes: [8]}, critic: {hidden_sizes: [8]}, batch_sequences: 4}
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "base.yaml"
    path.write_text(CONFIG)
    return path


@pytest.mark.timeout(600)  # processes that import everything, on a machine that may be busy
def test_one_setting_at_a_time_around_a_base_that_is_trained_once(config, tmp_path, capsys):
    folder = tmp_path / "study"
    command = ["bench", "sensitivity", "--config", str(config), "--seeds", "3", "--steps", "80", "--dir", str(folder)]
    command += ["--jobs", "2", "--vary", "learner.batch_sequences=2,4", "--vary", "learner.mpo.epsilon=0.1"]
    assert main(command) == 0
    output = capsys.readouterr().out
    assert "2 trainings" in output  # batch_sequences 4 and epsilon 0.1 are the base's
    assert (folder / "sensitivity.png").stat().st_size > 1000
    with (folder / "sensitivity.csv").open() as stream:
        table = {(row["setting"], row["value"]): row for row in csv.DictReader(stream)}
    assert set(table) == {("base", ""), ("learner.batch_sequences", "2")}
    for name, row in (
        ("base", table["base", ""]),
        ("learner.batch_sequences=2", table["learner.batch_sequences", "2"]),
    ):
        with (folder / name / "seed3" / "evaluations.csv").open() as stream:
            returns = [float(line["return_mean"]) for line in csv.DictReader(stream)]
        assert len(returns) == 2  # at 42 and 81 steps
        assert float(row["return"]) == returns[-1]
        assert float(row["mean_return"]) == pytest.approx(np.mean(returns))
    assert "batch_sequences: 2" in (folder / "learner.batch_sequences=2" / "seed3" / "config.yaml").read_text()
    assert main(command) == 0
    assert "2 finished already" in capsys.readouterr().out


def test_a_varied_setting_may_be_a_list(config, tmp_path):
    command = ["bench", "sensitivity", "--config", str(config), "--seeds", "0", "--steps", "80", "--dir", str(tmp_path)]
    command += ["--vary", "learner.policy.hidden_sizes=[8],[8, 4]"]
    plans, base = make_plans(build_parser("bench").parse_args(command))
    assert [(plan.value, plan.training.config.learner.policy.hidden_sizes) for plan in plans] == [
        (None, (8,)),
        ("[8, 4]", (8, 4)),
    ]
    assert base == {"learner.policy.hidden_sizes": "[8]"}


def test_a_varied_setting_may_be_null(config, tmp_path):
    command = ["bench", "sensitivity", "--config", str(config), "--seeds", "0", "--steps", "80", "--dir", str(tmp_path)]
    plans, _ = make_plans(build_parser("bench").parse_args([*command, "--vary", "learner.grad_clip_norm=null,10"]))
    assert {plan.training.config.learner.grad_clip_norm for plan in plans[1:]} <= {None, 10.0}
    assert len(plans) > 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--vary", "learner.mpo.epsilon"], "must look like"),
        (["--vary", "learner.mpo.epsilon=0.1,0.10"], "twice"),
        (["--vary", "learner.policy.hidden_sizes=[8,8],[8,8]"], "twice"),
        (["--vary", "learner.policy.hidden_sizes=[8"], "'[8' is not valid YAML"),
        (["--vary", "learner.mpo.epsilom=0.1"], "did you mean learner.mpo.epsilon"),
        (["--vary", "learner.mpo.epsilon=-1"], "must be positive"),
        (["--steps", "50"], "multiple of training.evaluation_period"),
        (["--seeds", "a"], "--seeds"),
        (["--jobs", "0"], "--jobs"),
        (["--vary", "seed=1,2"], "seed cannot be set here: --seeds sets it"),
        (["--vary", "training.total_steps=160"], "--steps sets it"),
        (["training.total_steps=160"], "--steps sets it"),
        (["--vary", "learner.mpo.epsilon=0.2", "--vary", "learner.mpo.epsilon=0.3"], "names a setting twice"),
        (["--vary", "training.evaluation_period=30"], "multiple of training.evaluation_period 30"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(arguments, text, config, tmp_path, capsys):
    command = ["bench", "sensitivity", "--config", str(config), "--steps", "80", "--dir", str(tmp_path / "study")]
    assert main([*command, *arguments]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_the_figure_has_a_panel_for_settings_that_are_no_numbers_too(tmp_path):
    outcome = [np.array([[1.0, 0.5], [2.0, 0.7]]), np.array([[3.0, 1.0]])]
    variations = [Variation("learner.critic.head", "scalar", ["scalar", "hl_gauss"], outcome)]
    draw_sensitivity(tmp_path / "figure.png", variations, 80)
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
