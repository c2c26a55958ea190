"""Discrete tasks through the command line's own code: train, resume exactly, evaluate, export."""

import importlib.util
import json

import pytest

from mpo_robot.cli.main import main
from mpo_robot.cli.settings import load_run_config
from mpo_robot.cli.train import make_trainer
from mpo_robot.config import dump_yaml
from mpo_robot.run_folder import RunFolder

CART_POLE = {
    "environment": {"task": "gymnasium:CartPole-v1"},
    "training": {
        "total_steps": 160,
        "warmup_steps": 40,
        "updates_per_step": 0.5,
        "evaluation_period": 80,
        "evaluation_episodes": 2,
        "log_period": 20,
        "checkpoint_period": 1000,
        "replay_capacity": 90,
        "white_noise_steps": 60,
    },
    "learner": {
        "batch_sequences": 4,
        "sequence_length": 3,
        "learning_rate_decay_steps": 30,  # auto would follow the shorter total of a part
        "policy": {"hidden_sizes": [16]},
        "critic": {"hidden_sizes": [16]},
    },
}
ATARI = CART_POLE | {
    "environment": {"task": "ale:Pong", "time_limit_s": 1.0, "atari": {"frame_stack": 2}},
    "training": CART_POLE["training"]
    | {"total_steps": 30, "warmup_steps": 18, "evaluation_period": 15, "evaluation_episodes": 1}
    | {"normalize_observations": False, "replay_bytes": True, "replay_capacity": 25, "log_period": 10},
    "learner": CART_POLE["learner"] | {"categorical": {"torso": "dqn", "observation_scale": 255}},
}


def start(folder, settings, overrides=()):
    return make_trainer(load_run_config(settings, overrides), RunFolder(folder))


def without_times(text):
    rows = [line.split(",") for line in text.splitlines()]
    kept = [index for index, name in enumerate(rows[0]) if "wall" not in name and "per_second" not in name]
    return [[row[index] for index in kept] for row in rows]


@pytest.mark.parametrize(
    ("settings", "stop_at"),
    [
        (CART_POLE, 97),
        (CART_POLE | {"training": CART_POLE["training"] | {"environments": 3}}, 99),
        (CART_POLE | {"learner": CART_POLE["learner"] | {"mpo": {"variational": "parametric"}}}, 97),
        pytest.param(
            ATARI, 23, marks=pytest.mark.skipif(importlib.util.find_spec("ale_py") is None, reason="needs ale_py")
        ),
    ],
    ids=["CartPole", "CartPole, three", "CartPole, parametric", "Pong"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, settings, stop_at):
    whole = start(tmp_path / "whole", settings)
    whole.run()
    assert whole.learner.learner_steps > 3
    start(tmp_path / "parts", settings, [f"training.total_steps={stop_at}"]).run()
    second = make_trainer(load_run_config(settings), RunFolder(tmp_path / "parts"), resume=True)
    assert second.environment_steps == stop_at
    second.run()
    left, right = whole.learner.state_dict(), second.learner.state_dict()
    for name in ("policy", "critic", "target_policy", "target_critic", "duals"):
        assert left[name].equal(right[name]), name
    metrics = [without_times((tmp_path / name / "metrics.csv").read_text()) for name in ("whole", "parts")]
    assert metrics[0] == metrics[1]
    assert "kl_policy_rel" in metrics[0][0]
    assert (whole.replay._rows == second.replay._rows).all()


def test_train_evaluate_export_and_what_refuses(tmp_path, capsys):
    config, run, policy = tmp_path / "small.yaml", tmp_path / "run", tmp_path / "policy.onnx"
    config.write_text(dump_yaml(load_run_config(CART_POLE)))
    assert main(["train", "--config", str(config), "--run", str(run), "--quiet"]) == 0
    assert main(["export", str(run), "-o", str(policy)]) == 0
    assert "serve" not in capsys.readouterr().out
    returns = []
    for source in (run, policy):
        assert main(["evaluate", str(source), "--episodes", "3", "--json"]) == 0
        returns.append(json.loads(capsys.readouterr().out.strip().splitlines()[-1])["return_mean"])
    assert returns[0] == returns[1] > 5.0
    assert main(["inspect", str(policy)]) == 0
    assert "choices" in capsys.readouterr().out
    assert main(["serve", str(policy)]) == 2
    assert "discrete actions" in capsys.readouterr().err
    assert main(["learn", str(run), "--logs", str(tmp_path)]) == 2
    assert "discrete actions" in capsys.readouterr().err
    assert main(["train", "--config", str(config), "--run", str(tmp_path / "x"), "learner.algorithm=sac"]) == 2
    assert "discrete" in capsys.readouterr().err
