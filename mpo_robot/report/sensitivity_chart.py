"""Figure of a sensitivity study: the return over the values of each varied setting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpo_robot.errors import ConfigError


class Variation(NamedTuple):
    """One setting and what its values led to.

    Attributes:
        setting: Its key.
        base: The base's value.
        values: All values, in the order of the axis; the base's among them.
        outcomes: For each value [R, 2]: last return, and mean return over the evaluations, of R seeds.
    """

    setting: str
    base: Any
    values: list[Any]
    outcomes: list[npt.NDArray[np.float64]]


def draw_sensitivity(path: Path, variations: Sequence[Variation], last_step: int) -> None:
    """Write a PNG with a panel per setting: the last return (mean, and each seed), and the mean over the training.

    Raises:
        ConfigError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("the plot needs matplotlib: pip install 'mpo-robot[report]'") from error
    columns = min(len(variations), 3)
    rows = -(-len(variations) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.0 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels: list[Any] = list(np.ravel(figure.subplots(rows, columns, squeeze=False, sharey=True)))
    for axes, item in zip(panels, variations):
        _panel(axes, item)
    for unused in panels[len(variations) :]:
        unused.set_visible(False)
    panels[0].set_ylabel(f"return after {last_step:,} steps")
    panels[0].legend(frameon=False, fontsize="small")
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def _panel(axes: Any, item: Variation) -> None:
    places = np.arange(len(item.values))  # evenly spaced: the values are usually factors apart
    axes.plot(places, [outcome[:, 0].mean() for outcome in item.outcomes], "o-", color="C0", label="last")
    axes.plot(places, [outcome[:, 1].mean() for outcome in item.outcomes], "s--", color="C1", label="mean of training")
    for place, outcome in zip(places, item.outcomes):
        if len(outcome) > 1:
            axes.plot([place] * len(outcome), outcome[:, 0], ".", color="C0", alpha=0.5)
    axes.axvline(item.values.index(item.base), color="0.8", lw=6, zorder=0)  # the base
    axes.set_xticks(places, [str(value) for value in item.values])
    axes.set_title(item.setting.rpartition(".")[2], fontsize="medium")
