"""`AuditLog`: an append-only JSONL file whose lines are chained by their hashes, so that a changed one shows.

Each line holds `prev`, the SHA-256 of the line before it. Whoever can write the file can also write a whole new chain:
the hash of the last line, kept elsewhere, is what tells then.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.durable import append_line, last_line

GENESIS = "0" * 64  # `prev` of the first line


@dataclass(frozen=True)
class AuditReport:
    """Result of a verification.

    Attributes:
        hashes: SHA-256 of every line, oldest first.
        unchained: Lines at the start from before lines were chained; nothing tells whether they were changed.
        torn: Lines cut off by a crash.
        problem: What does not fit; empty if everything does.
    """

    hashes: tuple[str, ...]
    unchained: int
    torn: int
    problem: str

    @property
    def head(self) -> str:
        """Hash of the last line."""
        return self.hashes[-1] if self.hashes else GENESIS


class AuditLog:
    """One log. Writers serialize themselves by a lock of their own.

    Args:
        path: The file; made by the first entry.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: str, by: str = "", **facts: Any) -> str:
        """Write who did what and when, synced to disk; returns the hash of the line.

        Args:
            event: What happened.
            by: Who did it; empty is the user of this process.
            facts: Anything JSON can hold.

        Raises:
            OSError: it could not be written.
        """
        last = last_line(self.path)
        entry = {
            "prev": GENESIS if last is None else _hash(last),
            "event": event,
            "wall_time_ns": time.time_ns(),
            "by": by or actor(),
            "process": os.getpid(),
            **facts,
        }
        line = json.dumps(entry, ensure_ascii=True).encode()
        append_line(self.path, line)
        return _hash(line)

    def entries(self) -> list[dict[str, Any]]:
        """All complete entries, oldest first, each with its own `hash`."""
        parsed = ((_parse(line), line) for line in self._lines())
        return [{**entry, "hash": _hash(line)} for entry, line in parsed if entry is not None]

    def last(self) -> dict[str, Any] | None:
        """The newest entry with its own `hash`; None if there is none or a crash cut it off."""
        line = last_line(self.path)
        entry = None if line is None else _parse(line)
        return None if entry is None or line is None else {**entry, "hash": _hash(line)}

    def verify(self) -> AuditReport:
        """Follow the chain through the whole file."""
        hashes: list[str] = []
        unchained = torn = 0
        problem, is_chained = "", False
        for number, line in enumerate(self._lines(), 1):
            entry = _parse(line)
            if entry is None:
                torn += 1
            elif "prev" in entry:
                is_chained = True
                if entry["prev"] != (hashes[-1] if hashes else GENESIS):
                    problem = problem or f"line {number} does not follow the one before it: a line was changed or lost"
            elif is_chained:
                problem = problem or f"line {number} is not chained to the one before it"
            else:
                unchained += 1
            hashes.append(_hash(line))
        return AuditReport(tuple(hashes), unchained, torn, problem)

    def _lines(self) -> list[bytes]:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return []
        return data.removesuffix(b"\n").split(b"\n") if data else []


def actor() -> str:
    """`user@host` of this process, as the operating system knows them."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None
