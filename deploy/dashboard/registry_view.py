"""`RegistryView`: what is in a policy registry, read by the page's process, so that the server need not tell."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

from deploy.audit import AuditLog
from deploy.dashboard.commands import AUDIT_FILE
from deploy.dashboard.episodes import EpisodeFeed
from deploy.registry import PolicyRegistry
from mpo_robot.errors import MpoRobotError

POLL_S = 0.5
VERSIONS, ENTRIES = 8, 15  # shown
_HIDDEN = {"prev", "hash", "process", "event", "by", "wall_time_ns", "version"}
_log = logging.getLogger(__name__)


class RegistryView:
    """Policies, episodes and audit of a registry. `policies`, `episodes` and `audit` are replaced whole, never changed.

    Attributes:
        registry: Where.
        policies: Versions in force, before and on trial with their statistics; `error` if they cannot be read.
        episodes: The newest outcomes, oldest first.
        faults: Those of them that a fault ended, newest first.
        audit: The newest changes and e-stops, newest first.
        audit_problem: What does not fit in the audit's chain, or empty.
    """

    def __init__(self, directory: Path) -> None:
        self.registry = PolicyRegistry(directory)
        self.policies: dict[str, Any] = {}
        self.episodes: list[dict[str, Any]] = []
        self.faults: list[dict[str, Any]] = []
        self.audit: list[dict[str, Any]] = []
        self.audit_problem = ""
        self._feed = EpisodeFeed(directory)
        self._logs = (self.registry.audit, AuditLog(directory / AUDIT_FILE))
        self._seen: object = None

    def start(self) -> None:
        """Follow the registry in a thread."""
        self.refresh()
        threading.Thread(target=self._follow, name="registry", daemon=True).start()

    def refresh(self) -> None:
        """Read again what has changed."""
        seen = (self.registry.signature(), *(_size(log.path) for log in self._logs))
        has_episodes = self._feed.follow()
        if has_episodes:
            self.episodes, self.faults = list(self._feed.recent), list(self._feed.faults())
        if seen != self._seen:
            self.audit, self.audit_problem = self._read_audit()
        if has_episodes or seen != self._seen:
            self.policies = self._read_policies()
        self._seen = seen

    def _follow(self) -> None:
        while True:
            time.sleep(POLL_S)
            try:
                self.refresh()
            except Exception:  # shown by its absence; the next look may do better
                _log.exception("the registry could not be read")

    def _read_policies(self) -> dict[str, Any]:
        try:
            pointer = self.registry.pointer()
        except MpoRobotError as error:
            return {"error": str(error)}
        trial = pointer.trial
        shown = [*([trial.version] if trial else []), *reversed(pointer.versions[-VERSIONS:])]
        share = trial.share if trial else 0.0
        rows: list[dict[str, Any]] = []
        for index, version in enumerate(shown):
            role, part = "before", 0.0
            if trial is not None and index == 0:
                role, part = "on trial", share
            elif index == (trial is not None):
                role, part = "in force", 1.0 - share
            rows.append({"version": version, "role": role, "share": part, **self._feed.statistics(version)})
        return {
            "error": "",
            "current": pointer.current,
            "previous": pointer.versions[-2] if len(pointer.versions) > 1 else None,
            "trial": trial is not None,
            "versions": rows,
        }

    def _read_audit(self) -> tuple[list[dict[str, Any]], str]:
        entries = [entry for log in self._logs for entry in log.entries()]
        entries.sort(key=lambda entry: entry.get("wall_time_ns", 0), reverse=True)
        problems = [f"{log.path.name}: {report.problem}" for log in self._logs if (report := log.verify()).problem]
        return [_row(entry) for entry in entries[:ENTRIES]], "; ".join(problems)


def _row(entry: dict[str, Any]) -> dict[str, Any]:
    rest = {key: item for key, item in entry.items() if key not in _HIDDEN and item not in (None, "")}
    return {
        "t": entry.get("wall_time_ns", 0) / 1e9,
        "event": str(entry.get("event", "?")),
        "by": str(entry.get("by", "?")),
        "version": str(entry.get("version") or ""),
        "detail": ", ".join(f"{key} {_short(item)}" for key, item in rest.items()),
    }


def _short(item: Any) -> str:
    if isinstance(item, dict):
        return ", ".join(f"{key}: {value}" for key, value in item.items())
    text = str(item)
    return text[:12] if len(text) == 64 else text  # a hash


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
