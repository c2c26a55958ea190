"""Atari 2600 games of the Arcade Learning Environment: `ale:Pong`. Needs the extra `atari`; ale-py brings the ROMs.

Preprocessing of Mnih et al. 2015 with the protocol of Machado et al. 2018: grey frames of 84 x 84, each action held for
four frames of which the last two are max-pooled, the last four results stacked, sticky actions, whole games.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpo_robot.errors import ConfigError
from mpo_robot.specs import TermSpec
from mpo_robot.types import FloatArray, StepResult
from sim.config import AtariConfig
from sim.discrete.game import Game

SIDE = 84
_FRAMES_PER_SECOND = 60
_FRAME_LIMIT = 108_000  # half an hour of play


def rom_names() -> dict[str, Path]:
    """The games that ale-py has a ROM of, as `ms_pacman`.

    Raises:
        ConfigError: ale-py is not installed.
    """
    try:
        from ale_py import roms
    except ImportError as error:
        raise ConfigError("Atari games need ale-py: pip install 'mpo-robot[atari]'") from error
    found = {name: roms.get_rom_path(name) for name in roms.get_all_rom_ids()}
    return {name: Path(path) for name, path in found.items() if path is not None}


class AtariGame(Game):
    """One game. Observations are grey levels from 0 to 255, oldest frame first."""

    def __init__(self, rom: Path, config: AtariConfig):
        import ale_py

        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._ale_py, self._rom, self._config = ale_py, rom, config
        self._ale = ale_py.ALEInterface()
        # Sticky actions are made here: ALE does not save the action that it would repeat.
        self._ale.setFloat("repeat_action_probability", 0.0)
        self._ale.setInt("random_seed", 0)
        self._ale.loadROM(rom)
        full = config.full_action_space
        self._actions = self._ale.getLegalActionSet() if full else self._ale.getMinimalActionSet()
        self.num_actions = len(self._actions)
        self.observation_terms = tuple(
            TermSpec(f"frame_{index}", SIDE * SIDE, "grey level") for index in range(config.frame_stack)
        )
        self.control_dt = config.frame_skip / _FRAMES_PER_SECOND
        self.episode_steps = _FRAME_LIMIT // config.frame_skip
        height, width = self._ale.getScreenDims()
        self._rows, self._columns = _taps(area_weights(height)), _taps(area_weights(width))
        self._frames = np.zeros((config.frame_stack, SIDE, SIDE), np.uint8)
        self._lives = 0
        self._held = 0  # action of the newest frame, by index; 0 does nothing
        self._rng = np.random.default_rng()

    def seed(self, seed: int) -> None:
        """Seed of the sticky actions, the only randomness."""
        self._rng = np.random.default_rng(seed)

    def reset(self) -> tuple[FloatArray, dict[str, Any]]:
        """A new game; its first frame fills the stack."""
        self._ale.reset_game()
        self._lives, self._held = self._ale.lives(), 0
        self._frames[:] = self._shrunk(self._ale.getScreenGrayscale())
        return self._observation(), {}

    def step(self, action: int) -> StepResult:
        """Hold the action for `frame_skip` frames. `info["score"]` is the reward before clipping."""
        score, screen = 0.0, None
        for frame in range(self._config.frame_skip):
            if self._rng.random() >= self._config.sticky_actions:
                self._held = action
            score += self._ale.act(self._actions[self._held])
            if frame >= self._config.frame_skip - 2:
                newest = self._ale.getScreenGrayscale()
                screen = newest if screen is None else np.maximum(screen, newest)
            if self._ale.game_over(with_truncation=False):
                break
        if screen is None:  # the game ended before the last two frames
            screen = self._ale.getScreenGrayscale()
        self._frames[:-1] = self._frames[1:]
        self._frames[-1] = self._shrunk(screen)
        lives, before = self._ale.lives(), self._lives
        self._lives = lives
        terminated = bool(self._ale.game_over(with_truncation=False))
        terminated = terminated or (self._config.life_loss_terminates and lives < before)
        reward = float(np.sign(score)) if self._config.clip_rewards else score
        return StepResult(self._observation(), reward, terminated, False, {"score": score})

    def _shrunk(self, screen: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Mean grey level of each of the 84 x 84 areas."""
        # A few taps per pixel instead of a matrix product, which would wake the threads of NumPy's BLAS at every step.
        (rows, row_weights), (columns, column_weights) = self._rows, self._columns
        narrow = (screen[rows] * row_weights[:, :, None]).sum(axis=1)  # [84, width]
        small = (narrow[:, columns] * column_weights).sum(axis=2)
        return np.rint(small).astype(np.uint8)

    def _observation(self) -> FloatArray:
        return self._frames.astype(np.float32).ravel()

    def get_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """ALE's own state, the stacked frames, and what makes actions sticky."""
        state = self._ale.cloneState(include_rng=True).serialize()
        arrays = {"ale": np.frombuffer(state, np.uint8), "frames": self._frames.copy()}
        return {"lives": self._lives, "held": self._held, "random": self._rng.bit_generator.state}, arrays

    def set_state(self, values: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Inverse of `get_state`."""
        self._ale.restoreState(self._ale_py.ALEState(arrays["ale"].tobytes()))
        self._frames[:] = arrays["frames"]
        self._lives, self._held = int(values["lives"]), int(values["held"])
        self._rng.bit_generator.state = values["random"]


def area_weights(size: int) -> FloatArray:
    """[84, size] weights with which each of 84 equal intervals averages the pixels it covers."""
    edges = np.linspace(0.0, size, SIDE + 1)
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.maximum(overlap, 0.0) * (SIDE / size)).astype(np.float32)


def _taps(weights: FloatArray) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Indices and values, each [84, taps], of the non-zero weights [84, size]; rows with fewer get zeros."""
    taps = int((weights > 0).sum(axis=1).max())
    index = np.argsort(-weights, axis=1, kind="stable")[:, :taps]
    return index, np.take_along_axis(weights, index, axis=1)
