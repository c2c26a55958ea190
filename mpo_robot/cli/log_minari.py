"""Episode logs as a Minari dataset (farama.org), written by Minari itself."""

from __future__ import annotations

import importlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from mpo_robot.cli.log_export import Recording
from mpo_robot.episode import Source, StepRecord
from mpo_robot.errors import ConfigError
from mpo_robot.specs import PolicySpec, TermSpec

SOURCES = tuple(source.value for source in Source)  # `infos["source"]` is an index into this
_VECTORS = ("policy_action", "command", "applied_command")
_SCALARS = ("behavior_log_prob", "step_index", "latency_ns", "monotonic_ns", "deadline_missed", "action_modified")


def write_minari(recording: Recording, directory: Path, name: str) -> Path:
    """Write `directory/name`, one Minari episode for each unbroken run; returns that folder.

    `directory` takes the place of Minari's own: `MINARI_DATASETS_PATH=directory` finds the dataset again.

    Raises:
        ConfigError: Minari is not installed, the dataset exists, or Minari refuses it.
    """
    try:
        minari = importlib.import_module("minari")
        buffers = importlib.import_module("minari.data_collector.episode_buffer")
        importlib.import_module("h5py")
    except ImportError as error:
        raise ConfigError(f"--to minari: no {error.name}: pip install 'mpo-robot[minari]'") from error
    spaces = importlib.import_module("gymnasium.spaces")
    target = directory / name
    if target.exists():
        raise ConfigError(f"{target} exists already; choose another --name or remove it")
    spec, versions = recording.spec, _versions(recording)
    low, high = _bounds(spec.observation)
    observations = spaces.Box(low, high, dtype=np.float32)
    if spec.num_actions is None:
        actions = spaces.Box(-1.0, 1.0, (spec.action_size,), np.float32)
    else:
        actions = spaces.Box(spec.command_low, spec.command_high, dtype=np.float32)
    episodes = [buffers.EpisodeBuffer(id=index, **_arrays(run, versions)) for index, run in enumerate(recording.runs)]
    kept = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(directory.resolve())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of author and code link not being given
            dataset = minari.create_dataset_from_buffers(
                name,
                episodes,
                observation_space=observations,
                action_space=actions,
                description=f"Episodes of robot {recording.robot!r}, recorded by mpo-robot",
                data_format="hdf5",
            )
            dataset.storage.update_metadata({"mpo_robot": _metadata(spec, versions)})
    except (OSError, ValueError) as error:
        raise ConfigError(f"Minari does not take {name!r}: {error}") from error
    finally:
        if kept is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = kept
    return target


def _arrays(run: list[StepRecord], versions: list[str]) -> dict[str, Any]:
    """Observations [T + 1, O], actions [T, A] normalized as executed, rewards and ends [T], infos [T + 1]."""
    last = run[-1]
    infos: dict[str, Any] = {
        field: _extended(np.stack([getattr(record, field) for record in run])) for field in _VECTORS
    }
    infos |= {field: _extended(np.array([getattr(record, field) for record in run])) for field in _SCALARS}
    infos["source"] = _extended(np.array([SOURCES.index(record.source.value) for record in run]))
    infos["policy_version"] = _extended(np.array([versions.index(record.policy_version) for record in run]))
    return {
        "observations": np.stack([*(record.observation for record in run), last.next_observation]),
        "actions": np.stack([record.sent_action for record in run]),
        "rewards": np.array([record.reward for record in run], np.float64),
        "terminations": np.array([record.terminated for record in run]),
        # A run that a gap or a crash has cut off ends in a truncation, for it did not end the task.
        "truncations": np.array([*(record.truncated for record in run[:-1]), not last.terminated]),
        "infos": infos,
    }


def _extended(values: np.ndarray) -> np.ndarray:
    """One row more, of NaN or zeros: Minari has an info for the final observation too."""
    fill = np.nan if np.issubdtype(values.dtype, np.floating) else 0
    return np.concatenate((values, np.full((1, *values.shape[1:]), fill, values.dtype)))


def _versions(recording: Recording) -> list[str]:
    return sorted({record.policy_version for run in recording.runs for record in run})


def _bounds(terms: tuple[TermSpec, ...]) -> tuple[np.ndarray, np.ndarray]:
    low = [bound for term in terms for bound in term.low or (-np.inf,) * term.size]
    high = [bound for term in terms for bound in term.high or (np.inf,) * term.size]
    return np.array(low, np.float32), np.array(high, np.float32)


def _metadata(spec: PolicySpec, versions: list[str]) -> str:
    content = {"spec": spec.to_dict(), "spec_hash": spec.spec_hash, "policy_versions": versions, "sources": SOURCES}
    return json.dumps(content)
