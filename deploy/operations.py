"""What operators may ask a server for. All of it is about which policy is in force; nothing stops the server."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from deploy.guard import PolicyGuard
from deploy.outcomes import Outcome, OutcomeLog, summarize
from deploy.registry import PolicyRegistry
from mpo_robot.errors import ConfigError

COMMANDS = {
    "status": "what is in force, and how it does",
    "rollback": "put the version before in force",
    "promote": "put the candidate of the trial in force",
    "end-trial": "stop the trial",
}
_EVENTS = {"rollback": "rollback", "promote": "promote", "end-trial": "trial_end"}  # in the audit


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

    def operate(self, command: str, by: str, reason: str = "", expect: str = "") -> dict[str, Any]:
        """Carry out one of `COMMANDS`; returns the state after it, as `describe`.

        Args:
            command: Which.
            by: Who asks.
            reason: For the audit.
            expect: What has to be in force for a change, as in `PolicyRegistry`. Asked for again, the change that was
                made last is not made again.

        Raises:
            ConfigError: it cannot be done now.
            KeyError: no such command.
        """
        if command not in COMMANDS:
            raise KeyError(command)
        try:
            if command == "rollback":
                self._registry.rollback(by=by, reason=reason, expect=expect)
            elif command != "status":
                self._registry.end_trial(promote=command == "promote", by=by, reason=reason, expect=expect)
        except ConfigError:
            if not expect or not self._is_done(command, by, expect):
                raise
        return describe(self._registry, self._guard.outcomes)

    def _is_done(self, command: str, by: str, expect: str) -> bool:
        """Whether the last change is this one: its answer was lost, and it is asked for again."""
        state = self._registry.pointer().state
        last = next((entry for entry in reversed(self._registry.audit.entries()) if entry["hash"] == state), {})
        return (last.get("event"), last.get("by"), last.get("expect")) == (_EVENTS[command], by, expect)


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
        "state": pointer.state,
        "current": pointer.current,
        "trial": None if pointer.trial is None else asdict(pointer.trial),
        "versions": rows,
        "audit_head": registry.audit.verify().head,
    }


def statistics(outcomes: OutcomeLog, version: str) -> dict[str, Any]:
    """Outcomes of a version, with None in place of what is not known."""
    data = asdict(summarize(outcomes.of(version)))
    return {key: None if isinstance(item, float) and not math.isfinite(item) else item for key, item in data.items()}
