"""Learning from real logs: mixing, the ledger, exact restore, what is refused."""

import numpy as np
import pytest
import torch

from mpo_robot.checkpoint import load_checkpoint, save_checkpoint
from mpo_robot.continual import ContinualLearner, LearnConfig
from mpo_robot.episode import Episode
from mpo_robot.errors import ConfigError, EpisodeError
from mpo_robot.normalization import ReturnScale, RunningNormalizer
from mpo_robot.policy_io import load_policy
from mpo_robot.replay import SequenceReplay
from mpo_robot.sampling import sample_mixed
from mpo_robot.specs import PolicySpec
from tests.support.tiny_run import LEARNER, SPEC, TRAINING, make_episode, make_run


def learner_of(folder, **options):
    return ContinualLearner(folder, LEARNER, TRAINING, LearnConfig(**options))


def marked_replay(value: float) -> SequenceReplay:
    replay = SequenceReplay(200, SPEC.observation_size, SPEC.action_size)
    episode = make_episode(100)
    replay.add_episode(Episode(**{**vars(episode), "rewards": np.full(100, value, np.float32)}))
    return replay


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 0), (0.25, 2), (0.5, 4), (1.0, 8)])
def test_the_real_fraction_is_exact(fraction, expected):
    batch = sample_mixed(np.random.default_rng(0), marked_replay(1.0), marked_replay(2.0), fraction, 8, 3)
    real = [(row[row > 0] == 2.0).all() and (row > 0).any() for row in batch.reward]
    assert sum(real) == expected
    assert batch.observation.shape == (8, 4, SPEC.observation_size)


def test_an_absent_replay_gives_its_share_to_the_other():
    rng = np.random.default_rng(0)
    empty = SequenceReplay(10, SPEC.observation_size, SPEC.action_size)
    assert (sample_mixed(rng, None, marked_replay(2.0), 0.5, 8, 3).reward != 1.0).all()
    assert (sample_mixed(rng, marked_replay(1.0), empty, 0.5, 8, 3).reward != 2.0).all()
    with pytest.raises(ConfigError, match="collect more data"):
        sample_mixed(rng, None, empty, 0.5, 8, 3)


def test_updates_per_round_follow_the_new_steps_within_bounds():
    config = LearnConfig(updates_per_real_step=0.5, min_updates=10, max_updates=100)
    assert [config.updates_for(steps) for steps in (0, 30, 100, 10_000)] == [10, 15, 50, 100]
    with pytest.raises(ValueError, match="real_fraction"):
        LearnConfig(real_fraction=0.0)


def test_learning_changes_the_policy_and_leaves_the_training_run_alone(tmp_path):
    folder = make_run(tmp_path / "run")
    learner = learner_of(folder)
    before = learner.learner.state_dict()["policy"]
    learner.ingest("a", [make_episode(40, 9)])
    for _ in range(5):
        learner.update()
    learner.save()
    assert not torch.equal(before, learner.learner.state_dict()["policy"])
    # What export would take is the policy that was learnt, and it says how much real data is in it.
    loaded = load_policy(folder, LEARNER)
    assert loaded.training["real_steps"] == 40
    assert f"policy of {folder.learn_checkpoints}" in loaded.origin
    assert "Not used" not in loaded.origin
    for mine, theirs in zip(loaded.policy.parameters(), learner.learner.averaged_policy.parameters()):
        assert torch.equal(mine, theirs)


def test_what_is_published_is_averaged_since_the_logs_came(tmp_path):
    folder = make_run(tmp_path / "run")
    replay = SequenceReplay(TRAINING.replay_capacity, SPEC.observation_size, SPEC.action_size)
    state, _ = load_checkpoint(folder.checkpoints, replay.load)
    state["learner"]["learner_steps"] = 30_000  # a long training, whose average has a long memory
    save_checkpoint(folder.checkpoints, state["environment_steps"] + 1, state, replay.save)
    learner = learner_of(folder)
    learner.ingest("a", [make_episode(40, 9)])
    for _ in range(3):
        learner.update()
    flat = learner.learner.flat
    assert torch.equal(flat["averaged_policy"], flat["policy"])  # a tenth of three updates


def test_restored_learning_continues_exactly(tmp_path):
    whole = learner_of(make_run(tmp_path / "whole"))
    parts = learner_of(make_run(tmp_path / "parts"))
    for learner in (whole, parts):
        learner.ingest("a", [make_episode(40, 9)])
        for _ in range(3):
            learner.update()
    parts.save()
    parts = learner_of(parts.folder)
    assert parts.ledger == {"a": {"steps": 40}}
    assert parts.real_steps == 40
    first = [whole.update(want_metrics=True) for _ in range(3)]
    second = [parts.update(want_metrics=True) for _ in range(3)]
    assert first == second


def test_a_crash_between_ingest_and_save_forgets_both_data_and_ledger(tmp_path):
    folder = make_run(tmp_path / "run")
    learner = learner_of(folder)
    learner.ingest("a", [make_episode(40, 9)])
    learner.save()
    learner.ingest("b", [make_episode(40, 10)])  # the process dies here
    again = learner_of(folder)
    assert list(again.ledger) == ["a"]
    assert again.real_steps == 40
    assert len(again.real_replay) == 41


def test_another_spec_and_nan_are_refused_before_anything_is_added(tmp_path):
    learner = learner_of(make_run(tmp_path / "run"))
    other = PolicySpec(SPEC.observation, SPEC.command, 0.04)
    good, foreign, broken = make_episode(10, 1), make_episode(10, 2, other), make_episode(10, 3)
    broken.rewards[4] = np.nan
    with pytest.raises(EpisodeError, match="recorded with spec"):
        learner.ingest("foreign", [good, foreign])
    with pytest.raises(EpisodeError, match="rewards holds NaN or infinity at step 4"):
        learner.ingest("broken", [good, broken])
    assert len(learner.real_replay) == 0
    assert learner.ledger == {}


