"""Collection of experience: one environment, or several that are stepped together.

A collector owns the environment and what belongs to the episode under way; the trainer owns the loop and what every
environment shares with the learner. Axes: E environments, O observation size, A action size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from mpo_robot.acting import SampledAction, uniform_action
from mpo_robot.actor_critic import Actor
from mpo_robot.checkpoint import bytes_from_tensor, bytes_to_tensor
from mpo_robot.exploration import EpisodeNoise
from mpo_robot.normalization import ReturnScale, RunningNormalizer
from mpo_robot.replay import SequenceReplay
from mpo_robot.specs import PolicySpec
from mpo_robot.training_config import TrainingConfig
from mpo_robot.types import Environment, EnvironmentVector, FloatArray

# Of several environments, each one's transitions wait for so many, or for the end of its episode, before they go to
# the replay as a piece of consecutive rows: a window must not mix environments. A piece in the middle of an episode
# ends as a truncated episode does, with its bootstrap observation in a row of its own, which the next piece repeats.
# So a border costs one row in PIECE_STEPS + 1 (1.5 %) of the replay and of the sampled positions, which are masked,
# and it cuts the trace in the windows across it: of sequences of L steps, about L in PIECE_STEPS. A shorter piece
# would cost more; a longer one would keep the newest transitions from the learner for longer.
PIECE_STEPS = 64


@dataclass(frozen=True)
class Shared:
    """What all environments share with the learner; `normalizer` and `return_scale` as far as the training has them."""

    actor: Actor
    replay: SequenceReplay
    normalizer: RunningNormalizer | None
    return_scale: ReturnScale | None
    rng: np.random.Generator

    def choose(self, observation: FloatArray, noise: EpisodeNoise, white: bool = False) -> SampledAction:
        """The policy's action for a raw observation [O], with this noise or with white noise."""
        seen = observation if self.normalizer is None else self.normalizer(observation)
        return self.actor.sample(seen, *noise.sample(self.rng, white))


def make_noise(spec: PolicySpec, config: TrainingConfig) -> EpisodeNoise:
    """Noise of one environment. That of discrete actions only picks among them: to scale it would have no meaning."""
    scale_min = config.noise_scale_min if spec.num_actions is None else 1.0
    return EpisodeNoise(spec.action_size, config.noise_color_at(spec.control_dt), scale_min)


