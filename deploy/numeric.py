"""Checks on the small arrays that pass between robot and policy in every tick."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

_SHORT = 64


def all_finite(values: npt.NDArray[np.floating[Any]]) -> bool:
    """Whether a float32 vector holds no NaN and no infinity."""
    if values.size > _SHORT:
        return bool(np.isfinite(values).all())
    # For the few values of a robot plain floats are faster. The sum of float32 values cannot overflow in float64, and
    # infinities of both signs give NaN.
    return math.isfinite(sum(values.tolist()))
