"""Keep a folder of episode logs below a size without losing what nobody has learnt from yet.

`learn` and `ingest` note in `FOLDER/ingested.jsonl` which files they have taken in, after that is saved. Only files
that are noted there with the size they have now may be deleted, unless the configuration says that any may. A file that
is being written, and what lies in folders below (`rejected/`), is never deleted. Whole episodes go, oldest first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from deploy.log_format import LOG_SUFFIX
from deploy.log_parts import written_as
from deploy.log_reader import is_being_written
from mpo_robot.errors import EpisodeError

INGESTED = "ingested.jsonl"


class Pruning(NamedTuple):
    """What `prune_folder` did.

    Attributes:
        deleted: Files.
        freed_bytes: Their size.
        left_bytes: Size of the logs that are still there.
        problem: Why they are more than was asked for; empty if they are not.
    """

    deleted: tuple[Path, ...]
    freed_bytes: int
    left_bytes: int
    problem: str


def mark_ingested(directory: Path, sizes: Mapping[Path, int], run: str) -> None:
    """Note files of a folder as taken in by a run, at these sizes. One line each, added in one write.

    Raises:
        OSError: the note cannot be written.
    """
    noted = ingested_files(directory)
    lines = [
        json.dumps({"file": path.name, "bytes": size, "run": run}) + "\n"
        for path, size in sorted(sizes.items())
        if noted.get(path.name) != size
    ]
    if not lines:
        return
    descriptor = os.open(directory / INGESTED, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, "".join(("\n", *lines)).encode())  # behind a line that a crash has cut off
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def ingested_files(directory: Path) -> dict[str, int]:
    """Size by name of the files of a folder that were taken in; a damaged line counts for nothing."""
    noted: dict[str, int] = {}
    try:
        lines = (directory / INGESTED).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return noted
    for line in lines:
        try:
            entry = json.loads(line)
            noted[str(entry["file"])] = int(entry["bytes"])
        except (ValueError, KeyError, TypeError):
            continue
    return noted


def prune_folder(directory: Path, max_bytes: int, delete: Literal["ingested", "any"] = "ingested") -> Pruning:
    """Delete the oldest episodes that may go until the logs take up no more than `max_bytes`.

    A file that vanishes meanwhile is no error; one that cannot be deleted is told in `problem`.
    """
    episodes: dict[str, dict[Path, os.stat_result]] = {}
    for path in directory.glob(f"*{LOG_SUFFIX}"):
        try:
            episodes.setdefault(written_as(path), {})[path] = path.stat()
        except OSError:
            continue
    left = sum(status.st_size for files in episodes.values() for status in files.values())
    noted = ingested_files(directory)
    deleted: list[Path] = []
    freed, reason = 0, ""
    for files in sorted(episodes.values(), key=lambda files: max(status.st_mtime_ns for status in files.values())):
        if left <= max_bytes:
            break
        if delete == "ingested" and any(noted.get(path.name) != status.st_size for path, status in files.items()):
            continue
        try:
            if any(is_being_written(path) for path in files):
                continue
            for path, status in files.items():
                path.unlink(missing_ok=True)
                deleted.append(path)
                freed, left = freed + status.st_size, left - status.st_size
        except (EpisodeError, OSError) as error:
            reason = f"; {error}"
    problem = ""
    if left > max_bytes:
        why = "nothing else was ingested (learn, ingest)" if delete == "ingested" else "nothing else may be deleted"
        problem = f"{directory} holds {left:,} bytes of logs, more than log.folder_max_bytes={max_bytes}: {why}{reason}"
    return Pruning(tuple(deleted), freed, left, problem)
