"""Drawing surface: matplotlib figures as inline SVG whose colors are CSS variables, so that a page can switch theme."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from mpo_robot.errors import ConfigError

Array = npt.NDArray[np.float64]

# Each color stands for one CSS variable of the page; matplotlib writes them in lower case.
INK, GRID, SOFT = "#010101", "#020202", "#030303"
SERIES = ("#040404", "#050505", "#060606", "#070707", "#080808")
_VARIABLES = {INK: "--ink", GRID: "--grid", SOFT: "--soft"} | {
    color: f"--series-{number}" for number, color in enumerate(SERIES, 1)
}
LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 9.0, "labelcolor": INK}  # keywords of every legend
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, selectable, in the reader's font
    "svg.hashsalt": "mpo_robot",
    "font.size": 10.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.6,
    "figure.facecolor": "none",
}
_SIZE = (6.4, 3.5)


class Chart:
    """One figure with one or more panels side by side.

    Attributes:
        axes: The panels, matplotlib axes.
    """

    def __init__(self, panels: int = 1, height: float = _SIZE[1]) -> None:
        """Open a figure.

        Raises:
            ConfigError: matplotlib is not installed.
        """
        try:
            import matplotlib
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ConfigError("plots need matplotlib: pip install 'mpo-robot[report]'") from error
        self._style = matplotlib.rc_context
        with self._style(_STYLE):
            self._figure = Figure(figsize=(_SIZE[0], height), layout="constrained")
            grid = self._figure.subplots(1, panels, squeeze=False)
        self.axes: list[Any] = list(grid[0])

    def svg(self, prefix: str) -> str:
        """The figure as an `<svg>` element; `prefix` keeps its ids apart from those of other figures on the page."""
        buffer = io.StringIO()
        with self._style(_STYLE):
            self._figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        text = buffer.getvalue()
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = re.sub(r'\bid="', f'id="{prefix}-', text)
        text = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", text)
        text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--font)", text)
        for color, variable in _VARIABLES.items():
            text = text.replace(color, f"var({variable})")
        head, _, rest = text.partition(">")
        return re.sub(r' (width|height)="[^"]*"', "", head) + ">" + rest  # the page sets the size


def thin(x: Array, y: Array, points: int = 400) -> tuple[Array, Array]:
    """At most `points` of the finite pairs: the means of consecutive bins, so that long runs stay readable."""
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep], y[keep]
    if len(x) <= points:
        return x, y
    starts = np.linspace(0, len(x), points, endpoint=False).astype(int)
    counts = np.diff(np.append(starts, len(x)))
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts


def draw_legend_above(axes: Any, ncols: int) -> None:
    """Legend of a figure with one panel, above it, in the page's ink: no corner inside is sure to stay free."""
    axes.figure.legend(loc="outside upper left", ncols=ncols, **LEGEND)


def draw_steps_axis(axes: Any, label: str = "environment steps") -> None:
    """Label a step axis with 50k and 1.5M instead of powers of ten."""
    axes.set_xlabel(label)
    axes.xaxis.set_major_formatter(lambda value, _: short_count(value))
    axes.xaxis.get_major_locator().set_params(nbins=6, integer=True)


def short_count(value: float) -> str:
    """12,000 as `12k`, 1,500,000 as `1.5M`."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"