def test_learning_from_real_data_only_never_touches_the_simulated_replay(tmp_path):
    learner = learner_of(make_run(tmp_path / "run"), use_simulated_data=False)
    assert learner.simulated_replay is None
    learner.ingest("a", [make_episode(40, 9)])
    assert learner.update(want_metrics=True) is not None


def test_a_run_that_was_trained_on_since_is_not_silently_overruled(tmp_path):
    folder = make_run(tmp_path / "run")
    learner = learner_of(folder)
    learner.ingest("a", [make_episode(40, 9)])
    learner.save()
    newer = make_run(tmp_path / "newer", environment_steps=900)
    (newer.checkpoints / "step_000000000900").rename(folder.checkpoints / "step_000000000900")
    loaded = load_policy(folder, LEARNER)
    assert loaded.training["environment_steps"] == 900
    assert (
        "step_000000000900 (training step 900, 0 real steps). Not used: what was learnt from 40 real" in loaded.origin
    )
    assert "began at training step 200" in loaded.origin
    with pytest.raises(ConfigError, match="ingest the logs again"):
        learner_of(folder)


def test_the_learner_gets_what_training_gave_it_normalised_states_and_scaled_rewards(tmp_path):
    # The scale and the normaliser are part of what the critic and the policy mean; they stay as training left them.
    folder = make_run(tmp_path / "run")
    state, _ = load_checkpoint(folder.checkpoints)
    scale = ReturnScale(LEARNER.discount_at(SPEC.control_dt), LEARNER.return_scale_bound)
    scale.load_state_dict(state["return_scale"])
    learner = learner_of(folder, use_simulated_data=False)
    episode = make_episode(40, 9)
    learner.ingest("a", [episode])
    seen = []
    learner.learner.update = lambda batch, reward_scale, want: seen.append((batch, reward_scale))
    learner.update()
    ((batch, reward_scale),) = seen
    assert reward_scale == scale.scale != 1.0
    normalizer = RunningNormalizer(SPEC.observation_size)
    normalizer.load_state_dict(state["normalizer"])
    expected = {row.tobytes() for row in normalizer(episode.observations)}
    assert all(row.tobytes() in expected for row in batch.observation.reshape(-1, SPEC.observation_size))
    assert {float(reward) for reward in batch.reward.ravel()} <= {0.0, *map(float, episode.rewards)}


def test_a_real_replay_too_small_for_a_sequence_is_refused(tmp_path):
    length = LEARNER.sequence_length
    with pytest.raises(ConfigError, match=f"real_capacity {length} must be above learner.sequence_length {length}"):
        learner_of(make_run(tmp_path / "run"), real_capacity=length)


def test_nothing_can_be_learnt_until_a_sequence_is_there(tmp_path):
    learner = learner_of(make_run(tmp_path / "run"))
    learner.ingest("short", [make_episode(1)])
    assert not learner.can_learn
    learner.ingest("long", [make_episode(40)])
    assert learner.can_learn


def test_the_real_replay_has_the_configured_capacity(tmp_path):
    assert learner_of(make_run(tmp_path / "run"), real_capacity=30).real_replay.capacity == 30


def test_a_damaged_real_replay_falls_back_to_the_round_before(tmp_path, caplog):
    folder = make_run(tmp_path / "run")
    learner = learner_of(folder)
    for name in ("a", "b"):
        learner.ingest(name, [make_episode(40, 9)])
        learner.update()
        learner.save()
    newest = sorted(folder.learn_checkpoints.iterdir())[-1]
    (newest / "replay.npz").write_bytes(b"garbage")
    again = learner_of(folder)
    assert list(again.ledger) == ["a"]  # b is ingested again
    assert len(again.real_replay) == 41
    assert str(newest) in caplog.text


def test_a_damaged_simulated_replay_falls_back_to_the_checkpoint_before(tmp_path, caplog):
    folder = make_run(tmp_path / "run")
    newer = make_run(tmp_path / "newer", environment_steps=900)
    newest = (newer.checkpoints / "step_000000000900").rename(folder.checkpoints / "step_000000000900")
    (newest / "replay.npz").write_bytes(b"garbage")
    learner = learner_of(folder)
    assert learner.policy().training["environment_steps"] == 200
    assert len(learner.simulated_replay) == 204
    assert str(newest) in caplog.text


def test_a_round_that_was_stopped_owes_the_rest_and_a_finished_one_nothing(tmp_path):
    learner = learner_of(make_run(tmp_path / "run"))
    learner.ingest("a", [make_episode(40, 9)])
    learner.ingest("b", [make_episode(40, 10)])
    assert (learner.unlearnt_steps, learner.last_round) == (80, 0)
    learner.update()
    learner.end_round(1, 4)
    assert (learner.unlearnt_steps, learner.last_round) == (60, 0)
    learner.save()
    again = learner_of(learner.folder)
    assert (again.unlearnt_steps, again.last_round) == (60, 0)
    again.update()
    again.end_round(3, 3)
    assert (again.unlearnt_steps, again.last_round) == (0, 2)
    again.end_round(0, 5)  # stopped at once
    assert (again.unlearnt_steps, again.last_round) == (0, 2)


def test_all_parts_are_checked_before_the_first_is_added(tmp_path):
    learner = learner_of(make_run(tmp_path / "run"), real_capacity=30)
    with pytest.raises(ConfigError, match="real_capacity=41 or more"):
        learner.ingest("a", [make_episode(10, 1), make_episode(40, 2)])
    assert (len(learner.real_replay), learner.real_steps, learner.ledger) == (0, 0, {})