class Collector:
    """One environment; each step goes straight to the replay."""

    def __init__(self, environment: Environment, shared: Shared, config: TrainingConfig) -> None:
        self.environment = environment
        self.shared = shared
        self.noise = make_noise(environment.spec, config)
        self.observation: FloatArray | None = None
        self.episode_return = 0.0
        self.finished_returns: list[float] = []  # the trainer clears it

    @property
    def started(self) -> bool:
        """Whether an episode is under way."""
        return self.observation is not None

    def start(self, seed: int | None) -> None:
        """Begin an episode; a seed makes everything after it repeat."""
        self.observation, _ = self.environment.reset(seed=seed)
        self.episode_return = 0.0
        self.noise.start_episode()
        if self.shared.normalizer is not None:
            self.shared.normalizer.update(self.observation)

    def step(self, uniform: bool, white: bool) -> None:
        """One step, with an action of the policy, under its noise or white noise, or with a uniform one."""
        assert self.observation is not None
        shared, spec = self.shared, self.environment.spec
        if uniform:
            action, log_prob = uniform_action(spec.action_size, shared.rng, spec.num_actions)
        else:
            action, log_prob = shared.choose(self.observation, self.noise, white)
        result = self.environment.step(action)
        ended = result.terminated or result.truncated
        shared.replay.add(self.observation, action, log_prob, result.reward, result.terminated)
        self.episode_return += result.reward
        if shared.return_scale is not None:
            shared.return_scale.update(result.reward, ended)
        if ended:
            shared.replay.end_episode(result.observation, result.terminated)
            self.finished_returns.append(self.episode_return)
            self.start(None)
        else:
            self.observation = result.observation
            if shared.normalizer is not None:
                shared.normalizer.update(result.observation)

    def state_dict(self) -> dict[str, Any]:
        """Environment and episode."""
        return {
            "noise": self.noise.state_dict(),
            "environment": bytes_to_tensor(self.environment.get_state()),
            "observation": torch.tensor(np.asarray(self.observation)),
            "episode_return": self.episode_return,
            "finished_returns": list(self.finished_returns),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict` exactly.

        Raises:
            ValueError: it is of another number of environments.
        """
        _require_count(state, 1)
        self.noise.load_state_dict(state.get("noise", {"noise": []}))  # checkpoints of version 0.1 have none
        self.environment.set_state(bytes_from_tensor(state["environment"]))
        self.observation = state["observation"].numpy()
        self.episode_return = float(state["episode_return"])
        self.finished_returns = list(state["finished_returns"])


class Transition(NamedTuple):
    """A step that waits for the replay."""

    observation: FloatArray
    action: FloatArray
    log_prob: float
    reward: float
    terminated: bool


@dataclass
class Lane:
    """What each of several environments has of its own.

    Attributes:
        noise: Exploration of its episode.
        observation: [O], the newest.
        episode_return: Rewards of the episode so far.
        discounted_return: Running sum of `ReturnScale`.
        piece: Transitions that wait for the replay.
    """

    noise: EpisodeNoise
    observation: FloatArray
    episode_return: float = 0.0
    discounted_return: float = 0.0
    piece: list[Transition] = field(default_factory=list)

    def flush(self, replay: SequenceReplay, terminated: bool) -> None:
        """Move the piece to the replay, ended by `observation`."""
        for transition in self.piece:
            replay.add(*transition)
        replay.end_episode(self.observation, terminated)
        self.piece.clear()

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and tensors. No transition in `piece` is terminated: that ends a piece."""
        rows = [np.concatenate([step.observation, step.action]) for step in self.piece]
        width = len(self.observation) + self.noise.size
        return {
            "noise": self.noise.state_dict(),
            "observation": torch.tensor(self.observation),
            "episode_return": self.episode_return,
            "discounted_return": self.discounted_return,
            "piece": torch.tensor(np.array(rows, np.float32).reshape(-1, width)),
            "piece_log_probs": [step.log_prob for step in self.piece],
            "piece_rewards": [step.reward for step in self.piece],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict` exactly."""
        self.noise.load_state_dict(state["noise"])
        self.observation = state["observation"].numpy()
        self.episode_return = float(state["episode_return"])
        self.discounted_return = float(state["discounted_return"])
        size = len(self.observation)
        columns = zip(state["piece"].numpy(), state["piece_log_probs"], state["piece_rewards"])
        self.piece = [Transition(row[:size], row[size:], log_prob, reward, False) for row, log_prob, reward in columns]


class VectorCollector:
    """E environments, stepped together; a step of all counts as E."""

    def __init__(self, environment: EnvironmentVector, shared: Shared, config: TrainingConfig) -> None:
        self.environment = environment
        self.shared = shared
        spec = environment.spec
        nothing = np.zeros(spec.observation_size, np.float32)
        self.lanes = [Lane(make_noise(spec, config), nothing) for _ in range(len(environment))]
        self.started = False
        self.finished_returns: list[float] = []  # the trainer clears it

    def start(self, seed: int | None) -> None:
        """Begin an episode in every environment; a seed makes everything after it repeat."""
        for index in range(len(self.lanes)):
            self._start_episode(index, seed)
        self._normalizer_sees()
        self.started = True

    def _start_episode(self, index: int, seed: int | None) -> None:
        lane = self.lanes[index]
        lane.observation, _ = self.environment.reset_at(index, seed)
        lane.episode_return = lane.discounted_return = 0.0
        lane.noise.start_episode()

    def _normalizer_sees(self) -> None:
        if self.shared.normalizer is not None:
            self.shared.normalizer.update(np.stack([lane.observation for lane in self.lanes]))

    def step(self, uniform: bool, white: bool) -> None:
        """One step of every environment. Arguments as in `Collector.step`."""
        shared, spec = self.shared, self.environment.spec
        if uniform:
            chosen = [uniform_action(spec.action_size, shared.rng, spec.num_actions) for _ in self.lanes]
        else:
            chosen = [shared.choose(lane.observation, lane.noise, white) for lane in self.lanes]
        result = self.environment.step(np.stack([action for action, _ in chosen]))
        for index, (lane, (action, log_prob)) in enumerate(zip(self.lanes, chosen)):
            reward, terminated = float(result.reward[index]), bool(result.terminated[index])
            lane.piece.append(Transition(lane.observation, action, log_prob, reward, terminated))
            lane.observation = result.observation[index]
            lane.episode_return += reward
            if shared.return_scale is not None:
                lane.discounted_return = shared.return_scale.discount * lane.discounted_return + reward
                shared.return_scale.add(lane.discounted_return)
            ended = terminated or bool(result.truncated[index])
            if ended or len(lane.piece) >= PIECE_STEPS:
                lane.flush(shared.replay, terminated)
            if ended:
                self.finished_returns.append(lane.episode_return)
                self._start_episode(index, None)
        self._normalizer_sees()

    def state_dict(self) -> dict[str, Any]:
        """Environments and episodes, with the transitions that wait for the replay."""
        return {
            "lanes": [lane.state_dict() for lane in self.lanes],
            "environment": bytes_to_tensor(self.environment.get_state()),
            "finished_returns": list(self.finished_returns),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict` exactly.

        Raises:
            ValueError: it is of another number of environments.
        """
        _require_count(state, len(self.lanes))
        for lane, saved in zip(self.lanes, state["lanes"]):
            lane.load_state_dict(saved)
        self.environment.set_state(bytes_from_tensor(state["environment"]))
        self.finished_returns = list(state["finished_returns"])
        self.started = True


def make_collector(
    environment: Environment | EnvironmentVector, shared: Shared, config: TrainingConfig
) -> Collector | VectorCollector:
    """The collector of `config.environments` environments; `environment` is a vector if they are more than one."""
    if config.environments == 1:
        return Collector(cast(Environment, environment), shared, config)
    return VectorCollector(cast(EnvironmentVector, environment), shared, config)


def _require_count(state: dict[str, Any], count: int) -> None:
    saved = len(state["lanes"]) if "lanes" in state else 1
    if saved != count:
        raise ValueError(f"it was saved with training.environments {saved}, and here are {count}")
