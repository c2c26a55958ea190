"""`Commands`: the page's buttons. They do what `mpo-robot estop` and `mpo-robot policies rollback` do, and no more.

Nothing here can re-arm a robot: that takes a human beside it.
"""

from __future__ import annotations

import fcntl
import threading
from typing import Any

from deploy.audit import AuditLog, actor
from deploy.dashboard.fleet import Fleet
from deploy.registry import PolicyRegistry
from mpo_robot.errors import ConfigError

AUDIT_FILE = "dashboard.jsonl"


class Commands:
    """May be called from several threads. E-stops are noted in `dashboard.jsonl` of the registry, rollbacks in its
    history.

    Args:
        registry: Where to roll back.
        fleet: Robots to stop.
    """

    def __init__(self, registry: PolicyRegistry, fleet: Fleet) -> None:
        self._registry, self._fleet = registry, fleet
        self._audit = AuditLog(registry.directory / AUDIT_FILE)
        self._audit_lock, self._rollback_lock = threading.Lock(), threading.Lock()

    def estop(self, reason: str = "") -> dict[str, Any]:
        """Stop all robots; returns how each has answered, `stop` in words. They come first, the audit after them."""
        answers = self._fleet.stop(f"operator's page: {reason or 'no reason given'}")
        problem = ""
        try:
            self._note("estop", reason=reason, robots={item["name"]: item["stop"] for item in answers})
        except OSError as error:
            problem = f"the e-stop could not be written to {self._audit.path}: {error.strerror}"
        return {"robots": answers, "audit_problem": problem}

    def rollback(self, expect: str, reason: str = "") -> dict[str, Any]:
        """Put the version before `expect` in force; returns it.

        Raises:
            ConfigError: another version is in force than the operator has seen, there is none before it, or a rollback
                is under way.
        """
        if not expect:
            raise ConfigError("not rolled back: the request does not say which version is to be left")
        # It may wait for another program's lock: several would take all of the page's threads, the e-stop's too.
        if not self._rollback_lock.acquire(blocking=False):
            raise ConfigError("a rollback is under way")
        try:
            version = self._registry.rollback(by=f"operator's page of {actor()}", reason=reason, expect=expect)
        finally:
            self._rollback_lock.release()
        return {"version": version}

    def _note(self, event: str, **facts: Any) -> None:
        lock = self._audit.path.with_name(f".{AUDIT_FILE}.lock")
        with self._audit_lock, lock.open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            self._audit.append(event, f"operator's page of {actor()}", **facts)
