"""Courses of the parkour tasks: where each block lies in an episode, and the height of the ground. NumPy only.

A course is a row of K blocks of fixed lengths that an episode moves to new places. Shapes: K blocks, X points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

BLOCK_HALF_HEIGHT = 0.5  # m; a block is sunk into the floor until its top has the height that was drawn
_START = 3.0  # m from the start pose to where the course begins
_WARM_UP = 10  # obstacles over which the difficulty grows to its full range


@dataclass(frozen=True)
class Course:
    """One kind of course. Lengths in m.

    Attributes:
        lengths: [K] of the blocks along the course.
        height: Smallest and largest top of a block above the floor.
        spacing: Smallest and largest distance from the end of one block to the beginning of the next.
        floor: Height of the ground between blocks. Below 0 it is a pit without a bottom.
        start_end: Where a fixed block under the start pose ends, if the floor is a pit.
    """

    lengths: tuple[float, ...]
    height: tuple[float, float]
    spacing: tuple[float, float]
    floor: float = 0.0
    start_end: float | None = None

    @property
    def half_lengths(self) -> Array:
        """[K]."""
        return np.array(self.lengths) / 2


COURSES: dict[str, Course] = {
    # Platforms at floor level with gaps between them; the last is long enough for the rest of any episode.
    "gaps": Course((2.0, 2.5, 3.0, 3.5, 4.0) * 5 + (60.0,), (0.0, 0.0), (0.2, 1.0), floor=-1.0, start_end=_START),
    # Thin bars to step or jump over.
    "hurdles": Course((0.2,) * 26, (0.05, 0.35), (2.5, 4.5)),
    # Thick blocks, too high to step over: up, across and down again.
    "walls": Course((0.6, 0.9, 1.2, 1.5, 1.8) * 4, (0.15, 0.6), (2.5, 4.5)),
}


def draw_course(course: Course, random: np.random.RandomState) -> Array:
    """Centers of the blocks, [K, 2]: position along the course and height, m.

    The order of blocks of different lengths is drawn too, all but the last block's. Heights of blocks, and the widths
    of gaps, come from a range that grows to its full size over the first obstacles.
    """
    count, half = len(course.lengths), course.half_lengths
    order = np.append(random.permutation(count - 1), count - 1)
    growth = np.minimum(1.0, np.arange(1, count + 1) / _WARM_UP)
    tops = course.height[0] + (course.height[1] - course.height[0]) * random.uniform(size=count) * growth
    easier = growth if course.floor < 0 else 1.0  # elsewhere the space between obstacles is for running up
    spaces = course.spacing[0] + (course.spacing[1] - course.spacing[0]) * random.uniform(size=count) * easier
    lengths = 2 * half[order]
    ends = _START + np.cumsum(spaces + lengths)
    centers = np.empty((count, 2))
    centers[order, 0] = ends - lengths / 2
    centers[order, 1] = tops - BLOCK_HALF_HEIGHT
    return centers


def ground_height(course: Course, centers: Array, points: Array) -> Array:
    """Height of the ground [X], m, at places [X] along a course whose blocks have the given centers [K, 2]."""
    over = np.abs(points[:, None] - centers[:, 0]) <= course.half_lengths
    height = course.floor + over @ (centers[:, 1] + (BLOCK_HALF_HEIGHT - course.floor))
    return height if course.start_end is None else np.where(points <= course.start_end, 0.0, height)
