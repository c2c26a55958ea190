"""Aggregates over seeds and tasks as Agarwal et al. 2021 ("Deep RL at the edge of the statistical precipice") advise.

NumPy only, about the same as the package `rliable`, which would bring pandas, statsmodels and seaborn. Axes: R seeds
(runs), K tasks. Scores are normalised, so that tasks can be put together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Statistic = Callable[..., FloatArray]  # of the last two axes of one or more [..., R, K]

REPETITIONS = 2_000
CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A statistic and its confidence interval; NaN bounds where a single seed says nothing about the spread."""

    value: float
    low: float
    high: float


def interquartile_mean(scores: FloatArray) -> FloatArray:
    """Mean of the middle half of all scores [..., R, K]: the lowest and highest quarter (rounded down) are left out."""
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = flat.shape[-1] // 4
    return flat[..., cut : flat.shape[-1] - cut].mean(axis=-1)


def mean(scores: FloatArray) -> FloatArray:
    """Mean of all scores [..., R, K]."""
    return scores.mean(axis=(-2, -1))


def median_of_tasks(scores: FloatArray) -> FloatArray:
    """Median over tasks of the mean over seeds, from [..., R, K]."""
    return np.median(scores.mean(axis=-2), axis=-1)


def probability_of_improvement(ours: FloatArray, theirs: FloatArray) -> FloatArray:
    """P(a run of ours beats one of theirs on the same task), ties count half; mean over tasks. [..., R, K] each."""
    difference = ours[..., :, None, :] - theirs[..., None, :, :]
    return (0.5 * (np.sign(difference) + 1.0)).mean(axis=(-3, -2, -1))


def stratified_bootstrap(
    statistic: Statistic,
    *scores: FloatArray,
    repetitions: int = REPETITIONS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Estimate:
    """`statistic(*scores)` with the percentile interval of resampling.

    The seeds of each task are drawn with replacement on their own (tasks are the strata), of each argument on its own.

    Args:
        statistic: Function of arrays [..., R, K] over the last two axes.
        scores: [R, K] each; R may differ.
        repetitions: Resamples.
        confidence: Mass inside the interval.
        seed: Makes it repeatable.

    Raises:
        ValueError: scores that are no matrix, are empty, or not finite.
    """
    rng = np.random.default_rng(seed)
    resampled = []
    for item in scores:
        if item.ndim != 2 or not item.size or not np.isfinite(item).all():
            raise ValueError(f"need finite scores [seeds, tasks], got shape {item.shape}")
        index = rng.integers(len(item), size=(repetitions, *item.shape))
        resampled.append(np.take_along_axis(item[None], index, axis=1))
    if min(map(len, scores)) < 2:
        return Estimate(float(statistic(*scores)), math.nan, math.nan)
    values = statistic(*resampled)
    tail = 0.5 * (1.0 - confidence)
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return Estimate(float(statistic(*scores)), float(low), float(high))


def normalize_scores(returns: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
    """(return - low) / (high - low) per task; returns [..., K], bounds [K].

    Raises:
        ValueError: a task whose bounds are not in order.
    """
    if not (high > low).all():
        raise ValueError(f"every high must be above its low, got {low.tolist()} and {high.tolist()}")
    return (returns - low) / (high - low)
