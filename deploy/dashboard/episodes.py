"""`EpisodeFeed`: follows `outcomes.jsonl` of a registry while a policy server writes it."""

from __future__ import annotations

import json
import math
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploy.outcomes import Outcome, parse_outcome, summarize

REMEMBERED = 1000  # per version, as the server's own statistics
SHOWN = 60


class EpisodeFeed:
    """Reads only what is new. One thread.

    Attributes:
        recent: The newest episodes of all versions, oldest first, ready for JSON.

    Args:
        directory: The registry's.
    """

    def __init__(self, directory: Path) -> None:
        self.recent: deque[dict[str, Any]] = deque(maxlen=SHOWN)
        self._path = directory / "outcomes.jsonl"
        self._by_version: defaultdict[str, deque[Outcome]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
        self._inode = self._offset = 0
        self._take(_lines(directory / "outcomes.1.jsonl", 0)[0])

    def follow(self) -> bool:
        """Take in what was written since; returns whether there was anything."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return False
        if status.st_ino != self._inode or status.st_size < self._offset:  # a new file took the place of a full one
            self._inode, self._offset = status.st_ino, 0
        if status.st_size == self._offset:
            return False
        lines, self._offset = _lines(self._path, self._offset)
        return self._take(lines)

    def statistics(self, version: str) -> dict[str, Any]:
        """`VersionStatistics` of a version, with None for what is not known."""
        data = asdict(summarize(list(self._by_version.get(version, ()))))
        return {
            key: None if isinstance(item, float) and not math.isfinite(item) else item for key, item in data.items()
        }

    def _take(self, lines: list[bytes]) -> bool:
        found = False
        for line in lines:
            outcome = parse_outcome(line)
            if outcome is None:
                continue
            found = True
            self._by_version[outcome.policy_version].append(outcome)
            total = outcome.undiscounted_return
            finite = total is not None and math.isfinite(total)
            self.recent.append({**asdict(outcome), "undiscounted_return": total if finite else None, "t": _time(line)})
        return found

    def faults(self) -> Iterator[dict[str, Any]]:
        """Those of `recent` that a fault ended, newest first."""
        return (item for item in reversed(self.recent) if item["fault"])


def _lines(path: Path, offset: int) -> tuple[list[bytes], int]:
    """Complete lines from an offset on, and the offset after them."""
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            data = stream.read()
    except FileNotFoundError:
        return [], offset
    complete = data[: data.rfind(b"\n") + 1]
    return complete.split(b"\n"), offset + len(complete)


def _time(line: bytes) -> float:
    """When a line was written, in seconds since 1970; 0 if it does not say."""
    value = json.loads(line).get("wall_time_ns", 0)
    return value / 1e9 if isinstance(value, int) else 0.0
