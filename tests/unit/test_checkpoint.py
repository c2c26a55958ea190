"""Checkpoints are whole or invisible, old ones go, and nothing in them is executed."""

import os
import pickle

import numpy as np
import pytest
import torch

from mpo_robot.checkpoint import list_checkpoints, load_checkpoint, rng_from_json, rng_to_json, save_checkpoint
from mpo_robot.errors import ConfigError


def save(directory, step, value=1.0):
    return save_checkpoint(directory, step, {"value": torch.tensor(value)}, lambda path: path.write_bytes(b"replay"))


def test_the_newest_of_two_kept_checkpoints_is_loaded(tmp_path):
    for step in (20, 100, 3000):
        save(tmp_path, step, float(step))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_000000000100", "step_000000003000"]
    state, replay = load_checkpoint(tmp_path)
    assert state["value"].item() == 3000.0
    assert replay.read_bytes() == b"replay"


@pytest.mark.parametrize("failing", ["replay", "rename"])
def test_a_crash_while_writing_leaves_the_earlier_checkpoint(tmp_path, monkeypatch, failing):
    save(tmp_path, 1, 1.0)

    def crash(*_):
        raise KeyboardInterrupt

    if failing == "rename":
        monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 2, {}, crash if failing == "replay" else lambda path: path.write_bytes(b""))
    monkeypatch.undo()
    assert load_checkpoint(tmp_path)[0]["value"].item() == 1.0
    save(tmp_path, 2, 2.0)  # the remains of the crash are no obstacle
    assert load_checkpoint(tmp_path)[0]["value"].item() == 2.0


def test_of_the_same_step_saved_again_the_newest_counts(tmp_path):
    for value in range(1, 13):
        save(tmp_path, 5, float(value))
        assert load_checkpoint(tmp_path)[0]["value"].item() == value
    assert len(list_checkpoints(tmp_path)) == 2
    save(tmp_path, 6, 99.0)
    assert load_checkpoint(tmp_path)[0]["value"].item() == 99.0


def test_a_crash_while_the_same_step_is_saved_again_leaves_the_first(tmp_path, monkeypatch):
    save(tmp_path, 5, 1.0)

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 5, 2.0)
    monkeypatch.undo()
    assert load_checkpoint(tmp_path)[0]["value"].item() == 1.0


def test_a_half_deleted_checkpoint_does_not_count(tmp_path):
    save(tmp_path, 1, 1.0)
    (save(tmp_path, 2, 2.0) / "replay.npz").unlink()
    assert load_checkpoint(tmp_path)[0]["value"].item() == 1.0
    save(tmp_path, 2, 3.0)
    assert load_checkpoint(tmp_path)[0]["value"].item() == 3.0


def test_no_checkpoint_and_a_damaged_one_are_clear_errors(tmp_path):
    with pytest.raises(ConfigError, match="no checkpoint"):
        load_checkpoint(tmp_path)
    (save(tmp_path, 1) / "state.pt").write_bytes(b"garbage")
    with pytest.raises(ConfigError, match="cannot read checkpoint"):
        load_checkpoint(tmp_path)


def load_bytes(path):
    """Stands in for a replay's `load`."""
    if path.read_bytes() != b"replay":
        raise ValueError("not a replay")


@pytest.mark.parametrize("damaged", ["state.pt", "replay.npz"])
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(tmp_path, caplog, damaged):
    save(tmp_path, 1, 1.0)
    newest = save(tmp_path, 2, 2.0)
    assert load_checkpoint(tmp_path, load_bytes)[0]["value"].item() == 2.0
    assert not caplog.records
    (newest / damaged).write_bytes(b"garbage")
    state, replay = load_checkpoint(tmp_path, load_bytes)
    assert state["value"].item() == 1.0
    assert replay == tmp_path / "step_000000000001" / "replay.npz"
    assert str(newest) in caplog.text
    assert "step_000000000001" in caplog.text


def test_without_need_of_the_replay_its_damage_does_not_matter(tmp_path, caplog):
    save(tmp_path, 1, 1.0)
    (save(tmp_path, 2, 2.0) / "replay.npz").write_bytes(b"garbage")
    assert load_checkpoint(tmp_path)[0]["value"].item() == 2.0
    assert not caplog.records


def test_a_checkpoint_that_was_passed_over_is_set_aside_by_the_next_save(tmp_path):
    save(tmp_path, 10, 1.0)
    (save(tmp_path, 20, 2.0) / "state.pt").write_bytes(b"garbage")
    save(tmp_path, 15, 3.0)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_000000000010", "step_000000000015"]
    assert load_checkpoint(tmp_path)[0]["value"].item() == 3.0
    assert len(list(tmp_path.glob("unreadable_step_000000000020*/state.pt"))) == 1


def test_when_no_checkpoint_is_readable_all_are_named(tmp_path):
    paths = [save(tmp_path, step) for step in (1, 2)]
    for path in paths:
        (path / "state.pt").write_bytes(b"garbage")
    with pytest.raises(ConfigError, match="remove or move these folders") as caught:
        load_checkpoint(tmp_path)
    assert all(str(path) in str(caught.value) for path in paths)


def test_a_replay_that_does_not_fit_the_run_is_no_damage(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)

    def refuse(path):
        raise ConfigError("another capacity")

    with pytest.raises(ConfigError, match="another capacity"):
        load_checkpoint(tmp_path, refuse)


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("bomb_went_off",))


def test_code_in_a_checkpoint_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path, 1)
    torch.save({"value": Bomb()}, path / "state.pt")
    with pytest.raises(ConfigError, match="cannot read checkpoint"):
        load_checkpoint(tmp_path)
    (path / "state.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ConfigError, match=r"cannot read checkpoint .*damaged, or not written by this program"):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "bomb_went_off").exists()


def test_a_generator_continues_exactly():
    rng = np.random.default_rng(3)
    rng.standard_normal(7)
    other = rng_from_json(rng_to_json(rng))
    assert np.array_equal(rng.standard_normal(5), other.standard_normal(5))
