"""Read an episode log, also a truncated or damaged one: every record that is whole and passes its CRC, and no other.

What is damaged is skipped and what is intact behind it is kept; `LogContents.problem` says what was found.
"""

from __future__ import annotations

import fcntl
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mcap.records import Channel, Message
from mcap.writer import MCAP0_MAGIC

from deploy.log_format import INVALID_STEP_TOPIC, STEP_TOPIC, decode_step
from deploy.log_walk import LogWalk, walk_log
from mpo_robot.episode import STEP_SCHEMA_VERSION, StepRecord
from mpo_robot.errors import ConfigError, EpisodeError
from mpo_robot.specs import PolicySpec

HEAD_BYTES = 16_384  # usually holds the description of the episode
PROBLEMS_TOLD = 3  # in `LogContents.problem`; the others are counted


class LogContents(NamedTuple):
    """What `read_log` found.

    Attributes:
        records: Steps in file order.
        spec: Interface the episode was recorded with.
        metadata: `episode_id`, `robot`, `info` (with `randomization` if simulated), `spec_hash`, `schema_version`,
            `monotonic_ns` and `wall_time_ns` (clock anchor), `part` if the file is not the first of its episode, and
            `statistics` if it was closed.
        complete: The writer closed the file and all of it was read.
        recovered_bytes: Length of what could be read.
        total_bytes: Length of the file.
        problem: Why `complete` is False, as one sentence or several; empty otherwise.
        invalid_records: Steps kept apart by the control loop because a sensor reading at either end was bad.
    """

    records: tuple[StepRecord, ...]
    spec: PolicySpec
    metadata: dict[str, Any]
    complete: bool
    recovered_bytes: int
    total_bytes: int
    problem: str
    invalid_records: tuple[StepRecord, ...]

    @property
    def continues(self) -> bool:
        """The episode goes on in another file (`deploy.log_parts`)."""
        return bool(self.metadata.get("statistics", {}).get("continued", False))


class LogHead(NamedTuple):
    """Which part of which episode a file is."""

    episode_id: str
    part: int


def read_log(path: str | Path) -> LogContents:
    """Records, spec and metadata of an episode log, recovered as far as possible.

    Raises:
        EpisodeError: not readable, not an MCAP file, not an episode log of this program's schema version, or cut off
            before the description of the episode was complete (no step can precede it).
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise EpisodeError(f"cannot read {path}: {error.strerror}") from error
    return parse_log(data, str(path))


def parse_log(data: bytes, name: str) -> LogContents:
    """`read_log` of bytes; `name` is for messages."""
    if not data.startswith(MCAP0_MAGIC):
        raise EpisodeError(f"{name} is not an MCAP file")
    walk = walk_log(data)
    if walk.description is None:
        raise EpisodeError(f"{name} holds no episode description" + (f": {walk.problems[0]}" if walk.problems else ""))
    spec = _spec_of(walk.description, name)
    metadata = {key: value for key, value in walk.description.items() if key != "spec"}
    if walk.statistics is not None:
        metadata["statistics"] = walk.statistics
    steps = _decode_steps(walk)
    return LogContents(
        records=tuple(steps[STEP_TOPIC]),
        spec=spec,
        metadata=metadata,
        complete=walk.closed and not walk.problems,
        recovered_bytes=len(data) - walk.skipped_bytes,
        total_bytes=len(data),
        problem=_told(walk.problems),
        invalid_records=tuple(steps[INVALID_STEP_TOPIC]),
    )


def read_head(path: str | Path) -> LogHead | None:
    """Which part of which episode a log is, from the head of the file; None if it has no intact description.

    Raises:
        EpisodeError: the file cannot be read.
    """
    size = HEAD_BYTES
    try:
        while True:
            with Path(path).open("rb") as stream:
                data = stream.read(size)
            description = walk_log(data).description
            if description is not None:
                name = str(description.get("episode_id", ""))
                return LogHead(name, int(description.get("part", 0))) if name else None
            if len(data) < size:
                return None
            size *= 8
    except OSError as error:
        raise EpisodeError(f"cannot read {path}: {error.strerror}") from error


def is_being_written(path: str | Path) -> bool:
    """True while an `EpisodeLogWriter` of a live process holds the file; False for a closed or crashed one.

    Raises:
        EpisodeError: the file cannot be opened.
    """
    try:
        with Path(path).open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        raise EpisodeError(f"cannot read {path}: {error.strerror}") from error
    return False


def _decode_steps(walk: LogWalk) -> dict[str, list[StepRecord]]:
    """Steps by topic in file order; a chunk that holds anything else is left out as a whole, and told."""
    steps: dict[str, list[StepRecord]] = {STEP_TOPIC: [], INVALID_STEP_TOPIC: []}
    for position, messages in walk.chunks:
        try:
            decoded = [(topic, decode_step(item.data)) for topic, item in _with_topics(messages, walk.channels)]
        except EpisodeError as error:
            walk.problems.append(f"chunk at byte {position} left out: {error}")
            continue
        for topic, step in decoded:
            steps[topic].append(step)
    return steps


def _with_topics(messages: Sequence[Message], channels: dict[int, Channel]) -> list[tuple[str, Message]]:
    unknown = {message.channel_id for message in messages} - channels.keys()
    if unknown:
        raise EpisodeError(f"the description of channel {min(unknown)} is lost")
    pairs = [(channels[message.channel_id].topic, message) for message in messages]
    return [(topic, message) for topic, message in pairs if topic in (STEP_TOPIC, INVALID_STEP_TOPIC)]


def _told(problems: Sequence[str]) -> str:
    more = len(problems) - PROBLEMS_TOLD
    return "; ".join(problems[:PROBLEMS_TOLD]) + (f"; and {more} more" if more > 0 else "")


def _spec_of(description: dict[str, Any], name: str) -> PolicySpec:
    version = description.get("schema_version")
    if version != STEP_SCHEMA_VERSION:
        raise EpisodeError(f"{name} has step schema version {version}, this program reads {STEP_SCHEMA_VERSION}")
    try:
        spec = PolicySpec.from_dict(description["spec"])
    except (ConfigError, KeyError) as error:
        raise EpisodeError(f"{name} holds a malformed policy spec: {error}") from error
    if spec.spec_hash != description.get("spec_hash"):
        raise EpisodeError(f"{name}: the policy spec does not match its own hash")
    return spec
