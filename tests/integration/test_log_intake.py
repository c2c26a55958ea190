"""What becomes of log files: damaged, copied, renamed, without rewards, too long for the settings."""

import math
import shutil

import numpy as np
import pytest
import torch

from mpo_robot.checkpoint import list_checkpoints
from mpo_robot.cli.main import main
from mpo_robot.continual import ContinualLearner
from mpo_robot.rewards import RewardHook
from tests.support.learn_logs import learner_of, take_in, write_log
from tests.support.records import make_records
from tests.support.tiny_run import SPEC, make_run


@pytest.fixture
def folder(tmp_path):
    return make_run(tmp_path / "run")


@pytest.fixture
def logs(tmp_path):
    return tmp_path / "logs"


def ingest(folder, logs, *settings):
    return main(["ingest", str(folder.path), "--logs", str(logs), *settings])


def test_one_damaged_byte_costs_one_step_and_the_gap_starts_a_new_part(folder, logs):
    path = write_log(logs, "one", steps=40, one_by_one=True)
    data = bytearray(path.read_bytes())
    data[data.index(b'"step_index":20,') + 30] ^= 1
    path.write_bytes(data)
    learner, lines = learner_of(folder), []
    intake = take_in(learner, logs, lines)
    assert (intake.logs, intake.steps) == (1, 39)
    assert "damaged chunk record (crc" in lines[0]
    assert "damaged chunk" in learner.ledger["one"]["problem"]
    rows = learner.real_replay._rows[:41]  # 20 steps and their final state, 19 and theirs
    records = make_records(40, SPEC, episode_id="one")
    assert rows[20][:3].tobytes() == records[19].next_observation.tobytes()
    assert rows[21][:3].tobytes() == records[21].observation.tobytes()


def test_a_step_whose_bytes_were_copied_inside_its_log_counts_once(folder, logs):
    path = write_log(logs, "one", steps=40, one_by_one=True)
    data = path.read_bytes()
    start, end = (data.index(b'"step_index":%d,' % step) for step in (20, 23))
    path.write_bytes(data[:end] + data[start:])  # steps 21 and 22 whole, two others torn into one
    learner, lines = learner_of(folder), []
    intake = take_in(learner, logs, lines)
    assert intake.steps in (39, 40)  # the torn one may have been a step's only copy
    assert "messages that are there more than once: " in lines[0]
    assert learner.ledger["one"]["steps"] == intake.steps


def test_a_copy_under_another_name_is_not_learnt_from_twice(folder, logs, capsys):
    path = write_log(logs, "one")
    shutil.copy(path, logs / "backup.mcap")
    assert ingest(folder, logs) == 0
    output = capsys.readouterr().out
    assert "1 logs ingested (30 steps)" in output
    assert "skipped one.mcap: its episode one was ingested before, from backup.mcap" in output
    shutil.copy(path, logs / "later_copy.mcap")
    assert ingest(folder, logs) == 0
    assert "0 logs ingested (0 steps)" in capsys.readouterr().out
    assert list(learner_of(folder).ledger) == ["one"]


def test_two_episodes_under_one_file_name_are_two(folder, tmp_path):
    learner = learner_of(folder)
    for name in ("a", "b"):
        path = write_log(tmp_path / name, name)
        path.rename(path.with_name("newest.mcap"))
        assert take_in(learner, tmp_path / name).logs == 1
    assert list(learner.ledger) == ["a", "b"]


def test_a_ledger_of_file_names_is_still_understood(folder, logs, monkeypatch):
    write_log(logs, "one")
    write_log(logs, "two").rename(logs / "renamed.mcap")
    learner = learner_of(folder)
    assert take_in(learner, logs).logs == 2
    learner.save()
    # As version 0.1 saved it.
    state_file = list_checkpoints(folder.learn_checkpoints)[-1] / "state.pt"
    state = torch.load(state_file, weights_only=True)
    for key in ("legacy_names", "unlearnt_steps", "last_round"):
        del state[key]
    state["ledger"] = ["one.mcap", "renamed.mcap"]
    torch.save(state, state_file)
    shutil.copy(logs / "one.mcap", logs / "copy.mcap")
    write_log(logs, "three")
    again = learner_of(folder)
    assert take_in(again, logs).logs == 1
    again.save()
    final = learner_of(folder)
    assert (list(final.ledger), final.legacy_names) == (["three"], {"one.mcap", "renamed.mcap"})
    assert take_in(final, logs).logs == 0


def test_a_setting_that_does_not_fit_condemns_no_log_and_takes_none_in_by_half(folder, logs, capsys):
    write_log(logs, "good", steps=40, without=(5,))  # parts of 5 and 34 steps
    assert ingest(folder, logs, "real_capacity=20") == 2
    error = capsys.readouterr().err
    assert "part of 34 steps" in error
    assert "real_capacity=35 or more" in error
    assert not (logs / "rejected").exists()
    assert not list_checkpoints(folder.learn_checkpoints)
    learner = learner_of(folder, real_capacity=20)
    with pytest.raises(Exception, match="real_capacity=35"):
        take_in(learner, logs)
    assert len(learner.real_replay) == 0
    assert ingest(folder, logs, "real_capacity=35") == 0
    assert learner_of(folder, real_capacity=35).real_steps == 39


