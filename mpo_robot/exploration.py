"""Standard-normal noise for exploration that is correlated in time.

Each step's noise is N(0, 1) on its own, whatever the colour, and the behaviour log-probability that is stored is that
of the policy's Gaussian. With white noise it is mu(a|s) exactly. With coloured noise it is the density without regard
to the noise before, which the state has already seen: importance ratios are then approximate.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


class ColoredNoise:
    """Noise with power spectrum 1 / frequency ** color: 0 is white, 1 pink, 2 red.

    Pink noise explored better than white noise in most control tasks, with MPO too (Eberhard et al. 2023, "Pink noise
    is all you need"). It is drawn in blocks by the inverse Fourier transform (Timmer and Koenig 1995).

    Args:
        size: Independent dimensions.
        color: Exponent.
        block: Steps per block; the longest correlation.
    """

    def __init__(self, size: int, color: float, block: int = 1000) -> None:
        if block < 2 or not 0.0 <= color <= 2.0:
            raise ValueError(f"need a block of at least 2 steps and a color from 0 to 2, got {block} and {color}")
        self.size, self.color, self.length = size, color, block
        frequencies = np.fft.rfftfreq(block)
        frequencies[0] = frequencies[1]
        self._amplitudes = frequencies ** (-color / 2)
        # Variance of one step: every frequency counts twice but the first and, for even lengths, the last.
        power = self._amplitudes**2
        total = 2.0 * power.sum() - power[0] - (power[-1] if block % 2 == 0 else 0.0)
        self._amplitudes *= block / np.sqrt(total)
        self._noise = np.empty((0, size), np.float32)
        self._next = 0

    def start_episode(self) -> None:
        """Begin a new block with the next sample, so that episodes are independent."""
        self._next = len(self._noise)

    def sample(self, rng: np.random.Generator) -> FloatArray:
        """Noise [size] of the next step."""
        if self.color == 0.0:
            return rng.standard_normal(self.size, dtype=np.float32)
        if self._next >= len(self._noise):
            self._noise, self._next = self._block(rng), 0
        self._next += 1
        return self._noise[self._next - 1]

    def _block(self, rng: np.random.Generator) -> FloatArray:
        shape = (self.size, len(self._amplitudes))
        spectrum = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) * np.sqrt(0.5)
        for index in (0, -1) if self.length % 2 == 0 else (0,):  # these have no imaginary part
            spectrum[:, index] = rng.standard_normal(self.size)
        return np.fft.irfft(spectrum * self._amplitudes, n=self.length).T.astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        """What remains of the present block."""
        return {"noise": self._noise[self._next :].tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict` exactly."""
        self._noise = np.array(state["noise"], np.float32).reshape(-1, self.size)
        self._next = 0
