"""`mpo-robot log export`, read back by the libraries themselves."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from deploy.log_writer import EpisodeLogWriter
from mpo_robot.cli.log_export import read_recording
from mpo_robot.cli.log_lerobot import features, frame, frames_per_second
from mpo_robot.cli.main import main
from mpo_robot.episode import Source, StepRecord, unbroken_runs
from mpo_robot.errors import ConfigError
from tests.support.records import SPEC, make_records


def write_log(directory: Path, name: str, count: int = 6, without: tuple[int, ...] = ()) -> list[StepRecord]:
    records = make_records(count, SPEC, name)
    records[1] = dataclasses.replace(
        records[1], source=Source.FALLBACK, policy_version="", behavior_log_prob=float("nan"), action_modified=True
    )
    writer = EpisodeLogWriter(directory, SPEC, name, robot="bench")
    for record in records:
        if record.step_index not in without:
            writer.append(record)
    writer.close()
    return records


def export(directory: Path, to: str, *arguments: str) -> int:
    return main(["log", "export", str(directory / "logs"), "--to", to, "-o", str(directory / "out"), *arguments])


def test_gap_starts_a_new_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_log(tmp_path / "logs", "a", without=(2,))
    recording = read_recording([tmp_path / "logs"])
    assert [[record.step_index for record in run] for run in recording.runs] == [[0, 1], [3, 4, 5]]
    assert recording.robot == "bench"
    assert "a.mcap: 2 unbroken runs" in capsys.readouterr().out
    assert unbroken_runs([]) == []


def test_minari_reads_back_what_was_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    minari = pytest.importorskip("minari", reason="the extra `minari` is not installed")
    whole = write_log(tmp_path / "logs", "a")
    write_log(tmp_path / "logs", "b", without=(2,))
    assert export(tmp_path, "minari", "--name", "arm/reach-v0") == 0
    assert "3 episodes, 11 steps" in capsys.readouterr().out
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "out"))
    dataset = minari.load_dataset("arm/reach-v0")
    assert dataset.total_episodes == 3
    assert dataset.total_steps == 11
    first, cut, rest = dataset.iterate_episodes()
    states = np.stack([*(record.observation for record in whole), whole[-1].next_observation])
    np.testing.assert_array_equal(first.observations, states)
    np.testing.assert_array_equal(first.actions, [record.sent_action for record in whole])
    np.testing.assert_array_equal(first.rewards, [record.reward for record in whole])
    assert first.terminations.tolist() == [False] * 6
    assert first.truncations.tolist() == [False] * 5 + [True]
    assert cut.truncations.tolist() == [False, True]
    assert rest.infos["step_index"].tolist() == [3, 4, 5, 0]
    log_probs = [record.behavior_log_prob for record in whole] + [np.nan]
    np.testing.assert_array_equal(first.infos["behavior_log_prob"], log_probs)
    np.testing.assert_array_equal(first.infos["policy_action"][:6], [record.policy_action for record in whole])
    about = json.loads(dataset.storage.metadata["mpo_robot"])
    assert about["spec_hash"] == SPEC.spec_hash
    names = [about["policy_versions"][index] for index in first.infos["policy_version"][:6]]
    assert names == [record.policy_version for record in whole]
    sources = [about["sources"][index] for index in first.infos["source"][:6]]
    assert sources == [record.source.value for record in whole]
    assert dataset.action_space.shape == (2,)
    assert dataset.observation_space.contains(first.observations[0])


def test_minari_dataset_is_not_overwritten_and_its_name_is_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("minari", reason="the extra `minari` is not installed")
    write_log(tmp_path / "logs", "a")
    assert export(tmp_path, "minari") == 0
    assert export(tmp_path, "minari") == 2
    assert "exists already" in capsys.readouterr().err
    assert export(tmp_path, "minari", "--name", "not a name!") == 2
    assert "Minari does not take 'not a name!'" in capsys.readouterr().err


@pytest.mark.parametrize(("to", "package"), [("minari", "minari"), ("lerobot", "lerobot")])
def test_missing_library_is_named_with_what_to_do(
    tmp_path: Path, to: str, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_log(tmp_path / "logs", "a")
    monkeypatch.setitem(sys.modules, package, None)
    assert export(tmp_path, to) == 2
    assert f"mpo-robot[{package}]" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")  # LeRobot's own
def test_lerobot_reads_back_what_was_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = pytest.importorskip(
        "lerobot.datasets.lerobot_dataset",
        reason="lerobot needs other versions of torch than a training: it is tested in an environment of its own",
    )
    whole = write_log(tmp_path / "logs", "a")
    write_log(tmp_path / "logs", "b", without=(2,))
    assert export(tmp_path, "lerobot", "--task", "reach") == 0
    assert "3 episodes, 11 steps" in capsys.readouterr().out
    dataset = module.LeRobotDataset("mpo_robot/episodes-v0", root=tmp_path / "out")
    assert (dataset.num_episodes, dataset.num_frames, dataset.fps) == (3, 11, 50)
    assert dataset.meta.info["codebase_version"] == "v3.0"
    assert dataset.features["observation.state"]["names"] == ["state[0]", "state[1]", "state[2]"]
    for index, record in enumerate(whole):
        item = dataset[index]
        np.testing.assert_array_equal(item["observation.state"].numpy(), record.observation)
        np.testing.assert_array_equal(item["action"].numpy(), record.applied_command)
        assert np.float32(item["next.reward"].item()) == np.float32(record.reward)
        assert bool(item["trace_valid"].item()) is record.trace_valid
        assert item["policy_version"] == record.policy_version
        assert item["source"] == record.source.value
        assert item["task"] == "reach"
        assert item["timestamp"].item() == pytest.approx(index * 0.02)
    assert [bool(dataset[index]["next.truncated"].item()) for index in range(11)] == [
        index in (5, 7, 10) for index in range(11)
    ]


def test_frames_have_the_features_of_the_dataset() -> None:
    for record in make_records(2):
        for with_reward in (True, False):
            columns = features(SPEC, with_reward)
            values = frame(record, True, with_reward)
            assert columns.keys() == values.keys()
            for name, value in values.items():
                if columns[name]["dtype"] != "string":
                    assert value.dtype == columns[name]["dtype"]
                    assert value.shape == columns[name]["shape"]


def test_rate_that_lerobot_cannot_express_is_refused() -> None:
    assert frames_per_second(SPEC) == 50
    assert frames_per_second(dataclasses.replace(SPEC, control_dt=1 / 30)) == 30
    with pytest.raises(ConfigError, match=r"22\.22 Hz"):
        frames_per_second(dataclasses.replace(SPEC, control_dt=0.045))


def test_logs_of_two_robots_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_log(tmp_path / "logs", "a")
    other = dataclasses.replace(SPEC, control_dt=0.5)
    writer = EpisodeLogWriter(tmp_path / "logs", other, "b")
    for record in make_records(2, other, "b"):
        writer.append(record)
    writer.close()
    assert export(tmp_path, "minari") == 2
    assert "control_dt" in capsys.readouterr().err
