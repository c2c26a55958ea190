from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deploy.interpolation import command_at

vectors = hnp.arrays(np.float32, 3, elements=st.floats(-1e6, 1e6, width=32))


@st.composite
def periods(draw: st.DrawFn) -> tuple[int, int]:
    count = draw(st.integers(1, 20))
    return draw(st.integers(0, count - 1)), count


@given(start=vectors, target=vectors, period=periods())
def test_linear_arrives_exactly_and_never_turns_back(
    start: np.ndarray, target: np.ndarray, period: tuple[int, int]
) -> None:
    first, count = period
    commands = [command_at(start, target, index, count, "linear", first) for index in range(first, count)]
    np.testing.assert_array_equal(commands[-1], target)
    low, high = np.minimum(start, target), np.maximum(start, target)
    before = start
    for command in commands:
        assert command.dtype == np.float32
        assert ((command >= low) & (command <= high)).all()
        moved = np.sign(target - start) * (command.astype(np.float64) - before)
        assert (moved >= 0).all(), "a command went back"
        before = command


@given(start=vectors, target=vectors, period=periods())
def test_linear_shares_the_way_evenly(start: np.ndarray, target: np.ndarray, period: tuple[int, int]) -> None:
    first, count = period
    commands = [start, *(command_at(start, target, index, count, "linear", first) for index in range(first, count))]
    steps = np.diff(np.stack(commands).astype(np.float64), axis=0)
    expected = (target.astype(np.float64) - start) / (count - first)
    scale = np.abs(start) + np.abs(target)
    assert (np.abs(steps - expected) <= 4e-7 * scale + 1e-30).all()


@given(start=vectors, target=vectors, period=periods())
def test_hold_is_the_target_at_once(start: np.ndarray, target: np.ndarray, period: tuple[int, int]) -> None:
    first, count = period
    for index in range(first, count):
        command = command_at(start, target, index, count, "hold", first)
        np.testing.assert_array_equal(command, target)
        assert command is not target, "a driver may overwrite what it gets"


@given(vector=vectors, period=periods())
def test_standing_still_is_exact(vector: np.ndarray, period: tuple[int, int]) -> None:
    first, count = period
    for index in range(first, count):
        np.testing.assert_array_equal(command_at(vector, vector, index, count, "linear", first), vector)


@pytest.mark.parametrize(("index", "count", "first"), [(1, 1, 0), (-1, 2, 0), (0, 4, 1), (0, 0, 0)])
def test_indices_outside_the_period_are_refused(index: int, count: int, first: int) -> None:
    zero = np.zeros(1, np.float32)
    with pytest.raises(ValueError, match="index"):
        command_at(zero, zero, index, count, "linear", first)
