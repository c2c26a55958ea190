"""The soak's checkers around the loop's clock and its source of actions."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from tests.support.soak_watch import EpisodeTrace, Watch, waiting_s

BLOCKED_S = 0.5  # that the loop may wait beyond what its deadlines allow


class WatchedClock:
    """A clock whose wall time can jump. Checks that all deadlines lie on one grid and that nothing blocks the loop.

    Args:
        watch: Shared state.
        period_ns: Of the policy.
        command_ns: From one motor command to the next.
        allowed_s: How long the loop may wait for an action in one period.
    """

    def __init__(self, watch: Watch, period_ns: int, command_ns: int, allowed_s: float) -> None:
        self._watch = watch
        self._period_ns, self._command_ns, self._allowed_s = period_ns, command_ns, allowed_s
        self.wall_offset_ns = 0
        self._trace: EpisodeTrace | None = None
        self._anchor_ns = 0
        self._woke = self._waiting_s = 0.0

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def wall_time_ns(self) -> int:
        return time.time_ns() + self.wall_offset_ns

    def sleep_until(self, deadline_ns: int) -> None:
        watch = self._watch
        if watch.trace.started_s < math.inf and watch.is_loop():
            self._check(deadline_ns)
        while (left := deadline_ns - time.monotonic_ns()) > 0:
            time.sleep(left / 1e9)
        self._woke, self._waiting_s, watch.driver_s = time.monotonic(), waiting_s(), 0.0

    def _check(self, deadline_ns: int) -> None:
        watch = self._watch
        trace = watch.trace
        if self._trace is not trace:
            self._trace, self._anchor_ns = trace, deadline_ns
        else:
            waited = waiting_s() - self._waiting_s - watch.driver_s
            if waited > self._allowed_s + BLOCKED_S and not watch.is_starved(self._woke):
                watch.violations.report("blocked", f"the loop waited for {waited:.3f} s between two of its sleeps")
        since = deadline_ns - self._anchor_ns
        if since % self._command_ns:
            watch.violations.report("schedule", f"deadline {since} ns after the anchor is not on the grid")
        if since % self._period_ns == 0:
            trace.ticks += 1
            trace.last_period = since // self._period_ns


class WatchedSource:
    """A source of actions; notes when an episode was begun, and that its version stays the same.

    Args:
        source: The real one.
        watch: Shared state.
        on_begin: Called with (seconds before, seconds after, version) of `begin_episode`, by `time.monotonic`.
    """

    def __init__(self, source: Any, watch: Watch, on_begin: Callable[[str, float, float, str], None]) -> None:
        self._source, self._watch, self._on_begin = source, watch, on_begin

    def begin_episode(self, episode_id: str) -> str:
        began = time.monotonic()
        version = self._source.begin_episode(episode_id)
        self._watch.version, self._watch.trace = version, EpisodeTrace()
        self._watch.violations.event(f"episode {episode_id} with policy {version[:12]}")
        self._on_begin(episode_id, began, time.monotonic(), version)
        return version

    def act(self, observation: Any, step_index: int, deadline_ns: int) -> Any:
        action = self._source.act(observation, step_index, deadline_ns)
        if action is not None and action.policy_version != self._watch.version:
            self._watch.violations.report(
                "stale_policy", f"action of {action.policy_version[:12]} in an episode of {self._watch.version[:12]}"
            )
        return action

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)
