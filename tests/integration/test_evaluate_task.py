"""`mpo-robot evaluate --task`: what stays of the training's environment."""

import json

from mpo_robot.cli.main import main

CONFIG = """
environment: {task: "dm_control:cartpole-swingup", time_limit_s: 0.3, action_repeat: 3}
training: {total_steps: 60, warmup_steps: 20, updates_per_step: 0.1, evaluation_episodes: 1}
learner: {policy: {hidden_sizes: [8]}, critic: {hidden_sizes: [8]}, batch_sequences: 4}
"""


def test_the_action_repeat_and_the_time_limit_stay(tmp_path, capsys):
    run, config = tmp_path / "run", tmp_path / "config.yaml"
    config.write_text(CONFIG)
    assert main(["train", "--config", str(config), "--run", str(run)]) == 0
    capsys.readouterr()
    results = []
    for task in ([], ["--task", "dm_control:cartpole-swingup"], ["--task", "dm_control:cartpole-balance"]):
        assert main(["evaluate", str(run), "--episodes", "1", "--json", *task]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0] == results[1]
    assert results[2]["task"] == "dm_control:cartpole-balance"
    assert results[2]["length_mean"] == results[0]["length_mean"] == 10
    assert results[2]["return_mean"] != results[0]["return_mean"]
    assert main(["evaluate", str(tmp_path / "nope")]) == 2
    assert "there is no" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--task", "dm_control:walker-walk"]) == 2
    assert "walker-walk" in capsys.readouterr().err
