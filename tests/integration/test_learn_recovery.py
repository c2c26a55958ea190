"""What `learn` owes is done by the next `learn`: updates after an ingest or a stop, policies not yet published."""

import os
import signal
import subprocess
import sys

import pytest

from deploy.registry import PolicyRegistry
from mpo_robot.cli import learn as learn_command
from mpo_robot.cli.main import main
from mpo_robot.specs import PolicySpec
from tests.support.learn_logs import QUICK, learner_of, write_log
from tests.support.tiny_run import SPEC, make_run


@pytest.fixture
def folder(tmp_path):
    return make_run(tmp_path / "run")


@pytest.fixture
def logs(tmp_path):
    return tmp_path / "logs"


def learn(folder, logs, *arguments):
    return main(["learn", str(folder.path), "--logs", str(logs), *QUICK, *arguments])


def test_what_was_ingested_is_learnt_from_by_the_next_learn(folder, logs, capsys):
    write_log(logs, "one")
    assert main(["ingest", str(folder.path), "--logs", str(logs)]) == 0
    assert "30 of them not learnt from yet" in capsys.readouterr().out
    assert learner_of(folder).unlearnt_steps == 30
    assert learn(folder, logs) == 0
    output = capsys.readouterr().out
    assert "3 updates on 30 new real steps" in output
    assert PolicyRegistry(folder.policies).current_version()[:12] in output
    assert learner_of(folder).unlearnt_steps == 0
    assert learn(folder, logs) == 0
    assert "no new logs: nothing learnt" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["learn", "ingest"])
def test_a_second_process_does_not_write_over_the_first(command, folder, logs, capsys):
    path = write_log(logs, "one")
    with folder.in_use():  # as a `learn --watch` or a training does
        assert main([command, str(folder.path), "--logs", str(logs)]) == 2
    assert "another process trains or learns in" in capsys.readouterr().err
    assert path.exists()
    assert not folder.learn_checkpoints.exists()


def test_steps_too_few_for_a_round_wait_across_processes(folder, logs, capsys):
    write_log(logs, "one")
    assert learn(folder, logs, "--min-new-steps", "50") == 0
    assert "30 real steps wait to be learnt from (--min-new-steps 50)" in capsys.readouterr().out
    write_log(logs, "two", seed=1)
    assert learn(folder, logs, "--min-new-steps", "50") == 0
    assert "3 updates on 60 new real steps" in capsys.readouterr().out


def test_a_registry_that_cannot_take_the_policy_is_found_before_training(folder, logs, tmp_path, capsys):
    write_log(logs, "one")
    (tmp_path / "file").write_text("in the way")
    assert learn(folder, logs, "--publish", str(tmp_path / "file")) == 2
    assert "cannot write policy registry" in capsys.readouterr().err
    other = make_run(tmp_path / "other", spec=PolicySpec(SPEC.observation, SPEC.command, 0.5))
    write_log(tmp_path / "other_logs", "theirs", spec=other.spec())
    assert learn(other, tmp_path / "other_logs", "--publish", str(tmp_path / "registry")) == 0
    assert learn(folder, logs, "--publish", str(tmp_path / "registry")) == 2
    assert "control_dt" in capsys.readouterr().err
    assert not folder.learn_checkpoints.exists()


@pytest.mark.parametrize("failure", [OSError("disk full"), SystemExit(9)], ids=["error", "death"])
def test_a_policy_that_was_not_published_is_published_by_the_next_learn(folder, logs, monkeypatch, capsys, failure):
    write_log(logs, "one")

    def fail(*_):
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(learn_command, "publish", fail)
        with pytest.raises(type(failure)):
            learn(folder, logs)
    registry = PolicyRegistry(folder.policies)
    assert registry.signature() is None
    assert learner_of(folder).unlearnt_steps == 0  # the learning itself was saved
    capsys.readouterr()
    assert learn(folder, logs) == 0
    output = capsys.readouterr().out
    assert f"published policy {registry.current_version()[:12]}" in output
    assert "nothing learnt" not in output
    assert learner_of(folder).learner.learner_steps == 3
    assert (folder.path / "learn.csv").read_text().count("\n") == 2  # one round


def test_a_parity_failure_is_made_good_for(folder, logs, monkeypatch):
    write_log(logs, "one")
    with monkeypatch.context() as patch:
        patch.setattr("mpo_robot.export.PARITY_TOLERANCE", -1.0)
        assert learn(folder, logs) == 2
        assert learn(folder, logs) == 2  # and never called a success meanwhile
    assert learn(folder, logs) == 0
    assert PolicyRegistry(folder.policies).current_version()


def test_what_was_learnt_without_publishing_can_be_published_later(folder, logs, tmp_path):
    write_log(logs, "one")
    assert learn(folder, logs, "--no-publish") == 0
    registry = PolicyRegistry(tmp_path / "registry")
    assert registry.signature() is None
    assert learn(folder, logs, "--publish", str(registry.directory)) == 0
    assert registry.current_version()


def test_a_policy_that_was_rolled_back_is_not_brought_back(folder, logs, capsys):
    for index, name in enumerate(("one", "two")):
        write_log(logs, name, seed=index)
        assert learn(folder, logs) == 0
    registry = PolicyRegistry(folder.policies)
    first = registry.rollback()
    assert learn(folder, logs) == 0
    assert registry.current_version() == first
    assert "no new logs" in capsys.readouterr().out


def test_an_unfinished_fresh_log_is_not_passed_over_in_silence(folder, logs, capsys):
    write_log(logs, "killed", close=False)
    assert learn(folder, logs) == 0
    output = capsys.readouterr().out
    assert "waiting for killed.mcap: it is not complete" in output
    assert "1 logs not taken in yet: run this again in a moment, or with --watch" in output
    assert "nothing learnt" not in output
    assert main(["ingest", str(folder.path), "--logs", str(logs)]) == 0
    output = capsys.readouterr().out
    assert "waiting for killed.mcap" in output
    assert "1 to wait for" in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_of_a_round_saves_and_ends_cleanly(folder, logs, number):
    write_log(logs, "one")
    command = [sys.executable, "-m", "mpo_robot.cli.main", "learn", str(folder.path), "--logs", str(logs), "--quiet"]
    long_round = ["min_updates=9000000", "max_updates=9000000", *(["--watch"] if number == signal.SIGTERM else [])]
    process = subprocess.Popen(
        [*command, *long_round],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "ingested one.mcap" in line:
                break
        process.send_signal(number)
        output = process.stdout.read()
        assert process.wait(timeout=60) == (0 if number == signal.SIGTERM else 130)  # with --watch this is how it ends
        process.stdout.close()
    finally:
        process.kill()
        process.wait()
    assert "the next `learn` does the rest" in output or "stopped" in output
    saved = learner_of(folder)
    assert list(saved.ledger) == ["one"]
    assert saved.unlearnt_steps > 0
    assert not (folder.policies / "current").exists()  # half a round is not a new policy
    assert learn(folder, logs) == 0
    assert learner_of(folder).unlearnt_steps == 0
    assert PolicyRegistry(folder.policies).current_version()


def test_sigterm_ends_a_waiting_watch(folder, logs):
    logs.mkdir()
    command = [sys.executable, "-m", "mpo_robot.cli.main", "learn", str(folder.path), "--logs", str(logs), "--watch"]
    process = subprocess.Popen(
        [*command, "--poll", "3600"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        assert "watching" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
    assert "stopped" in output
