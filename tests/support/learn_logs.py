"""Log files for a tiny run, and passes of the intake over them."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

from deploy.log_writer import EpisodeLogWriter
from mpo_robot.cli.log_intake import Intake, LogIntake
from mpo_robot.continual import ContinualLearner
from mpo_robot.learn_config import LearnConfig
from mpo_robot.rewards import RewardHook
from mpo_robot.run_folder import RunFolder
from mpo_robot.specs import PolicySpec
from tests.support.records import make_records
from tests.support.tiny_run import LEARNER, SPEC, TRAINING

QUICK = ["min_updates=3", "max_updates=3", "--quiet"]


def write_log(
    directory: Path,
    name: str,
    steps: int = 30,
    spec: PolicySpec = SPEC,
    seed: int = 0,
    *,
    close: bool = True,
    one_by_one: bool = False,
    without: tuple[int, ...] = (),
    unrewarded: tuple[int, ...] = (),
) -> Path:
    """A log file.

    Args:
        directory: Where.
        name: Episode id and name of the file.
        steps: How many.
        spec: Interface.
        seed: Of the numbers in it.
        close: With False it ends as if its writer had been killed.
        one_by_one: A chunk for each step, as a robot's control loop leaves them.
        without: Indices of steps that are missing.
        unrewarded: Indices of steps whose reward is null.
    """
    writer = EpisodeLogWriter(directory, spec, name)
    for index, record in enumerate(make_records(steps, spec, episode_id=name, seed=seed)):
        if index in without:
            continue
        assert writer.append(dataclasses.replace(record, reward=math.nan) if index in unrewarded else record)
        while (one_by_one or not close) and b'"step_index":%d,' % index not in writer.path.read_bytes():
            time.sleep(0.0005)
    writer.close()
    if not close:
        data = writer.path.read_bytes()
        writer.path.write_bytes(data[: int(len(data) * 0.6)])
    return writer.path


def learner_of(folder: RunFolder, **settings: Any) -> ContinualLearner:
    """The run's continued learner as it was last saved."""
    return ContinualLearner(folder, LEARNER, TRAINING, LearnConfig(**settings))


def take_in(
    learner: ContinualLearner,
    directory: Path,
    lines: list[str] | None = None,
    later: float = 60.0,
    reward: RewardHook | None = None,
) -> Intake:
    """One pass of a fresh intake, `later` seconds from now; what it says goes to `lines`."""
    said = [] if lines is None else lines
    return LogIntake(learner, directory, reward, said.append, lambda: time.time() + later).take_in()
