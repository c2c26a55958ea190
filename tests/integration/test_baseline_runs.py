"""Every algorithm through the commands: train, stop, resume exactly, evaluate, export, inspect, report."""

import csv
import json

import pytest

from mpo_robot.cli.main import main
from mpo_robot.trainer import EVALUATION_SEED

CONFIG = """
environment: {task: 'dm_control:cartpole-swingup', time_limit_s: 0.5}
training:
  total_steps: 120
  evaluation_period: 60
  evaluation_episodes: 1
  log_period: 20
  checkpoint_period: 1000
learner:
  policy: {hidden_sizes: [8]}
  critic: {hidden_sizes: [8]}
"""
OFF_POLICY = ("sac", "ddpg", "epg")
REPLAY = (
    "training.warmup_steps=30",
    "training.updates_per_step=0.25",
    "training.replay_capacity=100",
    "learner.batch_sequences=4",
    "learner.sequence_length=3",
    "learner.learning_rate_decay_steps=30",  # auto would follow the shorter total of a part
)
PPO = ("learner.ppo.rollout_steps=30", "learner.ppo.batch_size=15", "learner.ppo.epochs=2")


def rows(path):
    with path.open() as stream:
        return [
            {k: v for k, v in row.items() if k not in ("wall_time_s", "steps_per_second")}
            for row in csv.DictReader(stream)
        ]


def train(folder, algorithm, *settings):
    config = folder.parent / f"{algorithm}.yaml"
    config.write_text(CONFIG)
    own = (f"learner.algorithm={algorithm}", *(PPO if algorithm == "ppo" else REPLAY))
    return main(["train", "--quiet", "--config", str(config), "--run", str(folder), *own, *settings])


@pytest.mark.parametrize("algorithm", OFF_POLICY)
def test_a_resumed_run_equals_an_uninterrupted_one(algorithm, tmp_path):
    assert train(tmp_path / "whole", algorithm) == 0
    assert train(tmp_path / "parts", algorithm, "training.total_steps=60") == 0
    assert main(["train", "--quiet", "--resume", str(tmp_path / "parts"), "training.total_steps=120"]) == 0
    for name in ("metrics.csv", "evaluations.csv"):
        whole = rows(tmp_path / "whole" / name)
        assert whole == rows(tmp_path / "parts" / name)
    assert float(rows(tmp_path / "whole" / "metrics.csv")[-1]["loss_critic"]) > 0


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (["training.normalize_observations=false"], "one has a normalizer, the other has none"),
        (["learner.return_scale_bound=null"], "one has a return scale, the other has none"),
        (["learner.policy.hidden_sizes=[9]"], "does not fit the settings"),
        (["learner.algorithm=mpo"], "a run of ppo cannot become one of another algorithm"),
    ],
)
def test_a_run_of_ppo_is_not_continued_as_something_else(changes, text, tmp_path, capsys):
    pytest.importorskip("stable_baselines3")
    run = tmp_path / "run"
    assert train(run, "ppo", "training.total_steps=60") == 0
    before = (run / "config.yaml").read_text()
    assert main(["train", "--quiet", "--resume", str(run), "training.total_steps=120", *changes]) == 2
    assert text in capsys.readouterr().err
    assert (run / "config.yaml").read_text() == before
    assert main(["train", "--quiet", "--resume", str(run), "training.total_steps=90"]) == 0


def test_a_run_does_not_become_one_of_ppo(tmp_path, capsys):
    assert train(tmp_path / "run", "epg", "training.total_steps=60") == 0
    assert main(["train", "--quiet", "--resume", str(tmp_path / "run"), "learner.algorithm=ppo"]) == 2
    assert "cannot become" in capsys.readouterr().err


@pytest.mark.parametrize("algorithm", [*OFF_POLICY, "ppo"])
def test_the_other_commands_work_with_the_run(algorithm, tmp_path, capsys):
    if algorithm == "ppo":
        pytest.importorskip("stable_baselines3")
    run, policy = tmp_path / "run", tmp_path / "policy.onnx"
    assert train(run, algorithm) == 0
    assert main(["export", str(run), "-o", str(policy)]) == 0
    advice = f"mpo-robot serve {policy}" + (" --deterministic" if algorithm == "sac" else "")
    assert capsys.readouterr().out.rstrip().endswith(advice)
    returns = []
    for what in (run, policy):
        assert main(["evaluate", str(what), "--episodes", "1", "--json"]) == 0
        returns.append(json.loads(capsys.readouterr().out)["return_mean"])
    assert returns[0] == pytest.approx(returns[1], rel=1e-4)
    assert returns[0] == pytest.approx(float(rows(run / "evaluations.csv")[-1]["return_mean"]), rel=1e-4)
    best = ["evaluate", str(run), "--best", "--episodes", "1", "--json"]
    highest = max(float(row["return_mean"]) for row in rows(run / "evaluations.csv"))
    assert main([*best, "--seed", str(EVALUATION_SEED)]) == 0
    assert json.loads(capsys.readouterr().out)["return_mean"] == pytest.approx(highest, rel=1e-4)
    assert main(best) == 0  # other start states
    seen_by_best = capsys.readouterr().out
    assert json.loads(seen_by_best)["return_mean"] != pytest.approx(highest, rel=1e-4)
    assert main(["export", str(run), "--best", "-o", str(tmp_path / "best.onnx")]) == 0
    assert "Exporting the best policy of the training" in capsys.readouterr().out
    unseen = float(json.loads(seen_by_best)["return_mean"])
    assert main(["evaluate", str(tmp_path / "best.onnx"), "--episodes", "1", "--json"]) == 0  # the file says it, too
    assert json.loads(capsys.readouterr().out)["return_mean"] == pytest.approx(unseen, rel=1e-4)
    assert main(["evaluate", str(tmp_path / "typo"), "--best"]) == 2
    assert "leave it out" not in capsys.readouterr().err
    assert main(["evaluate", str(policy), "--best"]) == 2
    assert "leave it out" in capsys.readouterr().err
    assert main(["inspect", str(policy), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["distribution"] == ("none" if algorithm == "sac" else "gaussian")
    assert main(["inspect", str(run)]) == 0
    assert main(["report", str(run)]) == 0
    if algorithm == "sac":  # nothing to sample from, so no density to log
        assert main(["serve", str(policy), "--endpoint", "tcp://127.0.0.1:0", "--stochastic"]) == 2
        assert "--deterministic" in capsys.readouterr().err
    if algorithm == "ppo":
        (tmp_path / "logs").mkdir()
        assert main(["learn", str(run), "--logs", str(tmp_path / "logs")]) == 2
        assert "own rollouts only" in capsys.readouterr().err
