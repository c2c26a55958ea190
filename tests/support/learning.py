"""Small learners, and batches with everything in them that a learner must treat with care."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from mpo_robot.actor_critic import TensorBatch
from mpo_robot.episode import Episode
from mpo_robot.learner import Learner, TargetPass
from mpo_robot.mpo_config import LearnerConfig, MPOConfig
from mpo_robot.networks import CriticConfig, PolicyConfig
from mpo_robot.replay import SequenceBatch, SequenceReplay

OBSERVATION_SIZE, ACTION_SIZE = 3, 2
# Everything is given, so that no test depends on a default that someone tunes.
CONFIG = LearnerConfig(
    policy=PolicyConfig(hidden_sizes=(8, 6), layer_norm=True, init_stddev=0.5, min_stddev=1e-3),
    critic=CriticConfig(hidden_sizes=(8, 6), layer_norm=True, num_critics=2, aggregate="min"),
    mpo=MPOConfig(
        num_samples=5,
        epsilon=0.1,
        epsilon_mean=0.01,
        epsilon_stddev=1e-3,
        per_dim_constraining=True,
        action_penalization=True,
        epsilon_penalty=1e-3,
        init_temperature=1.0,
        init_alpha_mean=1.0,
        init_alpha_stddev=10.0,
        center_weights=False,
    ),
    discount=0.9,
    retrace_lambda=0.95,
    sequence_length=3,
    batch_sequences=8,
    learning_rate_policy=1e-3,
    learning_rate_critic=1e-3,
    learning_rate_duals=1e-2,
    grad_clip_norm=40.0,
    target_update_period=None,
    target_update_rate=0.1,
    return_scale_bound=5.0,
    policy_average_updates=None,
    policy_update_period=1,
    learning_rate_end_critic=0.1,
)


class AllWindows(np.random.Generator):
    """A generator with which `SequenceReplay.sample` returns every window once, oldest first."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def integers(self, high: int, size: int) -> Any:  # type: ignore[override]
        """0, 1, ... `high` - 1."""
        assert size == high
        return np.arange(high)


def change(config: Any, **changes: Any) -> Any:
    """Copy with changes; `section__field` reaches into a section, at any depth."""
    flat: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        section, separator, field = name.partition("__")
        if separator:
            sections.setdefault(section, {})[field] = value
        else:
            flat[name] = value
    flat |= {section: change(getattr(config, section), **fields) for section, fields in sections.items()}
    return dataclasses.replace(config, **flat)


def make_learner(seed: int = 0, **changes: Any) -> Learner:
    """A learner whose online and target networks differ, as they do in the middle of a training."""
    learner = Learner(OBSERVATION_SIZE, ACTION_SIZE, change(CONFIG, **changes), seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for flat in (learner.flat["target_policy"], learner.flat["target_critic"]):
            flat.add_(0.1 * torch.randn(flat.shape, generator=generator))
    return learner


def make_episodes() -> list[Episode]:
    """Terminated and truncated episodes, one of a single step, actions out of bounds, ratios that do not exist."""
    rng = np.random.default_rng(5)
    episodes = []
    for steps, terminated in ((4, True), (1, True), (5, False), (1, False), (6, True)):
        valid = rng.uniform(size=steps) < 0.7
        log_probs = rng.normal(-2.0, 1.0, steps)
        episodes.append(
            Episode(
                observations=rng.standard_normal((steps + 1, OBSERVATION_SIZE)).astype(np.float32),
                actions=(1.2 * rng.standard_normal((steps, ACTION_SIZE))).astype(np.float32),
                behavior_log_probs=np.where(valid, log_probs, np.nan).astype(np.float32),
                trace_valid=valid,
                rewards=rng.standard_normal(steps).astype(np.float32),
                terminated=terminated,
                spec_hash="",
            )
        )
    return episodes


def make_batch(steps: int = 3) -> SequenceBatch:
    """Every window of `steps` steps of `make_episodes`, in order; windows cross episode borders."""
    replay = SequenceReplay(100, OBSERVATION_SIZE, ACTION_SIZE)
    for episode in make_episodes():
        replay.add_episode(episode)
    return replay.sample(AllWindows(), len(replay) - steps, steps)


def tensors(batch: SequenceBatch) -> TensorBatch:
    """As the learner sees it."""
    return TensorBatch(*(torch.from_numpy(array.copy()) for array in batch))


def target_pass(learner: Learner, batch: TensorBatch, reward_scale: float = 1.0) -> TargetPass:
    """The learner's target pass as an update makes it, with noise from its generator."""
    scaled = batch._replace(reward=batch.reward / reward_scale)
    return learner.target_pass(scaled, learner._noise(scaled))


def gradients(learner: Learner, batch: SequenceBatch, **options: Any) -> dict[str, torch.Tensor]:
    """Gradients of all networks and duals for one batch; the learner is left as it was."""
    state = learner.generator.get_state()
    learner.backward(batch, **options)
    learner.generator.set_state(state)
    result = {}
    for name in ("policy", "critic", "duals"):
        flat = learner.flat[name]
        result[name] = flat.grad.clone()
        flat.grad.zero_()
    return result
