"""`LogConfig`: the `log` section of a robot's YAML."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from deploy.log_joints import JointStatesConfig
from mpo_robot.errors import ConfigError

FsyncPolicy = Literal["step", "episode", "never"]


@dataclass(frozen=True)
class LogConfig:
    """How episodes are logged.

    Attributes:
        directory: Folder of the log files; made if missing. Empty: no logs.
        fsync: When data are forced to the disk: after every write, at the end of the episode, or never. Only matters
            for power cuts; `kill -9` never loses a written record.
        queue_size: Records that may wait for the writer thread before records are dropped (and counted).
        flush_interval_s: 0 writes each record as soon as the thread sees it. A positive value collects records for
            that long into one chunk: smaller files and less work at high rates, and at most that much lost in a crash.
        signals: Also write a `/signals` topic with the scalars by name, for plotting. Makes the file about twice as
            large.
        joint_states: Also write a `/joint_states` topic in the schema that Foxglove draws a robot model from.
        max_bytes: Go on in a new file (part) of the episode before one would become larger than this, its index at
            the end not counted; 0: no limit.
        max_seconds: Go on in a new file after this much time of the episode; 0: no limit.
        close_timeout_s: How long the end of an episode waits for a disk that hangs. The robot has stopped by then.
        folder_max_bytes: Before each episode, delete the oldest logs of `directory` until they take up no more than
            this; 0 deletes nothing.
        folder_delete: Which logs that may be: only those that `learn` or `ingest` has taken in, or any.
    """

    directory: str = "logs"
    fsync: FsyncPolicy = "episode"
    queue_size: int = 4096
    flush_interval_s: float = 0.0
    signals: bool = False
    joint_states: JointStatesConfig = field(default_factory=JointStatesConfig)
    max_bytes: int = 0
    max_seconds: float = 0.0
    close_timeout_s: float = 10.0
    folder_max_bytes: int = 0
    folder_delete: Literal["ingested", "any"] = "ingested"

    def __post_init__(self) -> None:
        if self.queue_size < 1:
            raise ConfigError(f"log.queue_size must be at least 1, got {self.queue_size}")
        for name in ("flush_interval_s", "max_bytes", "max_seconds", "folder_max_bytes"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ConfigError(f"log.{name} must not be negative, got {value}")
        if not 0 < self.close_timeout_s < math.inf:
            raise ConfigError(f"log.close_timeout_s must be a positive number of seconds, got {self.close_timeout_s}")
