"""Episode log files for `inspect` and `report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deploy.log_format import LOG_SUFFIX
from deploy.log_reader import read_log
from mpo_robot.errors import ConfigError
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


def summarize_file(path: Path) -> LogSummary:
    """Read a log, as far as it is whole, and sum it up.

    Raises:
        EpisodeError: not readable as an episode log.
    """
    contents = read_log(path)
    return summarize(
        path.name,
        contents.records,
        contents.spec.control_dt,
        contents.metadata,
        contents.problem,
        len(contents.invalid_records),
    )
