"""Continued learning from real logs: the real replay, mixed updates, and a checkpoint of its own.

The training run stays as it was. What is learnt here lies in `RUN/learn/`: learner state, real replay and the ledger
of ingested logs are one checkpoint that becomes visible as a whole, so that a crash neither loses a log nor counts it
twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpo_robot.checkpoint import list_checkpoints, load_checkpoint, rng_from_json, rng_to_json, save_checkpoint
from mpo_robot.episode import Episode
from mpo_robot.errors import ConfigError
from mpo_robot.learners import make_learner
from mpo_robot.mpo_config import LearnerConfig
from mpo_robot.normalization import ReturnScale
from mpo_robot.policy_io import LoadedPolicy, normalizer_from_state
from mpo_robot.replay import SequenceReplay
from mpo_robot.run_folder import RunFolder
from mpo_robot.sampling import normalize, sample_mixed
from mpo_robot.training_config import TrainingConfig


@dataclass(frozen=True)
class LearnConfig:
    """How real data are learnt from.

    Attributes:
        real_fraction: Share of each batch that comes from real logs; the rest comes from the run's simulated replay.
        updates_per_real_step: Learner updates for each newly ingested real step.
        min_updates: Least number of updates per round.
        max_updates: Largest number of updates per round.
        real_capacity: Rows of the real replay.
        use_simulated_data: Mix in the run's simulated replay; False learns from real logs only.
    """

    real_fraction: float = 0.75
    updates_per_real_step: float = 1.0
    min_updates: int = 500
    max_updates: int = 20_000
    real_capacity: int = 1_000_000
    use_simulated_data: bool = True

    def __post_init__(self) -> None:
        if not 0.0 < self.real_fraction <= 1.0:
            raise ValueError(f"real_fraction must be in (0, 1], got {self.real_fraction}")
        if not 0 <= self.min_updates <= self.max_updates:
            raise ValueError(f"need 0 <= min_updates <= max_updates, got {self.min_updates} and {self.max_updates}")

    def updates_for(self, new_steps: int) -> int:
        """Number of updates after ingesting `new_steps` real steps."""
        return int(min(max(self.updates_per_real_step * new_steps, self.min_updates), self.max_updates))


class ContinualLearner:
    """A run's learner with a real replay beside the simulated one.

    The observation normaliser and the return scale stay as the training left them: they are part of the policy and
    of the critic's units, and a few real episodes must not shift them.
    """

    def __init__(
        self, folder: RunFolder, learner_config: LearnerConfig, training: TrainingConfig, config: LearnConfig
    ) -> None:
        self.folder = folder
        self.config = config
        self.spec = folder.spec()
        self.checkpoints = folder.learn_checkpoints
        sizes = (self.spec.observation_size, self.spec.action_size)
        self.simulated_replay: SequenceReplay | None = None
        if config.use_simulated_data:
            self.simulated_replay = SequenceReplay(training.replay_capacity, *sizes)
        load_simulated = None if self.simulated_replay is None else self.simulated_replay.load
        base, _ = load_checkpoint(folder.checkpoints, load_simulated)
        self.learner = make_learner(self.spec, learner_config, seed=0)
        self.real_replay = SequenceReplay(config.real_capacity, *sizes)
        self.rng = np.random.default_rng(0)
        self.ledger: list[str] = []  # names of ingested logs
        self.real_steps = 0
        self._base_steps = int(base["environment_steps"])
        self._normalizer_state = base["normalizer"]
        self._return_scale_state = base["return_scale"]
        self.learner.load_state_dict(base["learner"])
        if list_checkpoints(self.checkpoints):
            self._restore(load_checkpoint(self.checkpoints, self.real_replay.load)[0])
        self.normalizer = normalizer_from_state(self._normalizer_state, self.spec.observation_size)
        self.reward_scale = 1.0
        bound = learner_config.return_scale_bound
        if self._return_scale_state is not None and bound is not None:
            scale = ReturnScale(learner_config.discount, bound)
            scale.load_state_dict(self._return_scale_state)
            self.reward_scale = scale.scale

    def _restore(self, state: dict[str, Any]) -> None:
        if int(state["environment_steps"]) < self._base_steps:
            raise ConfigError(
                f"{self.folder.path} was trained on to step {self._base_steps:,} after logs had been learnt from at "
                f"step {int(state['environment_steps']):,}. Move {self.checkpoints.parent} away to start from the "
                "newer training checkpoint, and ingest the logs again."
            )
        self.learner.load_state_dict(state["learner"])
        self.rng = rng_from_json(state["rng"])
        self.ledger = list(state["ledger"])
        self.real_steps = int(state["real_steps"])
        self._normalizer_state = state["normalizer"]
        self._return_scale_state = state["return_scale"]

    def ingest(self, name: str, episodes: Sequence[Episode]) -> int:
        """Add the validated episodes of one log and note its name in the ledger; returns the number of steps."""
        for episode in episodes:
            episode.validate(self.spec)
        for episode in episodes:
            self.real_replay.add_episode(episode)
        steps = sum(len(episode) for episode in episodes)
        self.real_steps += steps
        self.ledger.append(name)
        return steps

    def update(self, want_metrics: bool = False) -> Any:
        """One learner update on a mixed batch."""
        config = self.learner.config
        batch = sample_mixed(
            self.rng,
            self.simulated_replay,
            self.real_replay,
            self.config.real_fraction,
            config.batch_sequences,
            config.sequence_length,
        )
        return self.learner.update(normalize(batch, self.normalizer), self.reward_scale, want_metrics)

    def save(self) -> None:
        """Write learner, real replay and ledger as one checkpoint."""
        state = {
            "learner": self.learner.state_dict(),
            "normalizer": self._normalizer_state,
            "return_scale": self._return_scale_state,
            "environment_steps": self._base_steps,
            "rng": rng_to_json(self.rng),
            "ledger": list(self.ledger),
            "real_steps": self.real_steps,
        }
        # Two saves at the same learner step happen: an ingest without updates.
        step = self.learner.learner_steps
        save_checkpoint(self.checkpoints, step, state, self.real_replay.save)

    def policy(self) -> LoadedPolicy:
        """The current policy, ready for export."""
        training = {
            "run": str(self.folder.path),
            "environment_steps": self._base_steps,
            "learner_steps": self.learner.learner_steps,
            "real_steps": self.real_steps,
        }
        return LoadedPolicy(self.learner.online_policy, self.normalizer, self.spec, training, self.learner.actor())
