from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.histogram import Histogram

durations = st.lists(st.integers(0, 2**62), min_size=1, max_size=60)


def filled(values: list[int]) -> Histogram:
    histogram = Histogram()
    histogram.extend(values)
    return histogram


@given(values=durations, percent=st.floats(0, 100))
def test_percentiles_are_close_to_a_value_of_that_rank(values: list[int], percent: float) -> None:
    ordered = sorted(values)
    exact = ordered[int(percent / 100 * (len(values) - 1))]
    assert filled(values).percentile(percent) == pytest.approx(exact, rel=0.016, abs=0.5)


@given(values=durations)
def test_extremes_and_count_are_exact(values: list[int]) -> None:
    histogram = filled(values)
    assert (histogram.count, histogram.minimum, histogram.maximum) == (len(values), min(values), max(values))
    assert sum(histogram.octaves().values()) == len(values)


@given(left=durations, right=durations)
def test_merging_is_adding_all_values(left: list[int], right: list[int]) -> None:
    merged, together = filled(left), filled(left + right)
    merged.merge(filled(right))
    assert merged.octaves() == together.octaves()
    assert [merged.percentile(p) for p in (0, 50, 99, 100)] == [together.percentile(p) for p in (0, 50, 99, 100)]
    assert (merged.count, merged.minimum, merged.maximum) == (together.count, together.minimum, together.maximum)


@given(value=st.integers(0, 2**62))
def test_octave_holds_its_value(value: int) -> None:
    ((edge, number),) = filled([value]).octaves().items()
    assert number == 1
    assert value < edge
    assert edge == 1 or value >= edge // 2


def test_equal_values_are_told_exactly() -> None:
    histogram = filled([1_000_003] * 7)
    assert histogram.percentile(50) == histogram.percentile(99) == 1_000_003


def test_empty_and_negative() -> None:
    empty = Histogram()
    assert (len(empty), empty.percentile(50), empty.octaves()) == (0, 0.0, {})
    empty.merge(Histogram())
    assert len(empty) == 0
    assert filled([-5]).maximum == 0


def test_it_never_grows() -> None:
    histogram = Histogram()
    before = sys.getsizeof(histogram._buckets)
    for value in np.random.default_rng(0).integers(0, 2**62, 5000).tolist():
        histogram.add(value)
    assert sys.getsizeof(histogram._buckets) == before
