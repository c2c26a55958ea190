"""A tiny trained run folder and episodes that fit it, made without a simulator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mpo_robot.checkpoint import save_checkpoint
from mpo_robot.config import dump_yaml
from mpo_robot.episode import Episode
from mpo_robot.learner import Learner
from mpo_robot.mpo_config import LearnerConfig, MPOConfig
from mpo_robot.networks import CriticConfig, PolicyConfig
from mpo_robot.normalization import ReturnScale, RunningNormalizer
from mpo_robot.replay import SequenceReplay
from mpo_robot.run_folder import RunFolder
from mpo_robot.specs import PolicySpec, TermSpec
from mpo_robot.training_config import TrainingConfig

SPEC = PolicySpec(
    (TermSpec("position", 2, "rad"), TermSpec("velocity", 1, "rad/s")),
    (TermSpec("motor", 2, "N m", (-2.0, -1.0), (2.0, 3.0)),),
    0.02,
)
LEARNER = LearnerConfig(
    policy=PolicyConfig(hidden_sizes=(8,)),
    critic=CriticConfig(hidden_sizes=(8,)),
    mpo=MPOConfig(num_samples=4),
    sequence_length=3,
    batch_sequences=8,
)
TRAINING = TrainingConfig(replay_capacity=500)


def make_episode(steps: int, seed: int = 0, spec: PolicySpec = SPEC, terminated: bool = False) -> Episode:
    """Random but valid."""
    rng = np.random.default_rng(seed)
    size = spec.action_size
    return Episode(
        observations=rng.standard_normal((steps + 1, spec.observation_size)).astype(np.float32),
        actions=rng.standard_normal((steps, size)).astype(np.float32),
        behavior_log_probs=rng.standard_normal(steps).astype(np.float32),
        trace_valid=np.ones(steps, np.bool_),
        rewards=rng.standard_normal(steps).astype(np.float32),
        terminated=terminated,
        spec_hash=spec.spec_hash,
        episode_id=f"episode-{seed}",
    )


def make_run(
    path: Path, environment_steps: int = 200, config_yaml: str | None = None, spec: PolicySpec = SPEC
) -> RunFolder:
    """A run folder with one checkpoint of an untrained learner and a replay of random episodes."""
    folder = RunFolder(path)
    task = {"task": "dm_control:cartpole-swingup"}
    text = config_yaml or dump_yaml({"environment": task, "training": TRAINING, "learner": LEARNER})
    folder.create(text, spec, seed=0)
    learner = Learner(SPEC.observation_size, SPEC.action_size, LEARNER, seed=0)
    replay = SequenceReplay(TRAINING.replay_capacity, SPEC.observation_size, SPEC.action_size)
    normalizer, scale = RunningNormalizer(SPEC.observation_size), ReturnScale(LEARNER.discount_at(SPEC.control_dt))
    for seed in range(4):
        episode = make_episode(50, seed)
        replay.add_episode(episode)
        normalizer.update(episode.observations)
        for index, reward in enumerate(episode.rewards):
            scale.update(float(reward), index == len(episode) - 1)
    state = {
        "learner": learner.state_dict(),
        "normalizer": normalizer.state_dict(),
        "return_scale": scale.state_dict(),
        "environment_steps": environment_steps,
        "unused": torch.zeros(1),
    }
    save_checkpoint(folder.checkpoints, environment_steps, state, replay.save)
    return folder
