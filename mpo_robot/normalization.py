"""Running statistics: observation normaliser and return scale. NumPy, float64, exact to save and restore."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


class RunningNormalizer:
    """Running mean and variance per dimension (Welford); normalises to zero mean, unit variance, clipped.

    `epsilon` is added to the variance, so that values which hardly move are not blown up: with 1e-4 what varies by 0.01
    comes out with a standard deviation of 0.7, by 0.001 with 0.1. Give such a sensor in a smaller unit (mm for m).
    """

    def __init__(self, size: int, clip: float = 10.0, epsilon: float = 1e-4) -> None:
        self.count = 0.0
        self.mean = np.zeros(size)
        self.squares = np.zeros(size)  # sum of squared deviations from the mean
        self.clip = clip
        self.epsilon = epsilon
        self._refresh()

    def update(self, observation: npt.NDArray[np.float32]) -> None:
        """Add one observation [O] or a batch [K, O]."""
        batch = np.asarray(observation, np.float64)
        if batch.ndim == 1:
            self.count += 1.0
            delta = batch - self.mean
            self.mean += delta / self.count
            self.squares += delta * (batch - self.mean)
        elif len(batch):
            size, mean = float(len(batch)), batch.mean(axis=0)
            delta, total = mean - self.mean, self.count + size
            self.squares += ((batch - mean) ** 2).sum(axis=0) + delta**2 * (self.count * size / total)
            self.mean += delta * (size / total)
            self.count = total
        self._refresh()

    def _refresh(self) -> None:
        # A dimension that never moves keeps variance 1, so that noise in it is not blown up later.
        variance = self.squares / self.count if self.count >= 2 else np.ones_like(self.mean)
        variance = np.where(variance < 1e-12, 1.0, variance)
        self.offset = self.mean.astype(np.float32)
        self.scale = (1.0 / np.sqrt(variance + self.epsilon)).astype(np.float32)

    def __call__(self, observation: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Normalised copy of observations [..., O]."""
        normalized = observation - self.offset
        normalized *= self.scale
        return np.clip(normalized, -self.clip, self.clip, out=normalized)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and lists."""
        return {"count": self.count, "mean": self.mean.tolist(), "squares": self.squares.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict` exactly."""
        self.count = float(state["count"])
        self.mean = np.array(state["mean"])
        self.squares = np.array(state["squares"])
        self._refresh()


class ReturnScale:
    """Scale that brings discounted returns to unit standard deviation, with a bound on the largest.

    scale = max(std(G), max|G| / bound), where G_t = discount * G_{t-1} + r_t is tracked along the collected steps and
    its statistics run over all of them (as in SimbaV2, Lee et al. 2025, section 4.3). The critic learns r / scale.
    """

    def __init__(self, discount: float, bound: float = 5.0) -> None:
        self.discount = discount
        self.bound = bound
        self.running = 0.0
        self.count = 0.0
        self.mean = 0.0
        self.squares = 0.0
        self.largest = 0.0

    def update(self, reward: float, ended: bool) -> None:
        """Add one step's reward; `ended` is True on the last step of an episode."""
        self.running = self.discount * self.running + reward
        self.add(self.running)
        if ended:
            self.running = 0.0

    def add(self, discounted_return: float) -> None:
        """Add one G_t. For steps of several environments, whose sums are tracked elsewhere, in place of `update`."""
        self.count += 1.0
        delta = discounted_return - self.mean
        self.mean += delta / self.count
        self.squares += delta * (discounted_return - self.mean)
        self.largest = max(self.largest, abs(discounted_return))

    @property
    def scale(self) -> float:
        """Positive divisor of rewards; 1 until something was seen."""
        if self.count < 2:
            return 1.0
        return max((self.squares / self.count) ** 0.5, self.largest / self.bound, 1e-6)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {key: getattr(self, key) for key in ("running", "count", "mean", "squares", "largest")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict` exactly."""
        for key, value in state.items():
            setattr(self, key, float(value))
