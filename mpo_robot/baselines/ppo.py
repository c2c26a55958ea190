"""PPO by stable-baselines3 (extra `baselines`), behind the training loop's interface and files.

An adapter: our environment as a Gymnasium environment, our normalisation, evaluations, metrics and checkpoints. PPO
learns from whole rollouts and is stopped and saved between them; no pickle, unlike the package's own files. The last
rollout is shortened to what is left of `total_steps`, and learnt from before the final evaluation.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from mpo_robot.baselines.gymnasium_adapter import GymnasiumAdapter
from mpo_robot.baselines.ppo_network import PPOActor, PPONetwork
from mpo_robot.checkpoint import bytes_from_tensor, bytes_to_tensor, load_checkpoint, save_checkpoint
from mpo_robot.evaluation import Evaluation, evaluate
from mpo_robot.learners import make_return_scale
from mpo_robot.mpo_config import LearnerConfig
from mpo_robot.normalization import RunningNormalizer
from mpo_robot.progress import OnEvaluation, OnProgress, Progress, WallClock
from mpo_robot.run_folder import RunFolder
from mpo_robot.trainer import EVALUATION_SEED, restoring
from mpo_robot.training_config import TrainingConfig
from mpo_robot.types import Environment, FloatArray

# Our names of what the package records under train/.
METRICS = {
    "loss_critic": "value_loss",
    "loss_policy": "policy_gradient_loss",
    "kl": "approx_kl",
    "clip_fraction": "clip_fraction",
    "stddev_mean": "std",
    "explained_variance": "explained_variance",
}


class _StopError(Exception):
    """Ends the package's loop between two rollouts."""


class _PPO(PPO):
    """PPO that ends at its total of steps exactly, with a shorter last rollout, instead of collecting a whole one."""

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        steps = min(n_rollout_steps, self._total_timesteps - self.num_timesteps)
        rollout_buffer.buffer_size = steps  # allocated anew at the start of every rollout
        return super().collect_rollouts(env, callback, rollout_buffer, steps)


