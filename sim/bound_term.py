"""A randomisation term bound to a model: what its draws belong to and what they do.

Shapes: E selected elements, W values per element.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpo_robot.errors import ConfigError
from sim.distributions import Array, draw
from sim.randomization_config import RandomizationTerm


@dataclass(eq=False)
class BoundTerm:
    """One term of the configuration with its elements found.

    Attributes:
        term: The configuration.
        labels: Names of the E elements; empty if the parameter has none (gravity, delays).
        width: W, values drawn per element.
        apply: Changes the model by draws [E, W]; None if the draws are used elsewhere.
        fields: Names of the model fields that `apply` changes.
        derived: Constants that MuJoCo derives from these fields must be recomputed.
        draws: Present draws, [E, W] ([1, W] if shared); None before the first.
        next_step: Physics step from which the next draw of mode `interval` is due.
    """

    term: RandomizationTerm
    labels: tuple[str, ...] = ()
    width: int = 1
    apply: Callable[[Array], None] | None = None
    fields: tuple[str, ...] = ()
    derived: bool = False
    draws: Array | None = None
    next_step: int = 0

    def draw(self, generator: np.random.Generator) -> None:
        """Replace the present draws."""
        elements = 1 if self.term.shared else max(1, len(self.labels))
        self.draws = draw(self.term, generator, (elements, self.width))

    def schedule(self, generator: np.random.Generator, now: int, physics_dt: float) -> None:
        """Set when the next draw is due."""
        assert self.term.interval_s is not None
        self.next_step = now + max(1, round(generator.uniform(*self.term.interval_s) / physics_dt))

    def spread(self) -> Array:
        """Present draws for every element, [E, W]."""
        assert self.draws is not None
        return np.broadcast_to(self.draws, (max(1, len(self.labels)), self.width))

    def as_info(self) -> dict[str, Any]:
        """JSON-able record of the present draws."""
        assert self.draws is not None
        rows = [self._number(row) for row in self.draws]
        if self.term.shared and self.labels:
            values: Any = {"shared": rows[0]}
        else:
            values = dict(zip(self.labels, rows)) if self.labels else rows[0]
        return {"operation": self.term.resolved_operation, "values": values}

    def _number(self, row: Array) -> Any:
        numbers = [int(x) if self.term.info.integer else float(x) for x in row]
        return numbers[0] if len(numbers) == 1 else numbers


def refuse(term: RandomizationTerm, text: str) -> ConfigError:
    """Error about a term."""
    return ConfigError(f"randomization of {term.parameter}: {text}")


def require_above_minimum(term: RandomizationTerm, labels: Sequence[str], defaults: Array) -> None:
    """Refuse a term with operation `add` that can push a default [E, ...] below the parameter's minimum.

    Raises:
        ConfigError: names the first such element.
    """
    minimum = term.info.minimum
    if term.resolved_operation != "add" or minimum is None or term.low is None:
        return
    for label, row in zip(labels, np.reshape(defaults, (len(labels), -1))):
        lowest = float(row.min()) + term.low
        if lowest < minimum or (lowest == minimum and term.info.positive):
            wanted = "above" if term.info.positive else "at least"
            raise refuse(term, f"low {term.low:g} would bring {label} to {lowest:g}; it must stay {wanted} {minimum:g}")
