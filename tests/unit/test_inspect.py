import json
import os
import re
import subprocess
import sys

import onnx
import pytest

from deploy.registry import PolicyRegistry
from mpo_robot.cli.facts import render
from mpo_robot.cli.main import main
from tests.support.onnx_files import write_linear_policy
from tests.support.records import SPEC
from tests.support.run_folders import episode_records, make_run, write_log


def inspect_json(capsys, path):
    assert main(["inspect", str(path), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def inspect_text(capsys, path):
    assert main(["inspect", str(path)]) == 0
    return capsys.readouterr().out


@pytest.fixture
def policy(tmp_path):
    return write_linear_policy(
        tmp_path / "policy.onnx",
        SPEC,
        metadata={"parity": {"max_abs_error": 2e-7, "observations": 1000}, "training": {"task": "walk", "seed": 3}},
    )


def test_policy_as_json(policy, capsys):
    facts = inspect_json(capsys, policy)
    assert facts["kind"] == "policy"
    assert facts["spec_hash"] == SPEC.spec_hash
    assert len(facts["policy_version"]) == len(facts["graph_hash"]) == 64
    assert facts["parity"] == {"max_abs_error": 2e-7, "observations": 1000}
    assert facts["training"] == {"task": "walk", "seed": 3}
    assert facts["control_dt"] == 0.02
    assert facts["observation"] == [
        {"index": "0-2", "term": "state", "size": 3, "unit": "rad", "low": None, "high": None}
    ]
    assert facts["command"] == [{"index": "0-1", "term": "motor", "size": 2, "unit": "N m", "low": -2.0, "high": 4.0}]
    assert facts["compatibility_keys"] is None


def test_policy_as_text(policy, capsys):
    text = inspect_text(capsys, policy)
    assert f"spec_hash           {SPEC.spec_hash}" in text
    assert "rate                50 Hz" in text
    assert "index  term   size  unit  low  high" in text
    assert "0-1    motor  2     N m   -2   4" in text


def test_keys_for_other_tools_are_shown(policy, capsys):
    model = onnx.load(policy)
    model.metadata_props.add(key="joint_names", value="hip,knee")
    onnx.save(model, policy)
    assert inspect_json(capsys, policy)["compatibility_keys"] == {"joint_names": "hip,knee"}


def test_log(tmp_path, capsys):
    records = episode_records("ep-1", steps=20, reward=2.0, misses=3)
    facts = inspect_json(capsys, write_log(tmp_path, records, {"overruns": 4}))
    assert facts["kind"] == "log"
    assert (facts["episode_id"], facts["robot"], facts["state"]) == ("ep-1", "bench-arm", "complete")
    assert (facts["steps"], facts["duration_s"], facts["end"], facts["return"]) == (20, 0.4, "truncated", 40.0)
    assert facts["sources"] == {"fallback": 3, "policy": 17}
    assert (facts["deadline_misses"], facts["modified_commands"], facts["steps_with_importance_ratio"]) == (3, 3, 17)
    assert facts["policy_versions"] == [{"policy_version": "a" * 64, "steps": 20}]
    assert facts["latency_us"]["p50"] == 111.0
    assert facts["latency_us"]["max"] == 119.0
    assert facts["statistics"]["overruns"] == 4
    assert (facts["gaps"], facts["steps_kept_apart"], facts["steps_without_reward"]) == (0, 0, 0)


def test_a_log_whose_writer_was_killed(tmp_path, capsys):
    facts = inspect_json(capsys, write_log(tmp_path, episode_records("ep-1", steps=40), cut_off=True))
    assert facts["state"].startswith("recovered: ")
    assert 0 <= facts["steps"] < 40
    assert facts["end"] == "unfinished"
    assert facts["statistics"] is None


def test_folder_of_logs(tmp_path, capsys):
    write_log(tmp_path, episode_records("ep-1", steps=10, reward=1.0))
    write_log(tmp_path, episode_records("ep-2", steps=10, reward=3.0, misses=2))
    (tmp_path / "ep-3.mcap").write_bytes(b"\x89MCAP0\r\nrubbish")
    rows = inspect_json(capsys, tmp_path)["logs"]
    assert [(row["log"], row.get("return")) for row in rows] == [
        ("ep-1.mcap", 10.0),
        ("ep-2.mcap", 30.0),
        ("ep-3.mcap", None),
    ]
    assert rows[1]["missed"] == 2
    assert rows[2]["state"].startswith("unreadable: ")
    text = inspect_text(capsys, tmp_path)
    assert "ep-2.mcap  10     30" in text


def test_run(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    facts = inspect_json(capsys, run)
    assert (facts["kind"], facts["task"], facts["seed"]) == ("run", "dm_control:walker-walk", 3)
    assert facts["progress"] == {"environment_steps": 6000, "learner_steps": 2800, "wall_time_s": 61.5}
    assert facts["last_evaluation"]["return_mean"] == 299.75
    assert facts["best_return"] == 320.25
    assert facts["last_metrics"]["q_mean"] == 11
    assert facts["checkpoints"] == ["step_000000004000", "step_000000006000"]
    assert facts["policies"] is None
    assert facts["interface"]["spec_hash"] == SPEC.spec_hash
    assert facts["versions"] == {"torch": "2.13.0"}
    assert facts["config"]["learner"] == {"discount": 0.99}
    text = inspect_text(capsys, run)
    assert re.search(r"best_return +320.25\n", text)
    assert "discount  0.99" in text


def test_the_step_of_the_newest_checkpoint_is_shown(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    (run / "checkpoints" / "step_000000006100_000001").mkdir()
    (run / "checkpoints" / "step_000000006100_000001" / "state.pt").touch()
    facts = inspect_json(capsys, run)
    assert facts["checkpoint_steps"] == facts["progress"]["environment_steps"] == 6100
    assert facts["progress"]["learner_steps"] == 2800


def test_a_run_that_has_only_begun(tmp_path, capsys):
    run = make_run(tmp_path / "run", metrics="environment_steps,learner_steps\n", evaluations=None)
    (run / "spec.json").unlink()
    facts = inspect_json(capsys, run)
    assert facts["progress"] == {"environment_steps": 6000}  # of the checkpoint
    assert facts["last_evaluation"] is facts["best_return"] is facts["interface"] is None


def test_registry_and_the_policies_of_a_run(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    registry = PolicyRegistry(run / "policies")
    versions = [
        registry.publish(write_linear_policy(tmp_path / f"{bias}.onnx", SPEC, bias=bias)) for bias in (0.0, 0.1, 0.2)
    ]
    expected = {
        "current": versions[2],
        "current_file_present": True,
        "previous": [versions[1], versions[0]],
        "stored_versions": 3,
    }
    facts = inspect_json(capsys, run / "policies")
    assert facts["kind"] == "registry"
    assert expected.items() <= facts.items()
    assert expected.items() <= inspect_json(capsys, run)["policies"].items()
    assert [row["version"] for row in facts["versions"]] == versions[::-1]
    (run / "policies" / "current").write_text("rubbish")
    assert inspect_json(capsys, run)["policies"].startswith("unreadable: ")


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("none.onnx", None, "there is no"),
        ("notes.txt", b"hello", "is none of: policy (.onnx), episode log (.mcap), run folder, folder of logs"),
        ("bad.onnx", b"hello", "is not an ONNX policy"),
        ("bad.mcap", b"hello", "is not an MCAP file"),
        ("short.mcap", b"\x89MCAP0\r\n", "holds no episode description"),
    ],
)
def test_bad_paths(tmp_path, capsys, name, content, text):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main(["inspect", str(tmp_path / name)]) == 2
    captured = capsys.readouterr()
    assert text in captured.err
    assert name in captured.err
    assert captured.out == ""


def test_a_folder_of_nothing_known(tmp_path, capsys):
    assert main(["inspect", str(tmp_path)]) == 2
    assert "is no run folder (no config.yaml), no policy registry, and holds no .mcap logs" in capsys.readouterr().err


def test_a_damaged_run_is_named(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    (run / "run.json").write_text("{")
    assert main(["inspect", str(run)]) == 2
    assert "run.json" in capsys.readouterr().err


def test_layout_of_facts():
    facts = {
        "name": "arm",
        "steps": 12345,
        "rate": 0.123456789,
        "flag": True,
        "nothing": None,
        "empty": {},
        "sizes": [256, 256],
        "part": {"a": 1, "long_name": 2.0},
        "table": [{"x": 1, "y": "b"}, {"x": 100, "z": None}],
    }
    assert render(facts) == (
        "  name     arm\n"
        "  steps    12,345\n"
        "  rate     0.123457\n"
        "  flag     yes\n"
        "  nothing  -\n"
        "  empty    -\n"
        "  sizes    256, 256\n"
        "  part\n"
        "    a          1\n"
        "    long_name  2\n"
        "  table\n"
        "    x    y  z\n"
        "    1    b\n"
        "    100     -"
    )


def test_a_reader_that_stops_early_is_no_error(tmp_path):
    run = make_run(tmp_path / "run")
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "mpo_robot.cli.main", "inspect", str(run)]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
