"""The synchronous training loop: act, store, learn, evaluate, log, checkpoint; exact to resume.

One process, one learner, and one environment or several (`collection`): at one update per step the environment costs
a few percent of the update, so a second process would gain nothing (docs/math.md, "Speed").
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mpo_robot.byte_replay import ByteReplay
from mpo_robot.checkpoint import load_checkpoint, rng_from_json, rng_to_json, save_checkpoint
from mpo_robot.collection import PIECE_STEPS, Shared, make_collector
from mpo_robot.errors import ConfigError
from mpo_robot.evaluation import Evaluation, evaluate
from mpo_robot.learners import make_learner, make_return_scale
from mpo_robot.mpo_config import LearnerConfig
from mpo_robot.normalization import RunningNormalizer
from mpo_robot.progress import OnEvaluation, OnProgress, Progress, WallClock
from mpo_robot.replay import SequenceReplay
from mpo_robot.run_folder import RunFolder
from mpo_robot.sampling import normalize
from mpo_robot.training_config import TrainingConfig
from mpo_robot.types import Environment, EnvironmentVector, FloatArray

_log = logging.getLogger(__name__)

EVALUATION_SEED = 1_000_003  # far from training seeds; evaluations of all steps and runs use the same start states


@contextlib.contextmanager
def restoring(trainer: Any, state: Mapping[str, Any]) -> Iterator[None]:
    """Around what restores a trainer from a checkpoint's `state`: whatever does not fit is an error of the settings.

    Raises:
        ConfigError: the checkpoint has a normaliser or return scale that the trainer lacks, or the other way round, or
            restoring failed.
    """
    try:
        for name in ("normalizer", "return_scale"):
            if (state[name] is None) != (getattr(trainer, name) is None):
                raise ValueError(f"one has a {name.replace('_', ' ')}, the other has none")
        yield
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"the checkpoint of {trainer.folder.path} does not fit the settings: {error}") from error


class Trainer:
    """Owns everything that changes during a training; `state_dict` plus the replay file is all of it.

    Args:
        environment: Collects experience (randomised, if configured); as many together as `training.environments` says.
        evaluation_environment: Nominal environment of the same spec.
        training: Loop settings.
        learner: Learner settings.
        folder: Run folder, already created.
        seed: Seeds networks, action noise, replay sampling and the environment.
        action_repeat: Environment steps that the environment makes of one action; all of them count.
    """

    def __init__(
        self,
        environment: Environment | EnvironmentVector,
        evaluation_environment: Environment,
        training: TrainingConfig,
        learner: LearnerConfig,
        folder: RunFolder,
        seed: int,
        action_repeat: int = 1,
    ) -> None:
        spec = environment.spec
        self.environment = environment
        self.evaluation_environment = evaluation_environment
        self.config = training
        self.folder = folder
        self.seed = seed
        self.learner = make_learner(spec, learner, seed, training.planned_updates)
        replay = ByteReplay if training.replay_bytes else SequenceReplay
        self.replay = replay(training.replay_capacity, spec.observation_size, spec.action_size)
        self.normalizer = RunningNormalizer(spec.observation_size) if training.normalize_observations else None
        self.return_scale = make_return_scale(spec, learner)
        self.actor = self.learner.actor()
        self.evaluated_actor = self.learner.averaged_actor()
        self.rng = np.random.default_rng(seed)
        shared = Shared(self.actor, self.replay, self.normalizer, self.return_scale, self.rng)
        self.collector = make_collector(environment, shared, training)
        self.environment_steps = 0
        self._steps_per_turn = training.environments * action_repeat
        self.update_debt = 0.0  # updates owed; a fraction when updates_per_step is not whole
        self.latest_metrics: dict[str, float] = {}  # of the newest measured update
        self.stop_requested = False
        self.clock = WallClock()

    def run(self, on_evaluation: OnEvaluation | None = None, on_progress: OnProgress | None = None) -> None:
        """Train until `total_steps` or until `stop_requested` is set (by a signal handler), then save.

        What is due every so many steps comes when that many are reached: with several environments or repeated
        actions, up to one turn of all environments late, and the training then ends so much late too.

        Args:
            on_evaluation: Called with the environment steps and the result of each evaluation.
            on_progress: Called with the environment steps after each `log_period`.
        """
        names = self.learner.metric_names
        progress = Progress(self.folder, names, self.environment_steps, on_evaluation, on_progress)
        if not self.collector.started:
            self.collector.start(self.seed)
        last_saved, last_saved_at = self.environment_steps, time.monotonic()
        try:
            while self.environment_steps < self.config.total_steps and not self.stop_requested:
                self._collect_step()
                self._learn()
                if self._reached_multiple(self.config.log_period):
                    progress.metrics(self._counters(), self.latest_metrics, self.collector.finished_returns)
                if self._evaluation_is_due():
                    result = self.evaluate()
                    progress.evaluation(self._counters(), result, self._policy_state)
                if self._checkpoint_is_due(last_saved_at):
                    self.save()
                    last_saved, last_saved_at = self.environment_steps, time.monotonic()
            if self.environment_steps != last_saved:
                self.save()
            if self.environment_steps >= self.config.total_steps and self.learner.learner_steps == 0:
                _log.warning(
                    "nothing was learnt: %d environments keep their steps back until they have %d each or an episode "
                    "ends, and none came in time; raise training.total_steps",
                    self.config.environments,
                    PIECE_STEPS,
                )
        finally:
            progress.close()

    def _reached_multiple(self, period: int) -> bool:
        """Whether the newest step of the environments reached or passed a multiple of `period`."""
        return self.environment_steps % period < self._steps_per_turn

    def _evaluation_is_due(self) -> bool:
        """By steps; at the end of the training, so that the policy it leaves is known."""
        at_end = self.environment_steps >= self.config.total_steps
        return at_end or self._reached_multiple(self.config.evaluation_period)

    def _checkpoint_is_due(self, last_saved_at: float) -> bool:
        """By steps; at the end of the warm-up, so that an early crash is not a run from the start; or by time."""
        return (
            self._reached_multiple(self.config.checkpoint_period)
            or 0 <= self.environment_steps - self.config.warmup_steps < self._steps_per_turn
            or time.monotonic() - last_saved_at >= 60.0 * self.config.checkpoint_minutes
        )

    def evaluate(self) -> Evaluation:
        """Mean actions of the averaged policy in the nominal environment."""
        return evaluate(
            self.evaluation_environment, self.act_mean, self.config.evaluation_episodes, first_seed=EVALUATION_SEED
        )

    def act_mean(self, observation: FloatArray) -> FloatArray:
        """The evaluated policy's mean action [A] for a raw observation [O]."""
        seen = observation if self.normalizer is None else self.normalizer(observation)
        return self.evaluated_actor.distribution(seen)[0]

    def _collect_step(self) -> None:
        config, steps = self.config, self.environment_steps
        self.collector.step(uniform=steps < config.warmup_steps, white=steps < config.white_noise_steps)
        self.environment_steps += self._steps_per_turn

    def _learn(self) -> None:
        config = self.learner.config
        if self.environment_steps < self.config.warmup_steps:
            return
        updates_per_turn = self._steps_per_turn * self.config.updates_per_step
        self.update_debt += updates_per_turn
        if not self.replay.can_sample(config.sequence_length):
            return  # several environments still hold their first pieces back; the updates stay owed
        updates = int(self.update_debt)
        self.update_debt -= updates
        scale = 1.0 if self.return_scale is None else self.return_scale.scale
        # Metrics are costly: measure only the update that is newest when the next row is written.
        is_newest_at_row = self.update_debt + self._turns_to_row() * updates_per_turn < 1.0
        for index in range(updates):
            batch = self.replay.sample(self.rng, config.batch_sequences, config.sequence_length)
            want_metrics = is_newest_at_row and index == updates - 1
            metrics = self.learner.update(normalize(batch, self.normalizer), scale, want_metrics)
            if metrics is not None:
                self.latest_metrics = metrics._asdict()

    def _turns_to_row(self) -> int:
        """Further turns of all environments until a row of metrics.csv is due."""
        if self._reached_multiple(self.config.log_period):
            return 0
        return math.ceil((-self.environment_steps % self.config.log_period) / self._steps_per_turn)

    def _counters(self) -> dict[str, Any]:
        return {
            "environment_steps": self.environment_steps,
            "learner_steps": self.learner.learner_steps,
            "wall_time_s": round(self.clock.seconds, 3),
        }

    def save(self) -> None:
        """Write a checkpoint of everything to the run folder."""
        save_checkpoint(self.folder.checkpoints, self.environment_steps, self.state_dict(), self.replay.save)

    def resume(self) -> None:
        """Restore the newest readable checkpoint of the run folder; training goes on exactly as without a stop.

        Raises:
            ConfigError: there is none, or it was made with settings that differ in more than values.
        """
        state, _ = load_checkpoint(self.folder.checkpoints, self.replay.load)
        with restoring(self, state):
            self.load_state_dict(state)

    def _policy_state(self) -> dict[str, Any]:
        return {
            "learner": self.learner.state_dict(),
            "normalizer": None if self.normalizer is None else self.normalizer.state_dict(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything but the replay's rows."""
        return self._policy_state() | {
            "return_scale": None if self.return_scale is None else self.return_scale.state_dict(),
            "rng": rng_to_json(self.rng),
            "environment_steps": self.environment_steps,
            "update_debt": self.update_debt,
            "latest_metrics": dict(self.latest_metrics),
            "wall_time_s": self.clock.seconds,
            **self.collector.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict` exactly.

        Raises:
            ValueError: it was made with other networks.
        """
        self.learner.load_state_dict(state["learner"])
        if self.normalizer is not None:
            self.normalizer.load_state_dict(state["normalizer"])
        if self.return_scale is not None:
            self.return_scale.load_state_dict(state["return_scale"])
        self.rng.bit_generator.state = rng_from_json(state["rng"]).bit_generator.state  # the collector has it too
        self.collector.load_state_dict(state)
        self.environment_steps = int(state["environment_steps"])
        self.update_debt = float(state["update_debt"])
        self.latest_metrics = dict(state["latest_metrics"])
        self.clock = WallClock(float(state["wall_time_s"]))
