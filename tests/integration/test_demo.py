"""The whole loop in real processes: `mpo-robot demo`, with a training far too short to learn anything."""

import json

import pytest

from deploy.log_reader import read_log
from deploy.registry import PolicyRegistry
from mpo_robot.cli.main import main

SHORT = [
    "training.total_steps=600",
    "training.warmup_steps=300",
    "training.evaluation_period=600",
    "training.evaluation_episodes=1",
    "training.checkpoint_period=600",
    "learner.policy.hidden_sizes=[32]",
    "learner.critic.hidden_sizes=[32]",
]


@pytest.mark.timeout(400)
def test_the_demo_closes_the_loop_and_its_numbers_come_from_its_own_logs(tmp_path, capfd):
    folder = tmp_path / "demo"
    options = ["--rounds", "1", "--episodes", "2", "--evaluation-episodes", "1"]
    assert main(["demo", "--dir", str(folder), *options, *SHORT]) == 0
    result = json.loads((folder / "demo.json").read_text())
    collected = [read_log(path) for path in sorted((folder / "logs_collected").glob("*.mcap"))]
    learned = [read_log(path) for path in (folder / "logs_learned").glob("*.mcap")]
    assert [log.complete for log in collected] == [True, True]
    assert result["real_steps"] == sum(len(log.records) for log in collected) == 1000
    assert result["learned_return"]["mean"] == pytest.approx(sum(record.reward for record in learned[0].records))
    # Every step of the repeated actions counts, as it does for the updates: half of one per step from 300 to 600.
    evaluation = (folder / "run" / "evaluations.csv").read_text().splitlines()[1].split(",")
    assert evaluation[:2] == ["600", "151"]
    # What acted before and after learning are two versions, and the registry can go back to the first.
    registry = PolicyRegistry(folder / "policy.onnx.versions")
    first = {record.policy_version for record in collected[0].records}
    assert {record.policy_version for record in learned[0].records} == {registry.current_version()}
    assert first == set(registry.previous_versions())
    assert all(record.spec_hash == learned[0].spec.spec_hash for record in learned[0].records)
    assert "src=" in (folder / "report.html").read_text() or "<svg" in (folder / "report.html").read_text()
    output = capfd.readouterr().out
    assert "return on the mismatched robot, zero-shot" in output


def test_the_demo_never_clears_a_folder_it_did_not_make(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious.txt").write_text("mine")
    assert main(["demo", "--dir", str(tmp_path)]) == 2
    assert "was not made by the demo" in capsys.readouterr().err
    assert (tmp_path / "run" / "precious.txt").read_text() == "mine"
