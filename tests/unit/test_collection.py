"""Several environments in one training: what the replay holds, what is counted, when something is due."""

import csv

import numpy as np
import pytest

from mpo_robot.cli import train
from mpo_robot.cli.settings import RunConfig
from mpo_robot.collection import VectorCollector
from mpo_robot.errors import ConfigError
from mpo_robot.exploration import EpisodeNoise
from mpo_robot.run_folder import RunFolder
from mpo_robot.training_config import TrainingConfig
from sim import vector
from sim.config import EnvironmentConfig
from tests.support.learning import CONFIG, change
from tests.support.point_environment import PointEnvironment

LENGTH, PIECE, COUNT = 11, 4, 3


class Journal(PointEnvironment):
    """Keeps its episodes: observations of each, and (action, result) of each step."""

    def __init__(self):
        super().__init__(LENGTH)
        self.episodes = []

    def reset(self, seed=None):
        observation, info = super().reset(seed)
        self.episodes.append(([observation], []))
        return observation, info

    def step(self, action):
        result = super().step(action)
        observations, steps = self.episodes[-1]
        observations.append(result.observation)
        steps.append((np.array(action), result))
        return result


@pytest.fixture
def make_trainer(tmp_path, monkeypatch):
    monkeypatch.setattr("mpo_robot.collection.PIECE_STEPS", PIECE)
    monkeypatch.setattr("mpo_robot.run_folder.run_record", lambda seed: {})
    for module in (train, vector):
        monkeypatch.setattr(module, "make_environment", lambda config: Journal())

    def make(learner=CONFIG, **settings):
        defaults = {
            "total_steps": 120,
            "warmup_steps": 45,
            "updates_per_step": 0.1,
            "replay_capacity": 500,
            "evaluation_period": 1000,
            "evaluation_episodes": 1,
            "log_period": 1000,
            "checkpoint_period": 1000,
            "environments": COUNT,
        }
        config = RunConfig(EnvironmentConfig("any"), TrainingConfig(**(defaults | settings)), learner)
        folder = RunFolder(tmp_path / str(len(list(tmp_path.iterdir()))))
        return train.make_trainer(config, folder)

    return make


def steps_of(path):
    with path.open() as stream:
        return [int(row["environment_steps"]) for row in csv.DictReader(stream)]


def pieces_of(replay):
    """Rows of the replay, cut behind each row that is no transition."""
    rows = replay._rows[: len(replay)]
    ends = np.flatnonzero(rows[:, 9] == 0.0) + 1
    return np.split(rows, ends)[:-1]


def test_every_piece_of_the_replay_is_of_one_episode_and_nothing_is_lost(make_trainer):
    trainer = make_trainer()
    trainer.run()
    expected = []  # (observations with the bootstrap one, steps) of every piece that is complete
    waiting = []
    for environment in trainer.environment.environments:
        for observations, steps in environment.episodes:
            for first in range(0, len(steps), PIECE):
                piece = observations[first : first + PIECE + 1], steps[first : first + PIECE]
                complete = len(piece[1]) == PIECE or piece[1][-1][1].terminated or piece[1][-1][1].truncated
                (expected if complete else waiting).append(piece)
    pieces = {piece[0, :3].tobytes(): piece for piece in pieces_of(trainer.replay)}
    assert len(pieces) == len(expected) > 3 * COUNT
    for observations, steps in expected:
        piece = pieces[observations[0].tobytes()]
        assert piece[:, :3].tolist() == np.stack(observations).tolist()
        assert piece[:-1, 3:5].tolist() == np.stack([action for action, _ in steps]).astype(np.float32).tolist()
        assert piece[:-1, 5].tolist() == [np.float32(result.reward) for _, result in steps]
        assert piece[:-1, 6].tolist() == [result.terminated for _, result in steps]
        assert piece[-1, 6] == steps[-1][1].terminated  # a cut is not an end: its last state has a value
    staged = [transition for lane in trainer.collector.lanes for transition in lane.piece]
    assert len(staged) == sum(len(steps) for _, steps in waiting)
    assert trainer.replay.transitions_added + len(staged) == trainer.environment_steps == 120


def test_environments_differ_in_seeds_noise_and_actions(make_trainer):
    trainer = make_trainer(noise_color=1.0, white_noise_steps=0)
    trainer.run()
    first = [environment.episodes[0] for environment in trainer.environment.environments]
    assert len({observations[0].tobytes() for observations, _ in first}) == COUNT
    assert len({steps[0][0].tobytes() for _, steps in first}) == COUNT
    assert len({lane.noise.colored._noise.tobytes() for lane in trainer.collector.lanes}) == COUNT


@pytest.mark.parametrize("environments", [1, COUNT])
def test_the_noise_is_white_until_so_many_environment_steps(make_trainer, monkeypatch, environments):
    trainer = make_trainer(environments=environments, warmup_steps=30, white_noise_steps=75)
    sample, asked = EpisodeNoise.sample, []

    def record(noise, rng, white=False):
        asked.append(white)
        return sample(noise, rng, white)

    monkeypatch.setattr(EpisodeNoise, "sample", record)
    trainer.run()
    assert asked == [True] * 45 + [False] * 45  # after 30 uniform steps, in the middle of an episode


