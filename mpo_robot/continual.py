"""Continued learning from real logs: the real replay, mixed updates, and a checkpoint of its own.

The training run stays as it was. What is learnt here lies in `RUN/learn/`: learner state, real replay and the ledger
of ingested logs are one checkpoint that becomes visible as a whole, so that a crash neither loses a log nor counts it
twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpo_robot.checkpoint import list_checkpoints, load_checkpoint, rng_from_json, rng_to_json, save_checkpoint
from mpo_robot.episode import Episode
from mpo_robot.errors import ConfigError
from mpo_robot.learn_config import LearnConfig
from mpo_robot.learners import make_learner, make_return_scale
from mpo_robot.mpo_config import LearnerConfig
from mpo_robot.policy_io import LoadedPolicy, normalizer_from_state
from mpo_robot.replay import SequenceReplay
from mpo_robot.run_folder import RunFolder
from mpo_robot.sampling import normalize, sample_mixed
from mpo_robot.training_config import TrainingConfig


class ContinualLearner:
    """A run's learner with a real replay beside the simulated one.

    The observation normaliser and the return scale stay as the training left them: they are part of the policy and
    of the critic's units, and a few real episodes must not shift them.

    Attributes:
        ledger: What is known of each ingested log, by episode id: `steps`, `file`, `problem`.
        legacy_names: File names of logs ingested by version 0.1, which did not note episode ids.
        real_steps: Real steps ingested so far.
        unlearnt_steps: Those of them that no finished round of updates has followed yet.
        last_round: Learner step at the end of the newest finished round, what is to be published; 0 if there was none.
    """

    def __init__(
        self, folder: RunFolder, learner_config: LearnerConfig, training: TrainingConfig, config: LearnConfig
    ) -> None:
        self.folder = folder
        self.config = config
        self.spec = folder.spec()
        if self.spec.num_actions is not None:
            raise ConfigError(f"{folder.path} learnt a task with discrete actions: there are no robot logs of those")
        if config.real_capacity <= learner_config.sequence_length:
            raise ConfigError(
                f"real_capacity {config.real_capacity} must be above learner.sequence_length "
                f"{learner_config.sequence_length}, or no sequence fits the real replay"
            )
        self.checkpoints = folder.learn_checkpoints
        sizes = (self.spec.observation_size, self.spec.action_size)
        self.simulated_replay: SequenceReplay | None = None
        if config.use_simulated_data:
            self.simulated_replay = SequenceReplay(training.replay_capacity, *sizes)
        load_simulated = None if self.simulated_replay is None else self.simulated_replay.load
        self.learner = make_learner(self.spec, learner_config, seed=0, planned_updates=training.planned_updates)
        base, _ = load_checkpoint(folder.checkpoints, load_simulated)
        self.real_replay = SequenceReplay(config.real_capacity, *sizes)
        self.rng = np.random.default_rng(0)
        self.ledger: dict[str, dict[str, Any]] = {}
        self.legacy_names: frozenset[str] = frozenset()
        self.real_steps = 0
        self.unlearnt_steps = 0
        self.last_round = 0
        self._base_steps = int(base["environment_steps"])
        self._normalizer_state = base["normalizer"]
        self._return_scale_state = base["return_scale"]
        self.learner.load_state_dict(base["learner"])
        self.learner.restart_average()  # or a short round's policy would mostly be the one from before the logs
        if list_checkpoints(self.checkpoints):
            self._restore(load_checkpoint(self.checkpoints, lambda path: self.real_replay.load(path, resize=True))[0])
        self.normalizer = normalizer_from_state(self._normalizer_state, self.spec.observation_size)
        self.reward_scale = 1.0
        scale = make_return_scale(self.spec, learner_config)
        if self._return_scale_state is not None and scale is not None:
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
        ledger = state["ledger"]
        if isinstance(ledger, list):  # version 0.1 knew file names only
            self.legacy_names = frozenset(ledger)
        else:
            self.ledger = {name: dict(entry) for name, entry in ledger.items()}
            self.legacy_names = frozenset(state["legacy_names"])
        self.real_steps = int(state["real_steps"])
        self.unlearnt_steps = int(state.get("unlearnt_steps", 0))
        self.last_round = int(state.get("last_round", 0))
        self._normalizer_state = state["normalizer"]
        self._return_scale_state = state["return_scale"]

    def knows(self, episode_id: str, file_name: str) -> bool:
        """Whether an episode was ingested before, from whatever file."""
        return episode_id in self.ledger or bool({file_name, f"{episode_id}.mcap"} & self.legacy_names)

    def ingest(self, episode_id: str, episodes: Sequence[Episode], origin: Mapping[str, Any] | None = None) -> int:
        """Add the validated parts of one log and note it in the ledger; returns the number of steps.

        Args:
            episode_id: Name of the episode in the log, whatever its file is called.
            episodes: Its parts.
            origin: What else the ledger notes about it: its file, what was damaged.

        Raises:
            EpisodeError: a part breaks the schema. Then, as in the next case, nothing was added.
            ConfigError: a part does not fit the real replay.
        """
        for episode in episodes:
            episode.validate(self.spec)
            if len(episode) + 1 > self.real_replay.capacity:
                raise ConfigError(
                    f"episode {episode_id} has a part of {len(episode)} steps, more than a real replay of "
                    f"{self.real_replay.capacity} rows holds: set real_capacity={len(episode) + 1} or more"
                )
        for episode in episodes:
            self.real_replay.add_episode(episode)
        steps = sum(len(episode) for episode in episodes)
        self.real_steps += steps
        self.unlearnt_steps += steps
        self.ledger[episode_id] = {"steps": steps, **(origin or {})}
        return steps

    @property
    def can_learn(self) -> bool:
        """Whether the real replay holds a sequence to learn from; a first log may be too short."""
        return self.real_replay.can_sample(self.learner.config.sequence_length)

    def end_round(self, updates: int, planned: int) -> None:
        """Note that `updates` of the `planned` updates for the unlearnt steps are done."""
        if updates < planned:  # stopped: the rest is owed
            self.unlearnt_steps = math.ceil(self.unlearnt_steps * (1 - updates / planned))
            return
        self.unlearnt_steps = 0
        self.last_round = self.learner.learner_steps

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
            "ledger": {name: dict(entry) for name, entry in self.ledger.items()},
            "legacy_names": sorted(self.legacy_names),
            "real_steps": self.real_steps,
            "unlearnt_steps": self.unlearnt_steps,
            "last_round": self.last_round,
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
        policy, actor = self.learner.exported_policy(), self.learner.averaged_actor()
        return LoadedPolicy(policy, self.normalizer, self.spec, training, actor)
