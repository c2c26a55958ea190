"""`Monitor`: everything the page shows, gathered from the server's snapshots, its registry and the robots."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from deploy.dashboard.fleet import LATE_S, Fleet
from deploy.dashboard.registry_view import RegistryView
from deploy.telemetry import Snapshot, latencies

HISTORY = 600  # snapshots in the plots: five minutes
SILENT_S = 3.0  # a server that has told nothing for so long is in trouble
_COUNTED_PROBLEMS = {
    "internal_errors": "unexpected exceptions in the server; each is a bug, see its log",
    "limited": "messages dropped because a client was over the rate limit",
    "forbidden": "messages from revoked keys, or operations asked for by others than operators",
    "malformed": "frames that were no message",
}


class Monitor:
    """`take` belongs to one thread; `state` may be called from any.

    Args:
        registry: Of the server.
        fleet: The robots.
        clock: Monotonic seconds.
    """

    def __init__(self, registry: RegistryView, fleet: Fleet, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry, self._fleet, self._clock = registry, fleet, clock
        self._snapshot: Snapshot | None = None
        self._taken_s = 0.0
        self._points: deque[list[float | None]] = deque(maxlen=HISTORY)

    def take(self, snapshot: Snapshot) -> None:
        """Take in a snapshot of the server."""
        before, now_s = self._snapshot, self._clock()
        if before is not None:
            seconds = (snapshot.monotonic_ns - before.monotonic_ns) / 1e9
            self._points.append([now_s, *_summary(latencies(snapshot), seconds)])
        self._snapshot, self._taken_s = snapshot, now_s

    def state(self) -> dict[str, Any]:
        """All of it, for JSON.

        `series` has `[s ago, actions per second, p50, p99, max of the time in the server in us]` per half second, with
        None where there was no action.
        """
        now_s = self._clock()
        robots = self._fleet.views()
        return {
            "time_s": time.time(),
            "server": self._server(now_s),
            "series": [[round(now_s - (point[0] or 0.0), 2), *point[1:]] for point in self._points.copy()],
            "robots": robots,
            "policies": self._registry.policies,
            "episodes": self._registry.episodes,
            "problems": self._problems(now_s, robots),
            "faults": self._registry.faults,
            "audit": self._registry.audit,
        }

    def _server(self, now_s: float) -> dict[str, Any] | None:
        snapshot = self._snapshot
        if snapshot is None:
            return None
        return {
            "age_s": now_s - self._taken_s,
            "endpoint": snapshot.endpoint,
            "policy_version": snapshot.policy_version,
            "stochastic": snapshot.stochastic,
            "swaps": snapshot.swaps,
            "failures": snapshot.failures,
            "counters": snapshot.counters,
            "sessions": [
                {"client": item.client, "episode_id": item.episode_id, "step_index": item.step_index,
                 "policy_version": item.policy_version, "idle_s": item.idle_s}
                for item in snapshot.sessions
            ],
        }  # fmt: skip

    def _problems(self, now_s: float, robots: list[dict[str, Any]]) -> list[str]:
        """What is wrong now, the worst first."""
        found: list[str] = []
        for robot in robots:
            name = robot["name"]
            if robot["tripped"]:
                found.append(f"{name}: e-stop in force ({robot['reason']}), {robot['stop']}")
            elif robot["state"] == "FAULT":
                found.append(f"{name}: in FAULT")
            if robot["age_s"] is None or robot["age_s"] > LATE_S:
                found.append(f"{name}: {robot['error'] or 'not heard of yet'}")
        if self._snapshot is None or now_s - self._taken_s > SILENT_S:
            found.append("the policy server tells nothing: it hangs, or its machine is overloaded")
        if self._registry.policies.get("error"):
            found.append(self._registry.policies["error"])
        if self._registry.audit_problem:
            found.append(f"the audit was changed: {self._registry.audit_problem}")
        if self._snapshot is not None:
            if self._snapshot.failures:
                found.append(f"{self._snapshot.failures} policy version(s) could not be loaded, see the server's log")
            counters = self._snapshot.counters
            found += [f"{counters[key]} {text}" for key, text in _COUNTED_PROBLEMS.items() if counters.get(key)]
        return found


def _summary(times: Sequence[int], seconds: float) -> list[float | None]:
    """[per second, p50, p99, max in us] of some times in ns."""
    rate = round(len(times) / seconds, 1) if seconds > 0 else 0.0
    if not times:
        return [rate, None, None, None]
    ordered = sorted(times)
    last = len(ordered) - 1
    return [rate, *(round(ordered[round(share * last)] / 1e3, 1) for share in (0.5, 0.99, 1.0))]