def test_normaliser_and_return_scale_see_every_state_and_reward_once(make_trainer):
    trainer = make_trainer()
    trainer.run()
    seen, returns, finished = [], [], []
    for environment in trainer.environment.environments:
        for observations, steps in environment.episodes:
            ended = len(steps) == LENGTH
            seen += observations[: len(observations) - ended]
            running = 0.0  # of each episode of each environment
            for _, result in steps:
                running = CONFIG.discount * running + result.reward
                returns.append(running)
            if ended:
                finished.append(sum(result.reward for _, result in steps))
    assert trainer.normalizer.count == len(seen)
    np.testing.assert_allclose(trainer.normalizer.mean, np.mean(seen, axis=0, dtype=np.float64))
    assert trainer.return_scale.count == len(returns) == 120
    expected = max(np.std(returns), max(np.abs(returns)) / CONFIG.return_scale_bound)
    assert trainer.return_scale.scale == pytest.approx(expected)
    assert sorted(trainer.collector.finished_returns) == pytest.approx(sorted(finished))


@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_every_environments_step_owes_its_updates(make_trainer, rate):
    trainer = make_trainer(updates_per_step=rate)
    trainer.run()
    owed = (120 - 45 + COUNT) * rate  # from the turn that ends the warm-up, included
    assert trainer.learner.learner_steps == int(owed + 1e-9)
    assert trainer.update_debt + trainer.learner.learner_steps == pytest.approx(owed)


def test_updates_stay_owed_while_the_replay_is_still_empty(make_trainer, monkeypatch):
    # Pieces that are held back reach the replay late: with many environments after the warm-up.
    trainer = make_trainer(updates_per_step=1.0)
    can_sample = trainer.replay.can_sample
    monkeypatch.setattr(
        trainer.replay, "can_sample", lambda steps: trainer.environment_steps > 90 and can_sample(steps)
    )
    trainer.run()
    assert trainer.learner.learner_steps == 120 - 45 + COUNT


def test_what_is_due_between_two_turns_comes_at_the_second(make_trainer, monkeypatch):
    trainer = make_trainer(
        total_steps=100, evaluation_period=40, log_period=10, checkpoint_period=50, warmup_steps=31, updates_per_step=1
    )
    saved = []
    monkeypatch.setattr(trainer, "save", lambda: saved.append(trainer.environment_steps))
    measured = []
    update = trainer.learner.update

    def spy(batch, scale, want):
        metrics = update(batch, scale, want)
        if metrics is not None:
            measured.append(trainer.environment_steps)
        return metrics

    trainer.learner.update = spy
    trainer.run()
    rows = [12, 21, 30, 42, 51, 60, 72, 81, 90, 102]
    assert steps_of(trainer.folder.metrics_file) == rows
    assert steps_of(trainer.folder.evaluations_file) == [42, 81, 102]
    assert saved == [33, 51, 102]
    assert measured == rows[3:]  # one update is measured for each row, the newest


def test_rows_are_measured_at_low_update_rates_too(make_trainer):
    trainer = make_trainer(log_period=20, updates_per_step=0.1)
    trainer.run()
    with trainer.folder.metrics_file.open() as stream:
        losses = [row["loss_critic"] for row in csv.DictReader(stream)]
    assert losses[:2] == ["", ""]
    assert len(set(losses[2:])) == len(losses) - 2 == 4


def test_threads_change_nothing_and_exist(make_trainer):
    one, two = make_trainer(), make_trainer(environment_threads=2)
    assert (one.environment._pool, two.environment._pool._max_workers) == (None, 2)
    for trainer in (one, two):
        trainer.run()
    assert (one.replay._rows == two.replay._rows).all()
    assert one.learner.state_dict()["policy"].equal(two.learner.state_dict()["policy"])


def test_byte_replays_take_pieces_too(make_trainer, monkeypatch):
    class Bytes(Journal):
        def _observation(self):
            return np.array([self.episode % 256, self.time, 7], np.float32)

    for module in (train, vector):
        monkeypatch.setattr(module, "make_environment", lambda config: Bytes())
    trainer = make_trainer(replay_bytes=True, normalize_observations=False, replay_capacity=60)
    trainer.run()
    observation = trainer.replay.sample(np.random.default_rng(0), 20, 3).observation
    assert (observation[..., 2] == 7.0).all()
    assert len(np.unique(observation[..., 1])) > 5


def test_a_training_whose_steps_all_come_too_late_says_so(make_trainer, monkeypatch, caplog):
    monkeypatch.setattr("mpo_robot.collection.PIECE_STEPS", 64)
    trainer = make_trainer(total_steps=30, warmup_steps=9)  # ten steps of each, in episodes of eleven
    trainer.run()
    assert trainer.learner.learner_steps == 0
    assert "nothing was learnt: 3 environments keep their steps back" in caplog.text


def test_several_environments_are_a_vector_and_ppo_refuses_them(make_trainer):
    assert isinstance(make_trainer().collector, VectorCollector)
    with pytest.raises(ConfigError, match=r"training\.environments is 3"):
        make_trainer(change(CONFIG, algorithm="ppo"))
    with pytest.raises(ValueError, match="environments must be at least 1"):
        TrainingConfig(environments=0)
