"""Drawing random values and combining them with defaults."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from sim.randomization_config import RandomizationTerm

Array = npt.NDArray[np.float64]


def draw(term: RandomizationTerm, generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Independent draws of `term`, within its bounds; whole numbers (as floats) for delays."""
    low, high = term.low, term.high
    if term.distribution == "gaussian":
        assert term.mean is not None
        assert term.stddev is not None
        values = generator.normal(term.mean, term.stddev, shape)
        return values if low is None and high is None else np.clip(values, low, high)
    assert low is not None
    assert high is not None
    if term.info.integer:
        return generator.integers(int(low), int(high) + 1, shape).astype(np.float64)
    if term.distribution == "log_uniform":
        return np.clip(np.exp(generator.uniform(math.log(low), math.log(high), shape)), low, high)
    return generator.uniform(low, high, shape)


def combine(operation: str, default: Array, draws: Array) -> Array:
    """`abs` replaces the default, `scale` multiplies it, `add` is added to it."""
    if operation == "scale":
        return default * draws
    return default + draws if operation == "add" else np.broadcast_to(draws, default.shape)
