"""Read episode logs into a run's real replay: validate each file, set bad ones aside with the reason, lose nothing."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from deploy.log_parts import EpisodeFiles, group_heads, read_episode
from deploy.log_reader import LogContents, LogHead, is_being_written, read_head
from deploy.log_retention import INGESTED, mark_ingested
from mpo_robot.continual import ContinualLearner
from mpo_robot.episode import Episode, episodes_from_records
from mpo_robot.errors import ConfigError, EpisodeError, SpecMismatchError
from mpo_robot.rewards import RewardHook
from mpo_robot.specs import PolicySpec

REJECTED = "rejected"
_LATE = " part "  # between an episode's name and a part's number in the ledger; no name holds a space
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
    foreign: tuple[Path, ...]  # of another interface, left where they are


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
        self._heads: dict[Path, tuple[tuple[int, int], LogHead | None]] = {}  # by size and time of the file
        self._done: dict[tuple[Path, ...], tuple[tuple[int, int], ...]] = {}  # episodes that need no second look
        self._announced: dict[Path, str] = {}  # what was last said about a file that has to wait
        self._to_mark: dict[Path, int] = {}  # sizes of taken files that do not bear the mark yet

    def take_in(self, should_stop: Callable[[], bool] = lambda: False) -> Intake:
        """Ingest every new log, oldest name first; the parts of an episode together.

        An episode that was ingested before, from whatever file, is skipped; a part of it that was missing then is
        ingested by itself. A log in the hands of its writer, or an unfinished one whose file changed in the last few
        seconds, is left for the next pass; any other unfinished log is that of a robot that died and is ingested as
        far as it is whole. A log that cannot be used is moved to `directory/rejected/` beside a text file with the
        reason. One of another interface stays: it may be another run's.

        Raises:
            ConfigError: no such directory, or a setting that does not fit; no log is to blame for that.
            SpecMismatchError: all logs are of another interface; the text names the first differing field.
        """
        if not self._directory.is_dir():
            raise ConfigError(f"no log directory {self._directory}")
        steps, returns = 0, []
        rejected: list[Path] = []
        waiting: list[Path] = []
        foreign: list[Path] = []
        mismatches: list[str] = []
        seen = 0  # episodes
        for files in group_heads((path, self._head(path)) for path in sorted(self._directory.glob("*.mcap"))):
            if should_stop():
                break
            try:
                stamps = tuple(_stamp(path) for path in files.paths)
                seen += 1
                if self._done.get(files.paths) == stamps:
                    continue
                taken = self._take(files)
            except FileNotFoundError:
                continue  # moved away meanwhile
            except SpecMismatchError as error:
                foreign += files.paths
                mismatches.append(str(error))
                self._announce(files.paths[0], f"left {files.paths[0].name} where it is: {error}")
                continue
            except _NotYetError as reason:
                waiting += files.paths
                self._announce(files.paths[0], f"waiting for {files.paths[0].name}: {reason}")
                continue
            except EpisodeError as error:
                rejected += [set_aside(path, str(error)) for path in files.paths]
                self._say(f"set aside {', '.join(path.name for path in files.paths)}: {error}")
                continue
            self._done[files.paths] = stamps
            self._to_mark.update({path: size for path, (size, _) in zip(files.paths, stamps)})
            if taken is not None:
                steps += taken[0]
                returns.append(taken[1])
        if mismatches and len(mismatches) == seen:
            raise SpecMismatchError(f"no log in {self._directory} is of this run's interface: {mismatches[0]}")
        return Intake(len(returns), steps, tuple(returns), tuple(rejected), tuple(waiting), tuple(foreign))

    def mark(self) -> None:
        """Note in `directory/ingested.jsonl` what was taken in. For after the learner was saved, not before: what
        bears the mark may be deleted."""
        try:
            mark_ingested(self._directory, self._to_mark, str(self._learner.folder.path))
        except OSError as error:
            self._announce(self._directory, f"cannot write {self._directory / INGESTED}: {error.strerror}")
        self._to_mark.clear()

    def _head(self, path: Path) -> LogHead | None:
        try:
            stamp = _stamp(path)
            if path not in self._heads or self._heads[path][0] != stamp:
                self._heads[path] = stamp, read_head(path)
        except (EpisodeError, FileNotFoundError):
            return None  # taking it in will say why
        return self._heads[path][1]

    def _take(self, files: EpisodeFiles) -> tuple[int, float] | None:
        """Ingest one episode; its steps and return, or None if all of it is known already."""
        if any(is_being_written(path) for path in files.paths):
            raise _NotYetError("it is still being written")
        age = self._wall_clock() - max(path.stat().st_mtime for path in files.paths)
        if files.episode_id is None and age < SETTLE_SECONDS:
            raise _NotYetError(f"its beginning cannot be read, and it changed less than {SETTLE_SECONDS:g} s ago")
        new = self._new_parts(files)
        if not new.paths:
            return None
        contents = read_episode(new.paths)
        if not contents.complete and age < SETTLE_SECONDS:
            raise _NotYetError(
                f"it is not complete and changed less than {SETTLE_SECONDS:g} s ago ({contents.problem})"
            )
        return self._ingest(new, contents)

    def _new_parts(self, files: EpisodeFiles) -> EpisodeFiles:
        """The parts that were not ingested before: all, none, or those that were missing then."""
        name, first = files.episode_id, files.paths[0]
        if name is None or not self._learner.knows(name, first.name):
            return files
        entry = self._learner.ledger.get(name)
        known = set(files.parts) if entry is None else _parts_in(self._learner.ledger, name)
        new = [(path, part) for path, part in zip(files.paths, files.parts) if part not in known]
        if not new and entry is not None and entry["file"] != first.name and 0 in files.parts:
            self._say(f"skipped {first.name}: its episode {name} was ingested before, from {entry['file']}")
        return EpisodeFiles(name, tuple(path for path, _ in new), tuple(part for _, part in new))

    def _ingest(self, files: EpisodeFiles, contents: LogContents) -> tuple[int, float]:
        episodes = load_episodes(contents, self._learner.spec, self._reward)
        name, first = str(contents.metadata["episode_id"]), files.paths[0]
        origin: dict[str, Any] = {"file": first.name, "problem": contents.problem}
        if files.parts != (0,):
            origin["parts"] = list(files.parts)
        key = name if name not in self._learner.ledger else f"{name}{_LATE}{files.parts[0]}"
        steps = self._learner.ingest(key, episodes, origin)
        total = sum(episode.undiscounted_return for episode in episodes)
        left_out = len(contents.records) - steps
        self._say(
            f"ingested {first.name}: {steps} steps, return {total:.1f}"
            f"{f', {len(files.paths)} parts' if len(files.paths) > 1 else ''}"
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


def _parts_in(ledger: Mapping[str, Mapping[str, Any]], name: str) -> set[int]:
    """Numbers of the parts of an episode that the ledger knows."""
    entries = [entry for key, entry in ledger.items() if key == name or key.startswith(f"{name}{_LATE}")]
    return {part for entry in entries for part in entry.get("parts", (0,))}


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
