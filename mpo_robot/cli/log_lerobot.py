"""Episode logs as a LeRobotDataset v3 (Hugging Face), written by LeRobot itself."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from deploy.log_joints import scalar_names
from mpo_robot.cli.log_export import Recording
from mpo_robot.episode import StepRecord
from mpo_robot.errors import ConfigError
from mpo_robot.specs import PolicySpec

MISSING = """\
--to lerobot: no {name}. LeRobot 0.4 needs other versions of torch than a training does; give it an environment of its
own, where this command works too:
  python3 -m venv lerobot-env && lerobot-env/bin/pip install 'mpo-robot[lerobot]'
  lerobot-env/bin/mpo-robot log export LOG ... --to lerobot -o DIR"""


def write_lerobot(recording: Recording, directory: Path, name: str, task: str) -> Path:
    """Write the new folder `directory`, one episode for each unbroken run; returns the folder.

    Raises:
        ConfigError: LeRobot is not installed, the folder exists, or the rate is no whole number of frames per second.
    """
    try:
        module = importlib.import_module("lerobot.datasets.lerobot_dataset")
    except ImportError as error:
        raise ConfigError(MISSING.format(name=error.name)) from error
    if directory.exists():
        raise ConfigError(f"{directory} exists already; LeRobot makes the folder itself")
    spec = recording.spec
    with_reward = not all(np.isnan(record.reward) for run in recording.runs for record in run)
    try:
        dataset = module.LeRobotDataset.create(
            repo_id=name,
            fps=frames_per_second(spec),
            features=features(spec, with_reward),
            root=directory,
            robot_type=recording.robot or "robot",
            use_videos=False,
        )
        for run in recording.runs:
            for index, record in enumerate(run):
                dataset.add_frame({**frame(record, index == len(run) - 1, with_reward), "task": task})
            dataset.save_episode()
        dataset.finalize()
    except OSError as error:
        raise ConfigError(f"cannot write {directory}: {error}") from error
    return directory


def frames_per_second(spec: PolicySpec) -> int:
    """Rate of the control loop, as LeRobot takes it.

    Raises:
        ConfigError: it is no whole number.
    """
    rate = 1 / spec.control_dt
    if abs(rate - round(rate)) > 1e-3 * rate or round(rate) < 1:
        raise ConfigError(f"LeRobot takes whole frames per second; control_dt {spec.control_dt:g} s is {rate:.4g} Hz")
    return round(rate)


def features(spec: PolicySpec, with_reward: bool) -> dict[str, dict[str, Any]]:
    """The columns beside those that LeRobot adds itself."""
    scalar: dict[str, Any] = {"shape": (1,), "names": None}
    return {
        "observation.state": {
            "dtype": "float32",
            "shape": (spec.observation_size,),
            "names": scalar_names(spec.observation),
        },
        "action": {"dtype": "float32", "shape": (spec.action_size,), "names": scalar_names(spec.command)},
        **({"next.reward": {"dtype": "float32", **scalar}} if with_reward else {}),
        "next.done": {"dtype": "bool", **scalar},
        "next.terminated": {"dtype": "bool", **scalar},
        "next.truncated": {"dtype": "bool", **scalar},
        "behavior_log_prob": {"dtype": "float32", **scalar},
        "trace_valid": {"dtype": "bool", **scalar},
        "deadline_missed": {"dtype": "bool", **scalar},
        "source": {"dtype": "string", **scalar},
        "policy_version": {"dtype": "string", **scalar},
    }


def frame(record: StepRecord, is_last: bool, with_reward: bool) -> dict[str, Any]:
    """One step. `action` is the command as executed, in the unit of the spec; `behavior_log_prob` is 0 where
    `trace_valid` says that it does not apply."""
    truncated = record.truncated or (is_last and not record.terminated)
    return {
        "observation.state": record.observation,
        "action": record.applied_command,
        **({"next.reward": np.array([record.reward], np.float32)} if with_reward else {}),
        "next.done": np.array([record.terminated or truncated]),
        "next.terminated": np.array([record.terminated]),
        "next.truncated": np.array([truncated]),
        "behavior_log_prob": np.array([record.behavior_log_prob if record.trace_valid else 0.0], np.float32),
        "trace_valid": np.array([record.trace_valid]),
        "deadline_missed": np.array([record.deadline_missed]),
        "source": record.source.value,
        "policy_version": record.policy_version,
    }
