"""Motor commands between two policy actions, as a pure function. Shapes: A action size."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Interpolation = Literal["hold", "linear"]


def command_at(
    start: FloatArray, target: FloatArray, index: int, count: int, mode: Interpolation, first: int = 0
) -> FloatArray:
    """Command number `index` of the `count` motor commands in one policy period.

    `hold` sends the target at once. `linear` goes there in equal steps and arrives with the last command of the
    period, so that commands never jump by more than 1 / count of the way; it costs one policy period of delay.

    Args:
        start: [A] command in force when the period began.
        target: [A] command asked for.
        index: 0-based, `first` <= index < count.
        count: Motor commands per policy period.
        mode: See above.
        first: Index of the first command sent: not 0 if the action came late. The rest of the period is shared
            evenly by the commands that are left.

    Returns:
        [A], between start and target; exactly the target for the last index.

    Raises:
        ValueError: an index outside its range.
    """
    if not 0 <= first <= index < count:
        raise ValueError(f"need 0 <= first <= index < count, got first {first}, index {index}, count {count}")
    if mode == "hold" or index == count - 1:
        return target.copy()
    fraction = np.float32((index - first + 1) / (count - first))
    command = start + fraction * (target - start)
    # Rounding must not lead past either end.
    return np.minimum(np.maximum(command, np.minimum(start, target)), np.maximum(start, target))
