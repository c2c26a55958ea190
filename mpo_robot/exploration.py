"""Noise of the behaviour policy: correlated in time (`ColoredNoise`), weaker in some episodes (`EpisodeNoise`).

Each step's noise is normal on its own, whatever the colour, and the behaviour log-probability that is stored is that of
the Gaussian with the episode's standard deviation. With white noise that is mu(a|s) exactly. With coloured noise it is
the density without regard to the noise before, which the state has already seen: ratios are then approximate.
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

    def sample(self, rng: np.random.Generator, white: bool = False) -> FloatArray:
        """Noise [size] of the next step; white on demand, which leaves the block where it is."""
        if white or self.color == 0.0:
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


class EpisodeNoise:
    """Noise of one environment, and a factor of the policy's stddev that each episode draws anew from U[scale_min, 1].

    The policy is trained to act with its noise and used without. Where noise is strong and the body falls (a humanoid)
    the two visit different states, and the mean action would meet some that the replay has never seen. Episodes with
    less noise bring them in (as FastTD3 does across its environments: Seo et al. 2025). With `scale_min` 1 the
    behaviour policy is the policy itself.

    Args:
        size: A.
        color: As in `ColoredNoise`.
        scale_min: In (0, 1].
    """

    def __init__(self, size: int, color: float, scale_min: float = 1.0) -> None:
        if not 0.0 < scale_min <= 1.0:
            raise ValueError(f"scale_min must be in (0, 1], got {scale_min}")
        self.colored = ColoredNoise(size, color)
        self.scale_min = scale_min
        self.scale: float | None = None  # of the present episode, drawn with its first sample

    @property
    def size(self) -> int:
        """Independent dimensions."""
        return self.colored.size

    def start_episode(self) -> None:
        """Independent noise, and a new factor with the next sample."""
        self.colored.start_episode()
        self.scale = None

    def sample(self, rng: np.random.Generator, white: bool = False) -> tuple[FloatArray, float]:
        """Noise of the next step, white if asked for, and the factor of the policy's standard deviation."""
        if self.scale is None:
            self.scale = float(rng.uniform(self.scale_min, 1.0)) if self.scale_min < 1.0 else 1.0
        return self.colored.sample(rng, white), self.scale

    def state_dict(self) -> dict[str, Any]:
        """The present episode's."""
        return self.colored.state_dict() | {"scale": self.scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict` exactly."""
        self.colored.load_state_dict(state)
        self.scale = state.get("scale", 1.0)  # earlier checkpoints have none
