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
_DRAWN_AT_ONCE = 8192  # scalars of noise


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

    A reading is `observation * scale + offset`. For speed the noise of many readings is drawn at once, from a
    generator of its own, and combined with the biases to one scale and one offset for each.

    Attributes:
        delay: Physics steps between a state and the reading that shows it.
        drop_probability: Chance that a reading is lost.
        may_drop: Whether it can ever be above 0.
    """

    def __init__(self, observation_size: int) -> None:
        self._size = observation_size
        self._readings = min(256, max(16, _DRAWN_AT_ONCE // observation_size))  # K, for which noise is drawn at once
        self._biases: list[tuple[BoundTerm, Places]] = []
        self._noises: list[tuple[RandomizationTerm, Places, int]] = []
        self.delay = 0
        self.drop_probability = 0.0
        self.may_drop = False
        self._samples: deque[tuple[int, FloatArray]] = deque()
        self._delivered = np.zeros(0, np.float32)
        self._generator = np.random.default_rng()
        self._drawn: list[npt.NDArray[np.float64]] = []  # [K, S] of each noise
        self._row = 0  # of the next reading, in the K that were drawn
        self._scales: list[FloatArray] | None = None  # K of [O]; None if all 1
        self._offsets: list[FloatArray] | None = None  # K of [O]; None if all 0

    def seed(self, seed: int) -> None:
        """Make the noise after this repeatable."""
        self._generator = np.random.default_rng([seed, 2])
        self._drawn = []

    def add_bias(self, term: BoundTerm, places: npt.NDArray[np.intp]) -> None:
        """Register a bias; its present draws are used."""
        self._biases.append((term, _as_slice(places)))

    def add_noise(self, term: BoundTerm, places: npt.NDArray[np.intp]) -> None:
        """Register a noise, drawn anew for every reading."""
        self._noises.append((term.term, _as_slice(places), 1 if term.term.shared else places.size))

    def start(self, observation: FloatArray) -> FloatArray:
        """First reading of an episode [O]; it is never lost."""
        self._delivered = self.disturb(observation)
        self._samples = deque([(0, self._delivered)])
        return self._delivered.copy()

    def capture(self, observation: FloatArray, step: int) -> None:
        """Take a reading of the state at physics step `step`, for later delivery."""
        self._samples.append((step, self.disturb(observation)))

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
            self.capture(observation, now)
            return self.read(now, generator)
        return self.disturb(observation)

    def use_biases(self) -> None:
        """The biases were drawn anew: the next reading has the present ones."""
        if self._biases and (self._drawn or not self._noises):
            self._combine()

    def disturb(self, observation: FloatArray) -> FloatArray:
        """A new reading [O] of a state, neither late nor lost."""
        row = 0
        if self._noises:
            row = self._row
            if row == self._readings or not self._drawn:
                self._drawn = [draw(term, self._generator, (self._readings, count)) for term, _, count in self._noises]
                self._combine()
                row = 0
            self._row = row + 1
        scales, offsets = self._scales, self._offsets
        if scales is not None:
            observation = observation * scales[row]
        return observation.copy() if offsets is None else observation + offsets[row]

    def _combine(self) -> None:
        """One scale and one offset for each reading, of all biases and then all noises, in their order."""
        shape = (self._readings if self._noises else 1, self._size)
        steps = [(bias.term, places, bias.spread()[:, 0]) for bias, places in self._biases]
        steps += [(term, places, drawn) for (term, places, _), drawn in zip(self._noises, self._drawn)]
        scaled = any(term.resolved_operation == "scale" for term, _, _ in steps)
        scales, offsets = np.ones(shape if scaled else 0), np.zeros(shape)
        for term, places, values in steps:
            if term.resolved_operation == "scale":
                scales[:, places] *= values
                offsets[:, places] *= values
            else:
                offsets[:, places] += values
        self._scales = list(scales.astype(np.float32)) if scaled else None
        self._offsets = list(offsets.astype(np.float32)) if steps else None

    def state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """What `set_state` needs: JSON-able values and arrays."""
        values = {
            "delay": self.delay,
            "drop_probability": self.drop_probability,
            "steps": [step for step, _ in self._samples],
            "random": self._generator.bit_generator.state,
            "row": self._row,
        }
        arrays = {"samples": np.array([reading for _, reading in self._samples]), "delivered": self._delivered}
        return values, arrays | {f"noise_{index}": drawn for index, drawn in enumerate(self._drawn)}

    def set_state(self, values: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Inverse of `state`; the draws of the biases must be in place."""
        self.delay, self.drop_probability = values["delay"], values["drop_probability"]
        self._samples = deque(zip(values["steps"], arrays["samples"].copy()))
        self._delivered = arrays["delivered"].copy()
        self._generator.bit_generator.state = values["random"]
        self._row = values["row"]
        self._drawn = [arrays[f"noise_{index}"].copy() for index in range(len(self._noises)) if "noise_0" in arrays]
        if self._drawn or (self._biases and not self._noises):
            self._combine()
