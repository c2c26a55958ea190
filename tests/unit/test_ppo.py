"""PPO of stable-baselines3 behind our environment, evaluations, checkpoints and export."""

import csv

import numpy as np
import pytest
import torch

from mpo_robot.baselines.config import PPOConfig
from mpo_robot.errors import ConfigError
from mpo_robot.evaluation import evaluate
from mpo_robot.learners import make_learner
from mpo_robot.normalization import ReturnScale, RunningNormalizer
from mpo_robot.policy_io import load_policy
from mpo_robot.run_folder import RunFolder
from mpo_robot.training_config import TrainingConfig
from tests.support.learning import CONFIG, change
from tests.support.point_environment import SPEC, PointEnvironment

pytest.importorskip("stable_baselines3")

from gymnasium.utils.env_checker import check_env

from mpo_robot.baselines.gymnasium_adapter import GymnasiumAdapter
from mpo_robot.baselines.ppo import PPOTrainer
from mpo_robot.trainer import EVALUATION_SEED

LEARNER = change(
    CONFIG,
    algorithm="ppo",
    policy__hidden_sizes=(8,),
    critic__hidden_sizes=(8,),
    ppo=PPOConfig(rollout_steps=20, batch_size=10, epochs=2),
)
TRAINING = TrainingConfig(
    total_steps=70, evaluation_period=35, evaluation_episodes=1, log_period=10, checkpoint_period=20
)


def make(path, learner=LEARNER, action_repeat=1, **settings):
    folder = RunFolder(path)
    if not folder.config_file.exists():
        folder.create("", SPEC, 0)
    training = change(TRAINING, **settings)
    return PPOTrainer(PointEnvironment(), PointEnvironment(), training, learner, folder, 0, action_repeat)


def rows(path):
    with path.open() as stream:
        return [
            {k: v for k, v in row.items() if k not in ("wall_time_s", "steps_per_second")}
            for row in csv.DictReader(stream)
        ]


def test_an_automatic_discount_is_that_of_the_tasks_actions(tmp_path):
    learner = change(LEARNER, discount="auto", return_scale_bound=5.0)
    trainer = make(tmp_path, learner)
    assert trainer.return_scale is not None
    assert trainer.ppo.gamma == trainer.return_scale.discount == learner.discount_at(SPEC.control_dt)


def test_the_adapter_keeps_gymnasiums_contract():
    with pytest.warns(UserWarning, match="infinity"):
        check_env(GymnasiumAdapter(PointEnvironment(), None, None), skip_render_check=True)


def test_the_adapter_tells_truncation_from_termination_and_scales_rewards_only():
    plain, normalizer, scale = PointEnvironment(), RunningNormalizer(3), ReturnScale(0.9)
    adapter = GymnasiumAdapter(PointEnvironment(), normalizer, scale)
    for terminated in (True, False):
        plain.reset(seed=4), adapter.reset(seed=4)
        total = 0.0
        for _ in range(7):
            action = np.full(2, 3.0, np.float32)
            result, (observation, reward, ended, cut, _) = plain.step(action), adapter.step(action)
            assert reward == pytest.approx(result.reward / scale.scale)
            assert observation.tolist() == normalizer(result.observation).tolist()
            total += result.reward
        assert (ended, cut) == (terminated, not terminated)
        assert adapter.finished_returns[-1] == pytest.approx(total)


def test_a_training_leaves_what_every_training_leaves(tmp_path):
    trainer = make(tmp_path / "run")
    seen = []
    trainer.run(lambda step, result: seen.append((step, result.returns.tolist())), None)
    folder = trainer.folder
    evaluations = rows(folder.evaluations_file)
    assert [int(row["environment_steps"]) for row in evaluations] == [35, 70]
    assert [float(row["return_mean"]) for row in evaluations] == pytest.approx([value[0] for _, value in seen])
    metrics = rows(folder.metrics_file)
    assert [int(row["environment_steps"]) for row in metrics] == list(range(10, 71, 10))
    assert metrics[0]["loss_critic"] == ""
    assert all(np.isfinite(float(row[name])) for row in metrics[2:] for name in ("loss_critic", "kl", "stddev_mean"))
    loaded = load_policy(folder, LEARNER)
    assert loaded.training["environment_steps"] == 70

    def act(observation):
        return loaded.actor.distribution(loaded.normalizer(observation))[0]

    again = evaluate(PointEnvironment(), act, 1, EVALUATION_SEED)
    assert again.returns.tolist() == seen[-1][1]


