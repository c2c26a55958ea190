"""Rewards of logged steps that the robot did not know: a function of the user's computes them.

Shapes: T steps, O observation size, A action size.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpo_robot.episode import StepRecord, check_record
from mpo_robot.errors import ConfigError
from mpo_robot.specs import PolicySpec

FloatArray = npt.NDArray[np.float32]


class RewardExtras(NamedTuple):
    """What a reward function may use besides observations and actions.

    Attributes:
        spec: Names, units and order of observations and commands, and `control_dt` in seconds.
        applied_commands: [T, A] physical commands in force during the steps.
        terminated: [T] bool, the task ended with the step.
        truncated: [T] bool, the episode was cut after the step.
        step_indices: [T] int; a gap means that steps are missing.
        monotonic_ns: [T] int, when the observations were taken.
        episode_id: Name of the episode.
        info: What the robot said about the episode at its start.
    """

    spec: PolicySpec
    applied_commands: FloatArray
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    step_indices: npt.NDArray[np.int64]
    monotonic_ns: npt.NDArray[np.int64]
    episode_id: str
    info: Mapping[str, Any]


# (observations, actions, next_observations, extras: RewardExtras) -> rewards; a user's function, so not checkable.
RewardFunction = Callable[..., Any]


@dataclass(frozen=True)
class RewardHook:
    """A reward function and what it is for.

    Attributes:
        name: `package.module:function`, for messages.
        function: Takes observations [T, O], actions [T, A] as executed, next observations [T, O] and `RewardExtras`;
            returns [T] rewards in the unit of the training's rewards, NaN where even it does not know.
        every: Replace every reward, not only those that are NaN in the log.
    """

    name: str
    function: RewardFunction
    every: bool = False

    def apply(self, records: Sequence[StepRecord], spec: PolicySpec, info: Mapping[str, Any]) -> list[StepRecord]:
        """The records of one log with their rewards filled in.

        Raises:
            EpisodeError: a record does not fit the spec.
            ConfigError: the function fails, or returns something else than T numbers.
        """
        for record in records:
            check_record(record, spec)
        if not records or not (self.every or any(math.isnan(record.reward) for record in records)):
            return list(records)
        rewards = self._compute(records, spec, info)
        return [
            replace(record, reward=float(reward)) if self.every or math.isnan(record.reward) else record
            for record, reward in zip(records, rewards)
        ]

    def _compute(
        self, records: Sequence[StepRecord], spec: PolicySpec, info: Mapping[str, Any]
    ) -> npt.NDArray[np.float64]:
        extras = RewardExtras(
            spec=spec,
            applied_commands=np.stack([record.applied_command for record in records]),
            terminated=np.array([record.terminated for record in records], np.bool_),
            truncated=np.array([record.truncated for record in records], np.bool_),
            step_indices=np.array([record.step_index for record in records], np.int64),
            monotonic_ns=np.array([record.monotonic_ns for record in records], np.int64),
            episode_id=records[0].episode_id,
            info=info,
        )
        arrays = [
            np.stack([getattr(record, name) for record in records])
            for name in ("observation", "sent_action", "next_observation")
        ]
        try:
            rewards = np.asarray(self.function(*arrays, extras), np.float64)
        except Exception as error:  # any mistake of the user's function; the log is not to blame
            raise ConfigError(
                f"reward function {self.name} failed on episode {extras.episode_id}: {type(error).__name__}: {error}"
            ) from error
        if rewards.shape != (len(records),) or np.isinf(rewards).any():
            raise ConfigError(
                f"reward function {self.name} must return {len(records)} numbers for episode {extras.episode_id}, one "
                f"for each step, NaN where unknown and never infinity; got shape {rewards.shape}"
            )
        return rewards


def load_reward_hook(name: str, every: bool = False) -> RewardHook:
    """The function `package.module:function`; modules in the working directory are found.

    Raises:
        ConfigError: it cannot be imported.
    """
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # whatever the user's module does when it is imported
        raise ConfigError(f"reward {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(function):
        raise ConfigError(f"reward {name!r} is no function")
    return RewardHook(name, function, every)
