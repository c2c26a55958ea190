"""The training loop without a simulator: what it stores, when it learns, what it logs."""

import math

import numpy as np
import pytest

from mpo_robot.evaluation import evaluate
from mpo_robot.run_folder import RunFolder
from mpo_robot.trainer import EVALUATION_SEED, Trainer
from mpo_robot.training_config import TrainingConfig
from tests.support.learning import CONFIG, change
from tests.support.point_environment import PointEnvironment

LENGTH = 7


class Journal(PointEnvironment):
    """Keeps what was seen and done."""

    def __init__(self):
        super().__init__(LENGTH)
        self.resets, self.steps = [], []

    def reset(self, seed=None):
        observation, info = super().reset(seed)
        self.resets.append((seed, observation))
        return observation, info

    def step(self, action):
        result = super().step(action)
        self.steps.append((np.array(action), result))
        return result


class Silent:
    """In place of CSV files and TensorBoard."""

    def __init__(self, *_):
        self.rows, self.evaluations = [], []
        Silent.last = self

    def metrics(self, row):
        self.rows.append(row)

    def evaluation(self, row):
        self.evaluations.append(row)

    def close(self):
        pass


@pytest.fixture
def make_trainer(tmp_path, monkeypatch):
    monkeypatch.setattr("mpo_robot.progress.MetricsWriter", Silent)

    def make(learner=CONFIG, action_repeat=1, **settings):
        defaults = {
            "total_steps": 40,
            "warmup_steps": 15,
            "updates_per_step": 1.0,
            "replay_capacity": 100,
            "evaluation_period": 1000,
            "evaluation_episodes": 2,
            "log_period": 10,
            "checkpoint_period": 1000,
        }
        training = TrainingConfig(**(defaults | settings))
        environments = Journal(), Journal()
        (tmp_path / "run").mkdir()
        return Trainer(*environments, training, learner, RunFolder(tmp_path / "run"), 0, action_repeat)

    return make


def test_the_replay_holds_what_happened(make_trainer):
    trainer = make_trainer()
    trainer.run()
    environment, rows = trainer.environment, trainer.replay._rows
    row, before = 0, environment.resets[0][1]
    for index, (action, result) in enumerate(environment.steps):
        assert rows[row][:3].tolist() == before.tolist()
        assert rows[row][3:5].tolist() == action.astype(np.float32).tolist()  # as sampled
        assert rows[row][5] == np.float32(result.reward)
        assert rows[row][6] == result.terminated
        row, before = row + 1, result.observation
        if result.terminated or result.truncated:
            # the final observation, not the first one of the next episode
            assert rows[row][:3].tolist() == result.observation.tolist()
            assert rows[row][6] == result.terminated
            assert rows[row][9] == 0.0
            episode = (index + 1) // LENGTH
            row, before = row + 1, environment.resets[episode][1]
    assert row == len(trainer.replay)
    assert trainer.replay.transitions_added == len(environment.steps) == 40


def test_warm_up_is_uniform_and_later_actions_are_the_policys_with_their_log_density(make_trainer):
    trainer = make_trainer(change(CONFIG, learning_rate_policy=1e-12), total_steps=30, noise_scale_min=1.0)
    trainer.run()
    rows = trainer.replay._rows[: len(trainer.replay)]
    rows = rows[rows[:, 9] == 1.0]
    assert len(rows) == 30
    warm, later = rows[:15], rows[15:]
    assert warm[:, 7].tolist() == pytest.approx([-2 * math.log(2.0)] * 15)
    assert (np.abs(warm[:, 3:5]) <= 1.0).all()
    stddev = CONFIG.policy.init_stddev  # the policy stays as it was, so its mean is nearly zero
    density = -0.5 * ((later[:, 3:5] / stddev) ** 2).sum(1) - 2 * math.log(stddev) - math.log(2 * math.pi)
    assert later[:, 7].tolist() == pytest.approx(density.tolist(), abs=0.3)
    assert (rows[:, 8] == 1.0).all()


@pytest.mark.parametrize(("rate", "expected"), [(0.25, 6), (1.0, 26), (2.5, 65)])
def test_updates_per_step_are_kept_exactly(make_trainer, rate, expected):
    trainer = make_trainer(updates_per_step=rate)
    trainer.run()
    assert trainer.learner.learner_steps == expected  # steps 15 to 40
    assert trainer.update_debt == pytest.approx(26 * rate - expected)


def test_every_step_of_a_repeated_action_counts(make_trainer):
    trainer = make_trainer(action_repeat=3, total_steps=40, warmup_steps=15, log_period=10, evaluation_period=20)
    trainer.run()
    assert len(trainer.environment.steps) == 14
    assert trainer.environment_steps == 42
    assert trainer.learner.learner_steps == 30  # of the turns that end at steps 15, 18, ..., 42
    assert [row["environment_steps"] for row in Silent.last.rows] == [12, 21, 30, 42]
    assert [row["environment_steps"] for row in Silent.last.evaluations] == [21, 42]