class PPOTrainer(BaseCallback):
    """Trains with PPO and writes what `Trainer` writes; the same arguments and methods as far as the command needs."""

    def __init__(
        self,
        environment: Environment,
        evaluation_environment: Environment,
        training: TrainingConfig,
        learner: LearnerConfig,
        folder: RunFolder,
        seed: int,
        action_repeat: int = 1,
    ) -> None:
        super().__init__()
        spec = environment.spec
        self.config, self.folder = training, folder
        self.environment, self.evaluation_environment = environment, evaluation_environment
        self.normalizer = RunningNormalizer(spec.observation_size) if training.normalize_observations else None
        self.return_scale = make_return_scale(spec, learner)
        self.adapter = GymnasiumAdapter(environment, self.normalizer, self.return_scale)
        self.ppo = _make_ppo(self.adapter, learner, learner.discount_at(spec.control_dt), seed)
        policy = self.ppo.policy
        assert isinstance(policy.action_net, torch.nn.Linear)
        self.network = PPONetwork(policy.mlp_extractor.policy_net, policy.action_net, policy.log_std)
        self.actor = PPOActor(self.network)
        self.stop_requested = False
        self.clock = WallClock()
        self._last_saved, self._last_saved_at = 0, time.monotonic()
        self._action_repeat = action_repeat

    @property
    def environment_steps(self) -> int:
        """Steps so far, those of repeated actions included."""
        return self.ppo.num_timesteps * self._action_repeat

    def run(self, on_evaluation: OnEvaluation | None = None, on_progress: OnProgress | None = None) -> None:
        """Train until `total_steps`, or until `stop_requested` is set and the rollout is finished; then save."""
        self._progress = Progress(self.folder, list(METRICS), self.environment_steps, on_evaluation, on_progress)
        remaining = math.ceil((self.config.total_steps - self.environment_steps) / self._action_repeat)
        try:
            if remaining > 0:
                # log_interval None leaves the records in the logger, where the rows of metrics.csv come from.
                self.ppo.learn(remaining, callback=self, log_interval=None, reset_num_timesteps=False)  # type: ignore[arg-type]
            if self.environment_steps != self._last_saved:
                self.save()
        except _StopError:
            pass
        finally:
            self._progress.close()

    def evaluate(self) -> Evaluation:
        """Mean actions of the current policy in the nominal environment."""

        def act(observation: FloatArray) -> FloatArray:
            return self.actor.distribution(self.normalizer(observation) if self.normalizer else observation)[0]

        return evaluate(self.evaluation_environment, act, self.config.evaluation_episodes, EVALUATION_SEED)

    def _on_rollout_start(self) -> None:
        due = (
            self.environment_steps - self._last_saved >= self.config.checkpoint_period
            or time.monotonic() - self._last_saved_at >= 60.0 * self.config.checkpoint_minutes
        )
        if self.environment_steps and (due or self.stop_requested):
            self.save()
        if self.stop_requested:
            raise _StopError

    def _on_step(self) -> bool:
        if self.environment_steps < self.config.total_steps:  # the last step waits for the last update
            self._report()
        return True

    def _on_training_end(self) -> None:
        self._report()

    def _report(self) -> None:
        step, total = self.environment_steps, self.config.total_steps
        if step % self.config.log_period < self._action_repeat:
            self._progress.metrics(self._counters(), self._recorded_metrics(), self.adapter.finished_returns)
        if step % self.config.evaluation_period < self._action_repeat or step >= total:
            self._progress.evaluation(self._counters(), self.evaluate(), self._policy_state)

    def _counters(self) -> dict[str, Any]:
        steps = {"environment_steps": self.environment_steps, "learner_steps": self.ppo._n_updates}
        return steps | {"wall_time_s": round(self.clock.seconds, 3)}

    def _recorded_metrics(self) -> dict[str, float]:
        recorded = self.ppo.logger.name_to_value
        return {ours: float(recorded[f"train/{name}"]) for ours, name in METRICS.items() if f"train/{name}" in recorded}

    def _policy_state(self) -> dict[str, Any]:
        ppo = self.ppo
        return {
            "learner": {
                "network": self.network.state_dict(),
                "policy": ppo.policy.state_dict(),
                "optimizer": ppo.policy.optimizer.state_dict(),
                "learner_steps": ppo._n_updates,
            },
            "normalizer": None if self.normalizer is None else self.normalizer.state_dict(),
        }

    def save(self) -> None:
        """Write a checkpoint, between two rollouts."""
        ppo = self.ppo
        numpy_rng = np.random.get_state(legacy=False)
        numpy_rng["state"]["key"] = numpy_rng["state"]["key"].tolist()
        continues = ppo._last_obs is not None
        state = self._policy_state() | {
            "return_scale": None if self.return_scale is None else self.return_scale.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "numpy_rng": json.dumps(numpy_rng),
            "environment": bytes_to_tensor(self.environment.get_state()),
            "observation": torch.tensor(ppo._last_obs) if continues else None,
            "episode_start": bool(ppo._last_episode_starts[0]) if continues else True,  # type: ignore[index]
            "episode_return": self.adapter.episode_return,
            "finished_returns": list(self.adapter.finished_returns),
            "recorded": {name: float(value) for name, value in ppo.logger.name_to_value.items()},
            "environment_steps": self.environment_steps,
            "wall_time_s": self.clock.seconds,
        }
        save_checkpoint(self.folder.checkpoints, self.environment_steps, state, _no_replay)
        self._last_saved, self._last_saved_at = self.environment_steps, time.monotonic()

    def resume(self) -> None:
        """Restore the newest checkpoint, exactly.

        Raises:
            ConfigError: there is none, or it was made with settings that differ in more than values.
        """
        state, _ = load_checkpoint(self.folder.checkpoints)
        with restoring(self, state):
            self._load_state_dict(state)

    def _load_state_dict(self, state: dict[str, Any]) -> None:
        ppo, learner = self.ppo, state["learner"]
        ppo.policy.load_state_dict(learner["policy"])
        ppo.policy.optimizer.load_state_dict(learner["optimizer"])
        ppo._n_updates = learner["learner_steps"]
        ppo.num_timesteps = state["environment_steps"] // self._action_repeat
        if self.normalizer is not None:
            self.normalizer.load_state_dict(state["normalizer"])
        if self.return_scale is not None:
            self.return_scale.load_state_dict(state["return_scale"])
        self.environment.set_state(bytes_from_tensor(state["environment"]))
        if state["observation"] is not None:
            ppo._last_obs = state["observation"].numpy()
            ppo._last_episode_starts = np.array([state["episode_start"]])
        self.adapter.episode_return = state["episode_return"]
        self.adapter.finished_returns = list(state["finished_returns"])
        self._recorded = state["recorded"]
        self.clock = WallClock(state["wall_time_s"])
        self._last_saved = self.environment_steps
        numpy_rng = json.loads(state["numpy_rng"])
        numpy_rng["state"]["key"] = np.array(numpy_rng["state"]["key"], np.uint32)
        np.random.set_state(numpy_rng)
        torch.set_rng_state(state["torch_rng"])

    def _on_training_start(self) -> None:
        for name, value in getattr(self, "_recorded", {}).items():
            self.ppo.logger.record(name, value)


def _make_ppo(environment: GymnasiumAdapter, learner: LearnerConfig, discount: float, seed: int) -> PPO:
    config = learner.ppo
    return _PPO(
        "MlpPolicy",
        DummyVecEnv([lambda: environment]),  # a bare environment would be wrapped in one with a state of its own
        learning_rate=config.learning_rate,
        n_steps=config.rollout_steps,
        batch_size=config.batch_size,
        n_epochs=config.epochs,
        gamma=discount,
        gae_lambda=config.gae_lambda,
        clip_range=config.clip_range,
        ent_coef=config.entropy_bonus,
        max_grad_norm=config.grad_clip_norm,
        policy_kwargs={
            "net_arch": {"pi": list(learner.policy.hidden_sizes), "vf": list(learner.critic.hidden_sizes)},
            "log_std_init": float(np.log(learner.policy.init_stddev)),
        },
        seed=seed,
        device="cpu",
    )


def _no_replay(path: Path) -> None:
    """A checkpoint has a replay file; PPO's is empty."""
    with path.open("wb") as stream:
        np.savez(stream)
