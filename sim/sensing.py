"""What a policy sees of the simulated state: bias and noise, delay, and lost readings.

A reading is disturbed once, when it is taken; a lost one is replaced by the one before, unchanged. Shapes: O
observation size, S scalars a term selects.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mpo_robot.specs import TermSpec
from mpo_robot.types import FloatArray
from sim.bound_term import BoundTerm, refuse
from sim.distributions import draw
from sim.randomization_config import RandomizationTerm
from sim.selection import select

Places = slice | npt.NDArray[np.intp]


def bind_observation(terms: Sequence[TermSpec], term: RandomizationTerm) -> tuple[BoundTerm, npt.NDArray[np.intp]]:
    """A noise or bias term, and the S places of the observation it disturbs.

    Raises:
        ConfigError: no such observation term, or components that it does not have.
    """
    names = [item.name for item in terms]
    where = f"randomization of {term.parameter}"
    chosen = select(term.select, names, where) if term.select else range(len(names))
    starts = np.cumsum([0, *(item.size for item in terms)])
    places, labels = [], []
    for index in chosen:
        size = terms[index].size
        components = range(size) if term.components is None else term.components
        if max(components) >= size:
            raise refuse(term, f"{names[index]} has components 0 to {size - 1}, got {max(components)}")
        for component in components:
            places.append(int(starts[index]) + component)
            labels.append(names[index] if size == 1 else f"{names[index]}[{component}]")
    return BoundTerm(term, tuple(labels)), np.array(places, np.intp)


def _as_slice(places: npt.NDArray[np.intp]) -> Places:
    """Neighboring places as a slice, which NumPy reaches faster."""
    neighbors = bool(np.all(np.diff(places) == 1))
    return slice(int(places[0]), int(places[-1]) + 1) if neighbors else places


class Sensing:
    """Turns true observations into readings.

    Attributes:
        delay: Physics steps between a state and the reading that shows it.
        drop_probability: Chance that a reading is lost.
        may_drop: Whether it can ever be above 0.
    """

    def __init__(self) -> None:
        self._biases: list[tuple[BoundTerm, Places]] = []
        self._noises: list[tuple[RandomizationTerm, Places, int]] = []
        self.delay = 0
        self.drop_probability = 0.0
        self.may_drop = False
        self._samples: deque[tuple[int, FloatArray]] = deque()
        self._delivered = np.zeros(0, np.float32)

    def add_bias(self, term: BoundTerm, places: npt.NDArray[np.intp]) -> None:
        """Register a bias; its present draws are used."""
        self._biases.append((term, _as_slice(places)))

    def add_noise(self, term: BoundTerm, places: npt.NDArray[np.intp]) -> None:
        """Register a noise, drawn anew for every reading."""
        self._noises.append((term.term, _as_slice(places), 1 if term.term.shared else places.size))

    def start(self, observation: FloatArray, generator: np.random.Generator) -> FloatArray:
        """First reading of an episode [O]; it is never lost."""
        self._delivered = self._disturb(observation, generator)
        self._samples = deque([(0, self._delivered)])
        return self._delivered.copy()

    def capture(self, observation: FloatArray, step: int, generator: np.random.Generator) -> None:
        """Take a reading of the state at physics step `step`, for later delivery."""
        self._samples.append((step, self._disturb(observation, generator)))

    def read(self, now: int, generator: np.random.Generator) -> FloatArray:
        """The newest reading [O] that is at least `delay` physics steps old."""
        samples = self._samples
        while len(samples) > 1 and samples[1][0] + self.delay <= now:
            samples.popleft()
        if self.drop_probability == 0.0 or generator.random() >= self.drop_probability:
            self._delivered = samples[0][1]
        return self._delivered.copy()

    def pass_on(self, observation: FloatArray, now: int, generator: np.random.Generator) -> FloatArray:
        """`capture` and `read` in one: a reading of the present state, unless it is lost."""
        if self.may_drop:
            self.capture(observation, now, generator)
            return self.read(now, generator)
        return self._disturb(observation, generator)

    def _disturb(self, observation: FloatArray, generator: np.random.Generator) -> FloatArray:
        reading = observation.copy()
        for bias, places in self._biases:
            self._apply(bias.term, reading, places, bias.spread()[:, 0])
        for term, places, count in self._noises:
            self._apply(term, reading, places, draw(term, generator, (count,)))
        return reading

    @staticmethod
    def _apply(term: RandomizationTerm, reading: FloatArray, places: Places, values: npt.NDArray[np.float64]) -> None:
        if term.resolved_operation == "scale":
            reading[places] *= values
        else:
            reading[places] += values

    def state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """What `set_state` needs: JSON-able values and arrays."""
        values = {
            "delay": self.delay,
            "drop_probability": self.drop_probability,
            "steps": [step for step, _ in self._samples],
        }
        return values, {"samples": np.array([reading for _, reading in self._samples]), "delivered": self._delivered}

    def set_state(self, values: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Inverse of `state`."""
        self.delay, self.drop_probability = values["delay"], values["drop_probability"]
        self._samples = deque(zip(values["steps"], arrays["samples"].copy()))
        self._delivered = arrays["delivered"].copy()
