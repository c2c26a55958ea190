"""What operators may ask a server for. All of it is about which policy is in force; nothing stops the server."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from deploy.guard import PolicyGuard
from deploy.outcomes import Outcome, OutcomeLog, summarize
from deploy.registry import PolicyRegistry

COMMANDS = {
    "status": "what is in force, and how it does",
    "rollback": "put the version before in force",
    "promote": "put the candidate of the trial in force",
    "end-trial": "stop the trial",
}


class Operations:
    """A server's hand on its registry: for robots' outcomes, which a guard may act on, and for operators.

    Args:
        registry: Changed by this.
        guard: Takes in the outcomes.
    """

    def __init__(self, registry: PolicyRegistry, guard: PolicyGuard) -> None:
        self._registry = registry
        self._guard = guard

    def note(self, outcome: Outcome) -> str:
        """Take in an outcome; returns why a version was taken back because of it, or an empty text."""
        return self._guard.note(outcome)

    def operate(self, command: str, by: str, reason: str = "") -> dict[str, Any]:
        """Carry out one of `COMMANDS`; returns the state after it, as `describe`.

        Raises:
            ConfigError: it cannot be done now.
            KeyError: no such command.
        """
        if command == "rollback":
            self._registry.rollback(by=by, reason=reason)
        elif command in ("promote", "end-trial"):
            self._registry.end_trial(promote=command == "promote", by=by, reason=reason)
        elif command != "status":
            raise KeyError(command)
        return describe(self._registry, self._guard.outcomes)


def describe(registry: PolicyRegistry, outcomes: OutcomeLog) -> dict[str, Any]:
    """State of a registry: versions, trial and outcomes, ready for JSON. Raises ConfigError if there is none."""
    pointer = registry.pointer()
    shown = [*reversed(pointer.versions[-20:]), *([pointer.trial.version] if pointer.trial else [])]
    rows: list[dict[str, Any]] = []
    for version in shown:
        role = "in force" if version == pointer.current else "before"
        if pointer.trial is not None and version == pointer.trial.version:
            role = f"on trial, {pointer.trial.share:.3g} of the episodes"
        rows.append({"version": version, "role": role, **statistics(outcomes, version)})
    return {
        "current": pointer.current,
        "trial": None if pointer.trial is None else asdict(pointer.trial),
        "versions": rows,
        "audit_head": registry.audit.verify().head,
    }


def statistics(outcomes: OutcomeLog, version: str) -> dict[str, Any]:
    """Outcomes of a version, with None in place of what is not known."""
    data = asdict(summarize(outcomes.of(version)))
    return {key: None if isinstance(item, float) and not math.isfinite(item) else item for key, item in data.items()}
