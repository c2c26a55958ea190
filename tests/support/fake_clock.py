"""A clock that moves only when told to, or when the loop sleeps."""

from __future__ import annotations

WALL_OFFSET_NS = 1_700_000_000_000_000_000


class FakeClock:
    """Starts at 1 s. `oversleep_ns` makes every sleep end that much late."""

    def __init__(self, oversleep_ns: int = 0) -> None:
        self.now_ns = 1_000_000_000
        self.oversleep_ns = oversleep_ns
        self.sleeps: list[int] = []

    def monotonic_ns(self) -> int:
        return self.now_ns

    def wall_time_ns(self) -> int:
        return self.now_ns + WALL_OFFSET_NS

    def sleep_until(self, deadline_ns: int) -> None:
        self.sleeps.append(deadline_ns)
        if deadline_ns > self.now_ns:
            self.now_ns = deadline_ns + self.oversleep_ns

    def advance(self, nanoseconds: int) -> None:
        self.now_ns += nanoseconds
