"""The best policy of a run: kept at each new highest evaluation, whatever happens to the file."""

import numpy as np
import pytest
import torch

from mpo_robot.best_policy import BestPolicy, load_best_policy
from mpo_robot.errors import ConfigError
from mpo_robot.evaluation import Evaluation


def evaluation(*returns):
    return Evaluation(np.array(returns, np.float64), np.full(len(returns), 10))


def offer(best, step, *returns):
    best.offer(evaluation(*returns), step, lambda: {"learner": {"weight": torch.tensor(float(step))}})


def test_only_a_higher_mean_return_replaces_it(tmp_path):
    best = BestPolicy(tmp_path / "best_policy.pt", 0)
    kept = []
    for step, returns in enumerate([(-5.0, -7.0), (-9.0, 0.0), (-9.0, 0.0), (np.nan, 9.0), (-4.0, -6.0), (1.0, 2.0)]):
        offer(best, step, *returns)
        kept.append(load_best_policy(best.path)["environment_steps"])
    assert kept == [0, 1, 1, 1, 1, 5]
    state = load_best_policy(best.path)
    assert (state["return_mean"], state["learner"]["weight"]) == (1.5, 5.0)


def test_a_resumed_training_goes_on_from_what_the_file_says(tmp_path):
    path = tmp_path / "best_policy.pt"
    offer(BestPolicy(path, 0), 10, 3.0)
    resumed = BestPolicy(path, 10)
    offer(resumed, 20, 2.0)
    assert load_best_policy(path)["environment_steps"] == 10
    offer(resumed, 30, 4.0)
    assert load_best_policy(path)["environment_steps"] == 30


def test_a_better_policy_from_after_the_checkpoint_does_not_outlive_it(tmp_path):
    path = tmp_path / "best_policy.pt"
    offer(BestPolicy(path, 0), 120, 9.0)
    resumed = BestPolicy(path, 50)  # of other settings, say, from here on
    offer(resumed, 60, 2.0)
    assert load_best_policy(path)["environment_steps"] == 60
    offer(resumed, 70, 1.0)
    assert load_best_policy(path)["environment_steps"] == 60


def test_a_crash_while_it_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    best = BestPolicy(tmp_path / "best_policy.pt", 0)
    offer(best, 10, 3.0)
    save = torch.save

    def torn(state, stream):
        save(state, stream)
        stream.truncate(100)
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError, match="disk full"):
        offer(best, 20, 4.0)
    monkeypatch.undo()
    assert load_best_policy(best.path)["environment_steps"] == 10
    offer(best, 30, 3.5)  # the one that was lost does not count
    assert load_best_policy(best.path)["environment_steps"] == 30


def test_a_damaged_file_is_named_and_replaced(tmp_path, caplog):
    path = tmp_path / "best_policy.pt"
    path.write_bytes(b"no zip")
    with pytest.raises(ConfigError, match=r"cannot read the best policy, .*best_policy\.pt"):
        load_best_policy(path)
    best = BestPolicy(path, 0)
    assert "the next evaluation replaces it" in caplog.text
    offer(best, 10, -1e6)
    assert load_best_policy(path)["environment_steps"] == 10


def test_a_run_without_one_says_so(tmp_path):
    with pytest.raises(ConfigError, match="the run was not evaluated yet"):
        load_best_policy(tmp_path / "best_policy.pt")
