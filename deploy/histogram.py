"""A histogram of durations that never grows: fixed buckets, relative width below 1.6 %, exact extremes.

The control loop adds a few values per tick for hours; a list of them would grow without bound.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

_SUB_BITS = 6
_SUB = 1 << _SUB_BITS  # buckets per octave
_OCTAVES = 64 - _SUB_BITS  # up to 2^63 ns, some 292 years
_SIZE = _SUB * (_OCTAVES + 1)


class Histogram:
    """Counts of durations in nanoseconds; negative ones count as 0.

    Attributes:
        count: Values added.
        minimum: Smallest of them, ns; 0 if there are none.
        maximum: Largest.
    """

    __slots__ = ("_buckets", "count", "maximum", "minimum")

    def __init__(self) -> None:
        self._buckets = array("q", bytes(8 * _SIZE))
        self.count = self.minimum = self.maximum = 0

    def __len__(self) -> int:
        return self.count

    def add(self, nanoseconds: int) -> None:
        """Count one value."""
        value = nanoseconds if nanoseconds > 0 else 0
        shift = value.bit_length() - _SUB_BITS - 1
        # Below 2 * _SUB each value has a bucket of its own; above, 64 buckets share an octave.
        index = value if shift <= 0 else (shift << _SUB_BITS) + (value >> shift)
        self._buckets[index] += 1
        if self.count == 0 or value < self.minimum:
            self.minimum = value
        if value > self.maximum:
            self.maximum = value
        self.count += 1

    def extend(self, values: Iterable[int]) -> None:
        """Count several values."""
        for value in values:
            self.add(value)

    def merge(self, other: Histogram) -> None:
        """Count all values of another histogram too."""
        if other.count == 0:
            return
        for index, number in enumerate(other._buckets):
            if number:
                self._buckets[index] += number
        self.minimum = other.minimum if self.count == 0 else min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)
        self.count += other.count

    def percentile(self, percent: float) -> float:
        """Value in ns that `percent` (0 to 100) of the values do not exceed, off by less than 1.6 %; 0 if empty."""
        rank = percent / 100.0 * (self.count - 1)
        seen = 0
        for index, number in enumerate(self._buckets):
            seen += number
            if number and seen > rank:
                low, width = _bucket(index)
                return float(min(max(low + width / 2 - 0.5, self.minimum), self.maximum))
        return 0.0

    def octaves(self) -> dict[int, int]:
        """Upper edge in ns, a power of two, -> number of values below it and not below the edge before; none empty."""
        result: dict[int, int] = {}
        for index, number in enumerate(self._buckets):
            if number:
                edge = 1 << _bucket(index)[0].bit_length()
                result[edge] = result.get(edge, 0) + number
        return result


def _bucket(index: int) -> tuple[int, int]:
    """(lowest value, width) of a bucket."""
    if index < 2 * _SUB:
        return index, 1
    shift = (index >> _SUB_BITS) - 1
    return (index - (shift << _SUB_BITS)) << shift, 1 << shift
