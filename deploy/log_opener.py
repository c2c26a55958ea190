"""Open one log after the other in a folder, as a configuration says."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from deploy.log_config import LogConfig
from deploy.log_encoding import StepEncoder
from deploy.log_retention import prune_folder
from deploy.log_writer import EpisodeLogWriter
from mpo_robot.errors import ConfigError
from mpo_robot.specs import PolicySpec


def _on_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def log_opener(
    config: LogConfig, spec: PolicySpec, robot: str, say: Callable[[str], None] = _on_stderr
) -> Callable[[str], EpisodeLogWriter] | None:
    """What opens the log of an episode by its id; None if the configuration wants no logs.

    It is called before the robot moves, and makes room first (`folder_max_bytes`); what was deleted, or why the folder
    stays too large, goes to `say`.

    Raises:
        ConfigError: the directory cannot be made or written, or `joint_states` does not fit the spec.
    """
    if not config.directory:
        return None
    directory = Path(config.directory)
    StepEncoder(spec, config)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the log directory {directory}: {error.strerror}") from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ConfigError(f"the log directory {directory} cannot be written")

    def open_log(episode_id: str) -> EpisodeLogWriter:
        if config.folder_max_bytes:
            pruning = prune_folder(directory, config.folder_max_bytes, config.folder_delete)
            if pruning.deleted:
                names = ", ".join(path.name for path in pruning.deleted)
                say(f"note     deleted {names}: {pruning.freed_bytes:,} bytes of old logs")
            if pruning.problem:
                say(f"note     {pruning.problem}")
        return EpisodeLogWriter(directory, spec, episode_id, robot=robot, config=config)

    return open_log
