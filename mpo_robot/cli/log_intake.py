"""Read episode logs into a run's real replay: validate each file, set bad ones aside with the reason, lose nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from deploy.log_reader import is_being_written, read_log
from mpo_robot.continual import ContinualLearner
from mpo_robot.episode import Episode, episodes_from_records
from mpo_robot.errors import ConfigError, EpisodeError, MpoRobotError
from mpo_robot.specs import PolicySpec

REJECTED = "rejected"
SETTLE_SECONDS = 5.0  # an unfinished log that changed this recently may still be being copied here


class Intake(NamedTuple):
    """What one pass over a log directory did."""

    logs: int
    steps: int
    returns: tuple[float, ...]
    rejected: tuple[Path, ...]
    waiting: tuple[Path, ...]


def take_in(
    learner: ContinualLearner,
    directory: Path,
    say: Callable[[str], None] = print,
    wall_clock: Callable[[], float] = time.time,
) -> Intake:
    """Ingest every new log of `directory`, oldest name first.

    A log that was ingested before (by name) is skipped. A log in the hands of its writer, or an unfinished one whose
    file changed in the last few seconds, is left for the next pass; any other unfinished log is that of a robot that
    died and is ingested as far as it is whole. A log that cannot be used is moved to `directory/rejected/` beside a
    text file with the reason.

    Raises:
        ConfigError: no such directory.
    """
    if not directory.is_dir():
        raise ConfigError(f"no log directory {directory}")
    known = set(learner.ledger)
    logs, steps, returns = 0, 0, []
    rejected: list[Path] = []
    waiting: list[Path] = []
    for path in sorted(directory.glob("*.mcap")):
        if path.name in known:
            continue
        try:
            if is_being_written(path):
                waiting.append(path)
                continue
            age = wall_clock() - path.stat().st_mtime
            episodes, complete = load_episodes(path, learner.spec)
            if not complete and age < SETTLE_SECONDS:
                waiting.append(path)
                continue
            if not episodes:
                raise EpisodeError("holds no completed step")
            taken = learner.ingest(path.name, episodes)
        except (MpoRobotError, OSError) as error:
            rejected.append(set_aside(path, str(error)))
            say(f"set aside {path.name}: {error}")
            continue
        logs += 1
        steps += taken
        returns.append(sum(episode.undiscounted_return for episode in episodes))
        say(
            f"ingested {path.name}: {taken} steps, return {returns[-1]:.1f}"
            f"{'' if complete else ' (recovered from an unfinished log)'}"
        )
    return Intake(logs, steps, tuple(returns), tuple(rejected), tuple(waiting))


def load_episodes(path: Path, spec: PolicySpec) -> tuple[list[Episode], bool]:
    """Validated episodes of a log and whether the file was closed properly.

    Raises:
        EpisodeError: the file is no log, or breaks the step schema.
        SpecMismatchError: it was recorded with another spec; the text names the first differing field.
    """
    contents = read_log(path)
    if contents.spec is not None:
        spec.require_same(contents.spec, "the run", "the log")
    return episodes_from_records(contents.records, spec), contents.complete


def set_aside(path: Path, reason: str) -> Path:
    """Move a log to the `rejected` folder beside it and write the reason next to it; returns the new path."""
    folder = path.parent / REJECTED
    folder.mkdir(exist_ok=True)
    target = folder / path.name
    number = 1
    while target.exists():
        target = folder / f"{path.stem}-{number}{path.suffix}"
        number += 1
    target.with_suffix(".reason.txt").write_text(reason + "\n")
    os.replace(path, target)
    return target
