"""`RateLimiter`: a token bucket per peer. Pure: the caller brings the time."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass
class _Bucket:
    tokens: float
    filled_ns: int
    told: bool = False


class RateLimiter:
    """Who sends more than `rate_hz` in the long run, after a burst, is refused until tokens have come back.

    Args:
        rate_hz: Tokens per second and peer; 0 limits nobody.
        burst: Most tokens a peer can have saved.
    """

    def __init__(self, rate_hz: float, burst: float) -> None:
        self._rate_per_ns = rate_hz / 1e9
        self._burst = burst
        self._buckets: dict[Hashable, _Bucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def allow(self, peer: Hashable, now_ns: int) -> bool:
        """Whether a peer has a token; what it then costs comes with `charge`."""
        if self._rate_per_ns == 0.0:
            return True
        bucket = self._buckets.get(peer)
        if bucket is None:
            bucket = self._buckets[peer] = _Bucket(self._burst, now_ns)
        bucket.tokens = min(self._burst, bucket.tokens + (now_ns - bucket.filled_ns) * self._rate_per_ns)
        bucket.filled_ns = now_ns
        if bucket.tokens < 1.0:
            return False
        if bucket.tokens >= self._burst / 2:
            bucket.told = False
        return True

    def charge(self, peer: Hashable, cost: float) -> None:
        """Take tokens, into debt if need be, but no deeper than one burst."""
        bucket = self._buckets.get(peer)
        if bucket is not None:
            bucket.tokens = max(-self._burst, bucket.tokens - cost)

    def should_tell(self, peer: Hashable) -> bool:
        """Whether a refused peer is to be told: once until it has saved half a burst again."""
        bucket = self._buckets.get(peer)
        if bucket is None or bucket.told:
            return False
        bucket.told = True
        return True

    def prune(self, now_ns: int) -> None:
        """Forget peers whose bucket is full by now: a new one would be just like it."""
        for peer, bucket in list(self._buckets.items()):
            if bucket.tokens + (now_ns - bucket.filled_ns) * self._rate_per_ns >= self._burst:
                del self._buckets[peer]