def test_the_capacity_is_remembered_and_may_change(folder, logs, capsys):
    write_log(logs, "one")
    assert ingest(folder, logs, "real_capacity=2000") == 0
    write_log(logs, "two", seed=1)
    assert ingest(folder, logs) == 0
    assert "real_capacity: 2000" in (folder.path / "learn" / "config.yaml").read_text()
    write_log(logs, "three", seed=2)
    assert ingest(folder, logs, "real_capacity=40") == 0
    assert "has seen 90 steps" in capsys.readouterr().out
    learner = learner_of(folder, real_capacity=40)
    assert len(learner.real_replay) == 40
    newest = make_records(30, SPEC, episode_id="three", seed=2)[-1].next_observation
    assert learner.real_replay._rows[learner.real_replay._next - 1][:3].tobytes() == newest.tobytes()


def test_a_robot_without_rewards_is_told_what_to_do(folder, logs, tmp_path, monkeypatch, capsys):
    write_log(logs, "blind", unrewarded=tuple(range(30)))
    assert ingest(folder, logs) == 0
    assert "0 logs ingested (0 steps), 1 set aside" in capsys.readouterr().out
    reason = (logs / "rejected" / "blind.reason.txt").read_text()
    assert "reward=package.module:function" in reason
    # Doing it:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bench_rewards_of_this_test.py").write_text(
        "def upright(observations, actions, next_observations, extras):\n"
        "    return 1.0 - abs(next_observations[:, 0])\n"
    )
    (logs / "rejected" / "blind.mcap").rename(logs / "blind.mcap")
    assert ingest(folder, logs, "reward=bench_rewards_of_this_test:upright") == 0
    learner = learner_of(folder)
    states = [record.next_observation[0] for record in make_records(30, SPEC, episode_id="blind")]
    rewards = learner.real_replay._rows[:30, SPEC.observation_size + SPEC.action_size]
    np.testing.assert_allclose(rewards, 1.0 - np.abs(states), rtol=1e-6)
    write_log(logs, "next", unrewarded=tuple(range(30)), seed=1)  # the function is remembered
    assert ingest(folder, logs) == 0
    assert "1 logs ingested (30 steps)" in capsys.readouterr().out


def test_a_single_step_without_reward_is_left_out_and_counted(folder, logs):
    write_log(logs, "one", unrewarded=(7, 20))
    learner, lines = learner_of(folder), []
    assert take_in(learner, logs, lines).steps == 28
    assert "2 steps without a reward left out" in lines[0]
    assert len(learner.real_replay) == 28 + 3


def test_a_wrong_reward_function_ends_the_command_and_condemns_no_log(folder, logs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong_rewards_of_this_test.py").write_text("def wrong(o, a, n, extras):\n    return o.no_such_thing\n")
    write_log(logs, "blind", unrewarded=tuple(range(30)))
    assert ingest(folder, logs, "reward=wrong_rewards_of_this_test:wrong") == 2
    assert "wrong_rewards_of_this_test:wrong failed on episode blind" in capsys.readouterr().err
    assert (logs / "blind.mcap").exists()


def test_a_reward_function_that_knows_nothing_is_named_in_the_reason(folder, logs):
    write_log(logs, "blind", unrewarded=tuple(range(30)))
    hook = RewardHook("m:unknown", lambda o, a, n, extras: np.full(len(o), math.nan))
    (rejected,) = take_in(learner_of(folder), logs, reward=hook).rejected
    assert "m:unknown knows none" in rejected.with_suffix(".reason.txt").read_text()


def test_a_directory_that_does_not_let_go_of_a_bad_log_is_an_error_of_its_own(folder, logs, capsys):
    logs.mkdir()
    (logs / "garbage.mcap").write_bytes(b"this is no log")
    (logs / "rejected").write_text("in the way")
    with pytest.raises(Exception, match="cannot set aside"):
        take_in(learner_of(folder), logs)
    assert (logs / "garbage.mcap").exists()


def test_a_copy_that_has_only_just_begun_is_waited_for(folder, logs):
    data = write_log(logs, "one").read_bytes()
    (logs / "one.mcap").write_bytes(data[:200])
    learner, lines = learner_of(folder), []
    assert take_in(learner, logs, lines, later=0.0).waiting == (logs / "one.mcap",)
    assert "its beginning cannot be read" in lines[0]
    (logs / "one.mcap").write_bytes(data)
    assert take_in(learner, logs, later=0.0).steps == 30


def test_known_files_are_not_read_again_in_every_pass(folder, logs, monkeypatch):
    from mpo_robot.cli import log_intake

    write_log(logs, "one")
    learner: ContinualLearner = learner_of(folder)
    intake = log_intake.LogIntake(learner, logs, say=lambda _: None)
    assert intake.take_in().logs == 1
    monkeypatch.setattr(log_intake, "read_head", lambda path: pytest.fail("read again"))
    assert intake.take_in().logs == 0
