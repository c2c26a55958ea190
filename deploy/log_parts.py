"""The files of one episode: how parts are named, found and joined.

An episode is one file, or several if `log.max_bytes` or `log.max_seconds` cut it. Each part is a complete log file; all
but the last say `continued` in their statistics, all but the first name their number (`part`) in their description.
Names tell nothing: files are put together by the episode and the number inside.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from deploy.log_format import LOG_SUFFIX
from deploy.log_reader import LogContents, LogHead, read_head, read_log
from mpo_robot.errors import EpisodeError

_PART = re.compile(r"(?P<episode>.+?)(?:\.part(?P<index>\d{4,}))?" + re.escape(LOG_SUFFIX))


class EpisodeFiles(NamedTuple):
    """Files that belong to one episode.

    Attributes:
        episode_id: None if the one file has no intact description.
        paths: In the order of the parts.
        parts: Their numbers.
    """

    episode_id: str | None
    paths: tuple[Path, ...]
    parts: tuple[int, ...]


def check_episode_id(episode_id: str) -> None:
    """Check that an episode can give files their name.

    Raises:
        EpisodeError: it cannot.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", episode_id):
        raise EpisodeError(f"episode id {episode_id!r} cannot name a file: use letters, digits, dot, dash, _")


def part_path(directory: Path, episode_id: str, index: int) -> Path:
    """Where a writer puts a part: `episode.mcap`, `episode.part0001.mcap`, ..."""
    return directory / (f"{episode_id}.part{index:04d}{LOG_SUFFIX}" if index else f"{episode_id}{LOG_SUFFIX}")


def written_as(path: Path) -> str:
    """Name of the episode that a writer would have named this file after."""
    match = _PART.fullmatch(path.name)
    return match["episode"] if match else path.name


def group_files(paths: Iterable[Path]) -> list[EpisodeFiles]:
    """Files by episode, in the order of the first file of each.

    Raises:
        EpisodeError: a file cannot be read.
    """
    return group_heads((path, read_head(path)) for path in paths)


def group_heads(files: Iterable[tuple[Path, LogHead | None]]) -> list[EpisodeFiles]:
    """`group_files` of files whose heads are known. A second copy of a part makes a second group."""
    groups: dict[tuple[str | None, int], dict[int, Path]] = {}
    copies: dict[LogHead, int] = defaultdict(int)
    for number, (path, head) in enumerate(files):
        if head is None:
            groups[None, number] = {0: path}
            continue
        groups.setdefault((head.episode_id, copies[head]), {})[head.part] = path
        copies[head] += 1
    return [
        EpisodeFiles(episode_id, tuple(parts[index] for index in sorted(parts)), tuple(sorted(parts)))
        for (episode_id, _), parts in groups.items()
    ]


def episode_of(path: Path) -> EpisodeFiles:
    """The file with the other parts of its episode, as far as they lie beside it under the names of their writer.

    Raises:
        EpisodeError: the file cannot be read.
    """
    head = read_head(path)
    if head is None:
        return EpisodeFiles(None, (path,), (0,))
    beside = [other for other in path.parent.glob(f"*{LOG_SUFFIX}") if written_as(other) == written_as(path)]
    for files in group_files([path, *sorted(other for other in beside if other != path)]):
        if path in files.paths:
            return files
    raise AssertionError("a file is in a group of its own at least")


def read_episode(paths: Sequence[Path]) -> LogContents:
    """One episode from the files of its parts, in the order of their numbers, recovered as far as possible.

    A part that is missing or cannot be read is named in `problem` and leaves a gap in `step_index`. `metadata` is that
    of the first part, with `statistics` of the last; of a single file it is as `read_log` gives it.

    Raises:
        EpisodeError: no part can be read, or the files are not parts of one episode.
    """
    problems: list[str] = []
    found: dict[int, LogContents] = {}
    for path in paths:
        try:
            contents = read_log(path)
        except EpisodeError as error:
            if len(paths) == 1:
                raise
            problems.append(str(error))
            continue
        index = int(contents.metadata.get("part", 0))
        if index in found:
            raise EpisodeError(f"{path} is part {index} of its episode, and so is another of the files")
        found[index] = contents
    if not found:
        raise EpisodeError(f"none of {len(paths)} parts can be read: {problems[0]}")
    return _join(found, problems)


def _join(found: dict[int, LogContents], problems: list[str]) -> LogContents:
    parts = [found[index] for index in sorted(found)]
    first, last = parts[0], parts[-1]
    for part in parts:
        first.spec.require_same(part.spec, "the first part", "another part")
        if part.metadata.get("episode_id") != first.metadata.get("episode_id"):
            raise EpisodeError(
                f"the files are of two episodes, {first.metadata.get('episode_id')} and {part.metadata['episode_id']}"
            )
    problems = [
        *(f"part {index}: {found[index].problem}" if max(found) else found[index].problem for index in sorted(found)),
        *problems,
        *(f"part {index} is missing" for index in range(max(found)) if index not in found),
    ]
    if last.continues:
        problems.append(f"the part behind part {max(found)} is missing")
    problems = [problem for problem in problems if not problem.endswith(": ") and problem]
    metadata = {key: value for key, value in first.metadata.items() if key not in ("part", "statistics")}
    if "statistics" in last.metadata and not last.continues:
        metadata["statistics"] = last.metadata["statistics"]
    return LogContents(
        records=tuple(record for part in parts for record in part.records),
        spec=first.spec,
        metadata=metadata,
        complete=not problems,
        recovered_bytes=sum(part.recovered_bytes for part in parts),
        total_bytes=sum(part.total_bytes for part in parts),
        problem="; ".join(problems),
        invalid_records=tuple(record for part in parts for record in part.invalid_records),
    )