@pytest.mark.parametrize("stop_at", [23, 41])
def test_a_run_that_was_stopped_goes_on_exactly(tmp_path, stop_at):
    whole = make(tmp_path / "whole")
    whole.run()
    first = make(tmp_path / "parts")
    step = first.environment.step

    def stop_soon(action):
        first.stop_requested = first.stop_requested or first.environment_steps == stop_at
        return step(action)

    first.environment.step = stop_soon
    first.run()
    assert first.environment_steps % 20 == 0  # between two rollouts
    assert stop_at < first.environment_steps < 70
    second = make(tmp_path / "parts")
    second.resume()
    torch.randn(5), np.random.random(5)
    second.resume()
    second.run()
    for name in ("metrics.csv", "evaluations.csv"):
        assert rows(tmp_path / "whole" / name) == rows(tmp_path / "parts" / name)
    for left, right in zip(whole.network.parameters(), second.network.parameters()):
        assert torch.equal(left, right)


def test_a_longer_training_goes_on_from_the_end_of_a_shorter_one(tmp_path):
    make(tmp_path / "run", total_steps=35).run()
    longer = make(tmp_path / "run")
    longer.resume()
    assert longer.environment_steps == 35
    longer.run()
    assert [int(row["environment_steps"]) for row in rows(longer.folder.evaluations_file)] == [35, 70]


def test_a_resumed_training_of_repeated_actions_saves_when_an_uninterrupted_one_does(tmp_path):
    make(tmp_path, action_repeat=3, total_steps=60).run()
    longer = make(tmp_path, action_repeat=3, total_steps=240, checkpoint_period=100)
    longer.resume()
    saved, save = [], longer.save
    longer.save = lambda: (saved.append(longer.environment_steps), save())
    longer.run()
    assert saved == [180, 240]  # between rollouts of 60 steps, the last save was at 60


@pytest.mark.parametrize("total", [7, 20, 27, 40])
def test_the_last_rollout_is_learnt_from_before_the_final_evaluation(tmp_path, total):
    trainer = make(tmp_path, total_steps=total, evaluation_period=1000, log_period=1)
    trained, evaluated = [], []
    train, run_evaluation = trainer.ppo.train, trainer.evaluate

    def train_and_note():
        trained.append((trainer.environment_steps, trainer.ppo.rollout_buffer.pos))
        train()

    def evaluate_and_note():
        evaluated.append((trainer.environment_steps, len(trained)))
        return run_evaluation()

    trainer.ppo.train, trainer.evaluate = train_and_note, evaluate_and_note
    trainer.run()
    ends = [*range(20, total, 20), total]
    assert trained == [(end, (end - 1) % 20 + 1) for end in ends]
    assert evaluated == [(total, len(ends))]
    metrics = rows(trainer.folder.metrics_file)
    assert [int(row["environment_steps"]) for row in metrics] == list(range(1, total + 1))
    assert int(metrics[-1]["learner_steps"]) == 2 * len(ends)
    assert metrics[-1]["loss_critic"]


def test_more_steps_after_whole_rollouts_equal_one_longer_training(tmp_path):
    whole = make(tmp_path / "whole")
    whole.run()
    make(tmp_path / "parts", total_steps=40).run()
    longer = make(tmp_path / "parts")
    longer.resume()
    longer.run()
    for left, right in zip(whole.network.parameters(), longer.network.parameters()):
        assert torch.equal(left, right)


CHANGES = {
    "learning_rate": 1e-3,
    "rollout_steps": 30,
    "batch_size": 5,
    "epochs": 1,
    "gae_lambda": 0.5,
    "clip_range": 1e-4,
    "entropy_bonus": 0.5,
    "grad_clip_norm": 1e-3,
}


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_every_setting_of_ppo_has_an_effect(name, tmp_path):
    outcomes = []
    for index, learner in enumerate((LEARNER, change(LEARNER, **{f"ppo__{name}": CHANGES[name]}))):
        trainer = make(tmp_path / str(index), learner, total_steps=45)
        trainer.run()
        outcomes.append(torch.cat([parameter.flatten() for parameter in trainer.network.parameters()]))
    assert not torch.equal(*outcomes)
    assert set(CHANGES) == set(vars(LEARNER.ppo))


def test_ppo_has_no_replay_and_no_use_for_logs():
    with pytest.raises(ConfigError, match="own rollouts only"):
        make_learner(SPEC, LEARNER, 0)


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"batch_size": 3}, "divide"), ({"gae_lambda": 1.5}, "gae_lambda"), ({"epochs": 0}, "epochs")],
)
def test_bad_settings_are_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        PPOConfig(**settings)


def test_every_step_of_a_repeated_action_counts(tmp_path):
    trainer = make(tmp_path / "run", action_repeat=4)
    trainer.run()
    assert trainer.ppo.num_timesteps == 18
    assert trainer.environment_steps == 72  # the first turn at or past 70
    written = rows(tmp_path / "run" / "evaluations.csv")
    assert [int(row["environment_steps"]) for row in written] == [36, 72]
    resumed = make(tmp_path / "run", action_repeat=4)
    resumed.resume()
    assert resumed.environment_steps == 72
