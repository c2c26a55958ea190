"""Checkpoints: a directory per step, visible only when complete. No pickled code: torch loads with `weights_only`."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpo_robot.errors import ConfigError, MpoRobotError, first_line

STATE_FILE = "state.pt"
REPLAY_FILE = "replay.npz"
_log = logging.getLogger(__name__)


def save_checkpoint(
    directory: Path, step: int, state: dict[str, Any], save_replay: Callable[[Path], None], keep: int = 2
) -> Path:
    """Write `directory/step_<step>` and delete all but the newest `keep` checkpoints.

    The files go to a temporary directory that is renamed at the end, so a crash leaves the earlier checkpoints whole.
    A second checkpoint of one step (logs were ingested without learning) gets a number behind its name: it stands
    beside the first until it is complete. Later checkpoints than this one are those that `load_checkpoint` could not
    read and passed over: they are renamed to `unreadable_...`, so that they do not come back, and never deleted.
    """
    directory.mkdir(parents=True, exist_ok=True)
    final = directory / f"step_{step:012d}"
    same_step = [path for path in list_checkpoints(directory) if path.name.startswith(final.name)]
    if same_step:
        number = int(same_step[-1].name[len(final.name) + 1 :] or 0) + 1
        final = directory / f"{final.name}_{number:06d}"
    temporary = directory / f".tmp_{final.name}"
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir()
    torch.save(state, temporary / STATE_FILE)
    save_replay(temporary / REPLAY_FILE)
    for file in temporary.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    if final.exists():  # what is left of one that was being deleted
        shutil.rmtree(final)
    os.replace(temporary, final)
    found = list_checkpoints(directory)
    own = found.index(final)
    for later in found[own + 1 :]:
        os.replace(later, directory / f"unreadable_{later.name}_{time.time_ns()}")
    for old in found[: own + 1][:-keep]:
        shutil.rmtree(old)
    return final


def list_checkpoints(directory: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    whole = (
        path for path in directory.glob("step_*") if (path / STATE_FILE).exists() and (path / REPLAY_FILE).exists()
    )
    return sorted(whole)


def load_checkpoint(directory: Path, load_replay: Callable[[Path], None] | None = None) -> tuple[dict[str, Any], Path]:
    """State of the newest readable checkpoint and the path of its replay file.

    A damaged one is passed over with a warning that names it: the one before is kept for this.

    Args:
        load_replay: Reads the replay file; if it fails, the checkpoint counts as damaged. None leaves the replay alone.

    Raises:
        ConfigError: there is no checkpoint, or none can be read.
        MpoRobotError: `load_replay` says that the replay does not fit the run. An earlier one would not either.
    """
    found = list_checkpoints(directory)
    if not found:
        raise ConfigError(
            f"no checkpoint in {directory}: the run has not saved one yet (one is saved at the end of the warm-up). "
            "If it was stopped before, train in the same folder again without --resume"
        )
    problems: list[str] = []
    for path in reversed(found):
        try:
            state = read_state(path / STATE_FILE)
            if load_replay is not None:
                load_replay(path / REPLAY_FILE)
        except MpoRobotError:
            raise
        except Exception as error:  # torch and NumPy raise many types for a damaged file
            problems.append(f"{path} ({first_line(error)})")
            continue
        if problems:
            _log.warning("cannot read checkpoint %s: going on from %s instead", ", ".join(problems), path.name)
        return state, path / REPLAY_FILE
    raise ConfigError(
        f"cannot read checkpoint {', nor '.join(problems)}. There is no other: remove or move "
        f"{'this folder' if len(problems) == 1 else 'these folders'} to begin anew"
    )


def read_state(path: Path) -> dict[str, Any]:
    """What `torch.save` wrote; anything but tensors and plain values is refused.

    Raises:
        Exception: of many types, for a damaged file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what it says of foreign files is said below
            return torch.load(path, weights_only=True)
    except pickle.UnpicklingError as error:  # its text is advice on how to run the code inside
        raise ValueError("damaged, or not written by this program") from error


def bytes_to_tensor(content: bytes) -> torch.Tensor:
    """Bytes, an environment's state for instance, in a form that `weights_only` loads."""
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy())


def bytes_from_tensor(tensor: torch.Tensor) -> bytes:
    """Inverse of `bytes_to_tensor`."""
    return tensor.numpy().tobytes()


def rng_to_json(rng: np.random.Generator) -> str:
    """State of a NumPy generator as text."""
    return json.dumps(rng.bit_generator.state)


def rng_from_json(text: str) -> np.random.Generator:
    """Inverse of `rng_to_json` (PCG64)."""
    rng = np.random.default_rng()
    rng.bit_generator.state = json.loads(text)
    return rng
