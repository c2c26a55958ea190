"""Write what is intact of a damaged episode log to a new, whole file. The input is only read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mcap.records import Message

from deploy.log_file import Disk, LogFile, Topic
from deploy.log_format import INVALID_STEP_TOPIC, STEP_TOPIC, decode_step
from deploy.log_parts import read_episode
from deploy.log_reader import LogContents
from deploy.log_walk import LogWalk, walk_log
from mpo_robot.episode import STEP_SCHEMA_VERSION
from mpo_robot.errors import EpisodeError

_FLUSH_BYTES = 1 << 20


class Repair(NamedTuple):
    """What `repair_log` did: the log as it was found, and the messages that were copied."""

    found: LogContents
    messages: int


def repair_log(paths: Sequence[Path], output: Path) -> Repair:
    """Copy every intact message, bit for bit, on every topic; several parts of an episode become one file.

    Exactly the steps that `read_episode` gives are copied. The statistics of the end are kept if they are intact, with
    an entry `repaired` that says what was wrong.

    Raises:
        EpisodeError: an input cannot be read, the inputs are not of one episode, or the output exists or cannot be
            written. Then there is no output.
    """
    found = read_episode(paths)
    walks = [walk for walk in map(_walk, paths) if walk is not None and walk.description is not None]
    walks.sort(key=lambda walk: (walk.description or {}).get("part", 0))
    description = dict(walks[0].description or {})
    if len(walks) > 1:
        description.pop("part", None)
    file = LogFile(output, _topics(walks), _channel_metadata(found), Disk())
    messages = 0
    try:
        file.describe(description)
        size = file.size
        for topic, message in _intact(walks):
            file.add(topic, message.data, message.log_time, message.sequence)
            messages += 1
            if file.size - size > _FLUSH_BYTES:
                file.flush()
                size = file.size
        file.finish(_statistics(found, paths))
        file.sync()
    except BaseException as error:
        file.close()
        output.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise EpisodeError(f"cannot write {output}: {error.strerror}") from error
        raise
    file.close()
    return Repair(found, messages)


def _walk(path: Path) -> LogWalk | None:
    try:
        return walk_log(path.read_bytes())
    except OSError:
        return None  # `read_episode` has told about it


def _topics(walks: Sequence[LogWalk]) -> list[Topic]:
    topics: dict[str, Topic] = {}
    for walk in walks:
        for channel in walk.channels.values():
            schema = walk.schemas.get(channel.schema_id)
            if schema is not None:
                topics.setdefault(channel.topic, Topic(channel.topic, schema.name, schema.data))
    return list(topics.values())


def _channel_metadata(found: LogContents) -> dict[str, str]:
    return {"spec_hash": found.spec.spec_hash, "schema_version": str(STEP_SCHEMA_VERSION)}


def _intact(walks: Sequence[LogWalk]) -> Iterator[tuple[str, Message]]:
    """Messages in file order with their topics; chunks that `read_log` leaves out are left out."""
    for walk in walks:
        topics = {channel.id: channel.topic for channel in walk.channels.values() if channel.schema_id in walk.schemas}
        for _, messages in walk.chunks:
            try:
                for message in messages:
                    if topics[message.channel_id] in (STEP_TOPIC, INVALID_STEP_TOPIC):
                        decode_step(message.data)
            except (EpisodeError, KeyError):
                continue
            yield from ((topics[message.channel_id], message) for message in messages)


def _statistics(found: LogContents, paths: Sequence[Path]) -> Mapping[str, Any]:
    return {
        **found.metadata.get("statistics", {}),
        "log_written": len(found.records) + len(found.invalid_records),
        "repaired": {
            "from": [path.name for path in paths],
            "problem": found.problem,
            "skipped_bytes": found.total_bytes - found.recovered_bytes,
        },
    }