def test_normaliser_and_return_scale_see_every_state_and_reward_once(make_trainer):
    trainer = make_trainer()
    trainer.run()
    environment = trainer.environment
    continuing = [result.observation for _, result in environment.steps if not (result.terminated or result.truncated)]
    seen = np.stack([observation for _, observation in environment.resets] + continuing).astype(np.float64)
    assert trainer.normalizer.count == len(seen)
    np.testing.assert_allclose(trainer.normalizer.mean, seen.mean(axis=0))
    returns, running = [], 0.0
    for _, result in environment.steps:
        running = CONFIG.discount * running + result.reward
        returns.append(running)
        running = 0.0 if result.terminated or result.truncated else running
    assert trainer.return_scale.count == 40
    expected = max(np.std(returns), max(np.abs(returns)) / CONFIG.return_scale_bound)
    assert trainer.return_scale.scale == pytest.approx(expected)


def test_without_normaliser_and_scale_the_learner_gets_raw_data(make_trainer):
    trainer = make_trainer(change(CONFIG, return_scale_bound=None), normalize_observations=False)
    seen = []
    trainer.learner.update = lambda batch, scale, want: seen.append((batch, scale))
    trainer.run()
    stored = {bytes(row) for row in trainer.replay._rows[:, :3]}
    assert {scale for _, scale in seen} == {1.0}
    assert all(bytes(state) in stored for batch, _ in seen for state in batch.observation.reshape(-1, 3))


def test_evaluation_acts_with_the_mean_in_the_environment_of_its_own(make_trainer):
    trainer = make_trainer(evaluation_period=20)
    before = trainer.rng.bit_generator.state
    result = trainer.evaluate()
    assert trainer.rng.bit_generator.state == before  # training goes on as if there had been no evaluation
    assert trainer.environment.steps == []
    environment = trainer.evaluation_environment
    assert [seed for seed, _ in environment.resets] == [EVALUATION_SEED, EVALUATION_SEED + 1]
    again = evaluate(PointEnvironment(LENGTH), trainer.act_mean, 2, EVALUATION_SEED)
    assert again.returns.tolist() == result.returns.tolist()
    trainer.run()
    assert [row["environment_steps"] for row in Silent.last.evaluations] == [20, 40]


def test_a_finished_training_is_evaluated_once_at_its_end_and_a_stopped_one_is_not(make_trainer):
    trainer = make_trainer(evaluation_period=15)
    trainer.run()
    assert [row["environment_steps"] for row in Silent.last.evaluations] == [15, 30, 40]
    trainer.run()  # as a resume of a finished training
    assert Silent.last.evaluations == []


def test_rows_of_metrics_come_every_period_with_the_newest_update(make_trainer):
    trainer = make_trainer(updates_per_step=0.75)
    measured = []
    update = trainer.learner.update

    def spy(batch, scale, want):
        metrics = update(batch, scale, want)
        measured.append((trainer.environment_steps, metrics))
        return metrics

    trainer.learner.update = spy
    trainer.run()
    assert [row["environment_steps"] for row in Silent.last.rows] == [10, 20, 30, 40]
    assert "loss_critic" not in Silent.last.rows[0]
    for row in Silent.last.rows[1:]:
        newest = [metrics for step, metrics in measured if step <= row["environment_steps"]][-1]
        assert newest is not None
        assert row["loss_critic"] == newest.loss_critic
    assert sum(metrics is not None for _, metrics in measured) == 3  # no other one is paid for
    finished = [sum(r.reward for _, r in trainer.environment.steps[i : i + LENGTH]) for i in (7, 14, 21)]
    assert Silent.last.rows[2]["episode_return"] == pytest.approx(np.mean(finished[1:]))


def test_a_stop_request_ends_after_the_step_and_saves(make_trainer):
    trainer = make_trainer()
    step = trainer.environment.step

    def stop_soon(action):
        trainer.stop_requested = trainer.environment_steps == 21
        return step(action)

    trainer.environment.step = stop_soon
    trainer.run()
    assert trainer.environment_steps == 22
    assert (trainer.folder.checkpoints / "step_000000000022").exists()


def saved_steps(trainer):
    """Spies on `save`."""
    steps, save = [], trainer.save
    trainer.save = lambda: (steps.append(trainer.environment_steps), save())
    return steps


def test_the_first_checkpoint_is_saved_at_the_end_of_the_warm_up(make_trainer):
    trainer = make_trainer()
    steps = saved_steps(trainer)
    trainer.run()
    assert steps == [15, 40]


def test_a_checkpoint_is_saved_when_the_last_one_is_old(make_trainer, monkeypatch):
    trainer = make_trainer(checkpoint_minutes=1.0)
    steps = saved_steps(trainer)
    monkeypatch.setattr("mpo_robot.trainer.time.monotonic", lambda: 9.0 * trainer.environment_steps)
    trainer.run()
    assert steps == [7, 14, 15, 22, 29, 36, 40]  # after 63 seconds, and at the end of the warm-up


def test_nothing_is_saved_twice_at_the_end(make_trainer):
    trainer = make_trainer(checkpoint_period=20)
    trainer.run()
    assert sorted(path.name for path in trainer.folder.checkpoints.iterdir()) == [
        "step_000000000020",
        "step_000000000040",
    ]
