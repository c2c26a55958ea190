"""Episode log files for `inspect`, `report` and `log`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deploy.log_format import LOG_SUFFIX
from deploy.log_parts import EpisodeFiles, episode_of, group_heads, read_episode
from deploy.log_reader import LogHead, read_head
from mpo_robot.errors import ConfigError, EpisodeError
from mpo_robot.report.log_summary import LogSummary, summarize


def find_logs(places: Sequence[Path]) -> list[Path]:
    """The logs among files and directly inside folders, each once, in the order given and by name within a folder.

    Raises:
        ConfigError: a place does not exist.
    """
    found: dict[Path, None] = {}
    for place in places:
        if place.is_dir():
            found.update(dict.fromkeys(sorted(place.glob(f"*{LOG_SUFFIX}"))))
        elif place.exists():
            found[place] = None
        else:
            raise ConfigError(f"no log file or folder {place}")
    return list(found)


def find_episodes(places: Sequence[Path]) -> list[EpisodeFiles]:
    """The episodes among files and directly inside folders; of one that spans several files, a named file stands for
    those that lie beside it.

    Raises:
        ConfigError: a place does not exist.
    """
    inside = {path for place in places if place.is_dir() for path in find_logs([place])}
    named = [path for path in find_logs(places) if path not in inside]
    episodes = {files.paths: files for files in group_heads((path, _head(path)) for path in sorted(inside))}
    for path in named:
        files = episode_of(path) if _head(path) else EpisodeFiles(None, (path,), (0,))
        episodes[files.paths] = files
    return list(episodes.values())


def summarize_episode(files: EpisodeFiles) -> LogSummary:
    """Read the files of an episode, as far as they are whole, and sum it up.

    Raises:
        EpisodeError: not readable as an episode log.
    """
    contents = read_episode(files.paths)
    return summarize(
        files.paths[0].name,
        contents.records,
        contents.spec.control_dt,
        contents.metadata,
        contents.problem,
        len(contents.invalid_records),
    )


def _head(path: Path) -> LogHead | None:
    try:
        return read_head(path)
    except EpisodeError:
        return None  # reading it will say why
