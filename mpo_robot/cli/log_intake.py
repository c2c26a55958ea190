"""Read episode logs into a run's real replay: validate each file, set bad ones aside with the reason, lose nothing."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from deploy.log_reader import LogContents, is_being_written, read_episode_id, read_log
from mpo_robot.continual import ContinualLearner
from mpo_robot.episode import Episode, episodes_from_records
from mpo_robot.errors import ConfigError, EpisodeError, SpecMismatchError
from mpo_robot.rewards import RewardHook
from mpo_robot.specs import PolicySpec

REJECTED = "rejected"
SETTLE_SECONDS = 5.0  # an unfinished log that changed this recently may still be being copied here
NO_REWARD = (
    "no step has a reward: the robot does not know it. Move the log back and add reward=package.module:function, a "
    "function that computes it (docs/log_format.md)"
)


class Intake(NamedTuple):
    """What one pass over a log directory did."""

    logs: int
    steps: int
    returns: tuple[float, ...]
    rejected: tuple[Path, ...]
    waiting: tuple[Path, ...]


class _NotYetError(Exception):
    """A log is left for a later pass; the text says why."""


class LogIntake:
    """Takes the new logs of a directory into a learner, in as many passes as wanted.

    Args:
        learner: Whose replay and ledger they go to.
        directory: Folder of the logs.
        reward: Computes rewards that the logs do not have.
        say: Where lines about single logs go.
        wall_clock: Seconds, as the modification times of files count them.
    """

    def __init__(
        self,
        learner: ContinualLearner,
        directory: Path,
        reward: RewardHook | None = None,
        say: Callable[[str], None] = print,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._learner = learner
        self._directory = directory
        self._reward = reward
        self._say = say
        self._wall_clock = wall_clock
        self._done: dict[Path, tuple[int, int]] = {}  # size and time of files that need no second look
        self._announced: dict[Path, str] = {}  # what was last said about a file that has to wait

    def take_in(self, should_stop: Callable[[], bool] = lambda: False) -> Intake:
        """Ingest every new log, oldest name first.

        An episode that was ingested before, from whatever file, is skipped. A log in the hands of its writer, or an
        unfinished one whose file changed in the last few seconds, is left for the next pass; any other unfinished log
        is that of a robot that died and is ingested as far as it is whole. A log that cannot be used is moved to
        `directory/rejected/` beside a text file with the reason.

        Raises:
            ConfigError: no such directory, or a setting that does not fit; no log is to blame for that.
        """
        if not self._directory.is_dir():
            raise ConfigError(f"no log directory {self._directory}")
        steps, returns = 0, []
        rejected: list[Path] = []
        waiting: list[Path] = []
        for path in sorted(self._directory.glob("*.mcap")):
            if should_stop():
                break
            try:
                stamp = _stamp(path)
                if self._done.get(path) == stamp:
                    continue
                taken = self._take(path)
            except FileNotFoundError:
                continue  # moved away meanwhile
            except _NotYetError as reason:
                waiting.append(path)
                self._announce(path, f"waiting for {path.name}: {reason}")
                continue
            except (EpisodeError, SpecMismatchError) as error:
                rejected.append(set_aside(path, str(error)))
                self._say(f"set aside {path.name}: {error}")
                continue
            self._done[path] = stamp
            if taken is not None:
                steps += taken[0]
                returns.append(taken[1])
        return Intake(len(returns), steps, tuple(returns), tuple(rejected), tuple(waiting))

    def _take(self, path: Path) -> tuple[int, float] | None:
        """Ingest one log; its steps and return, or None if its episode is known already."""
        if is_being_written(path):
            raise _NotYetError("it is still being written")
        age = self._wall_clock() - path.stat().st_mtime
        name = read_episode_id(path)
        if name is None and age < SETTLE_SECONDS:
            raise _NotYetError(f"its beginning cannot be read, and it changed less than {SETTLE_SECONDS:g} s ago")
        if name is not None and self._learner.knows(name, path.name):
            file = self._learner.ledger.get(name, {}).get("file", path.name)
            if file != path.name:
                self._say(f"skipped {path.name}: its episode {name} was ingested before, from {file}")
            return None
        contents = read_log(path)
        if not contents.complete and age < SETTLE_SECONDS:
            raise _NotYetError(
                f"it is not complete and changed less than {SETTLE_SECONDS:g} s ago ({contents.problem})"
            )
        episodes = load_episodes(contents, self._learner.spec, self._reward)
        origin = {"file": path.name, "problem": contents.problem}
        steps = self._learner.ingest(str(contents.metadata["episode_id"]), episodes, origin)
        total = sum(episode.undiscounted_return for episode in episodes)
        left_out = len(contents.records) - steps
        self._say(
            f"ingested {path.name}: {steps} steps, return {total:.1f}"
            f"{f', {left_out} steps without a reward left out' if left_out else ''}"
            f"{'' if contents.complete else f' (recovered: {contents.problem})'}"
        )
        return steps, total

    def _announce(self, path: Path, text: str) -> None:
        if self._announced.get(path) != text:
            self._say(text)
        self._announced[path] = text


def load_episodes(contents: LogContents, spec: PolicySpec, reward: RewardHook | None = None) -> list[Episode]:
    """Validated parts of a log's episode, rewards computed where they are to be.

    Raises:
        EpisodeError: the log breaks the step schema, or holds nothing to learn from.
        SpecMismatchError: it was recorded with another spec; the text names the first differing field.
        ConfigError: the reward function is wrong.
    """
    spec.require_same(contents.spec, "the run", "the log")
    if not contents.metadata.get("episode_id"):
        raise EpisodeError("its description names no episode")
    if not contents.records:
        raise EpisodeError(f"holds no completed step{f': {contents.problem}' if contents.problem else ''}")
    records = contents.records
    if reward is not None:
        records = reward.apply(records, spec, contents.metadata.get("info", {}))
    if all(math.isnan(record.reward) for record in records):
        raise EpisodeError(NO_REWARD if reward is None else f"reward function {reward.name} knows none of its rewards")
    return episodes_from_records(records, spec)


def set_aside(path: Path, reason: str) -> Path:
    """Move a log to the `rejected` folder beside it and write the reason next to it; returns the new path.

    Raises:
        ConfigError: the directory cannot be written.
    """
    folder = path.parent / REJECTED
    try:
        folder.mkdir(exist_ok=True)
        target = folder / path.name
        number = 1
        while target.exists():
            target = folder / f"{path.stem}-{number}{path.suffix}"
            number += 1
        target.with_suffix(".reason.txt").write_text(reason + "\n")
        os.replace(path, target)
    except OSError as error:
        raise ConfigError(f"cannot set aside {path} ({reason}): {error.strerror}") from error
    return target


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
