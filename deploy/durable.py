"""Files that survive a crash: replaced whole or not at all, appended to and synced.

Every step is one call of `os`, so that a test can stop the program at each of them.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

_log = logging.getLogger(__name__)


def replace_file(target: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file so that a crash leaves either the old content or the new one, on disk and not only in a cache.

    Raises:
        OSError: it could not be written; the old content is in place.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        _write(temporary, data, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        os.replace(temporary, target)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_directory(target.parent)


def append_line(path: Path, line: bytes) -> None:
    """Append a line and sync it. A line that a crash cut off before it stays apart from it.

    Raises:
        OSError: it may be there, in part or not at all.
    """
    is_new = not path.exists()
    data = line + b"\n"
    if not is_new and not ends_with_newline(path):
        data = b"\n" + data
    _write(path, data, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    if is_new:
        sync_directory(path.parent)


def last_line(path: Path, limit: int = 1 << 16) -> bytes | None:
    """The last line of a file, without its newline and complete or not; None if the file is absent or empty.

    Of a line longer than `limit` bytes only the end comes back.
    """
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - limit))
            tail = stream.read(limit)
    except FileNotFoundError:
        return None
    return tail.removesuffix(b"\n").rpartition(b"\n")[2] if tail else None


def ends_with_newline(path: Path) -> bool:
    """Whether the last line of a file is complete; so is that of an empty one."""
    with path.open("rb") as stream:
        if stream.seek(0, os.SEEK_END) == 0:
            return True
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"


def sync_directory(directory: Path) -> None:
    """Make renames and new files in a directory last; a failure is only logged, as the content is there already."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:  # only a power cut could still bring the old content back
        _log.warning("directory %s could not be synced: %s", directory, error)


def write_and_sync(descriptor: int, data: bytes) -> None:
    """Write all of it where the open file stands, to the disk and not only to a cache.

    Raises:
        OSError: it may be there in part.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.fsync(descriptor)


def _write(path: Path, data: bytes, flags: int, mode: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC, mode)
    try:
        write_and_sync(descriptor, data)
    finally:
        os.close(descriptor)
