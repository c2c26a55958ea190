"""Where the fault of a robot is remembered: a place that follows from the robot, not from how the program is started.

Neither the log directory nor the working directory matter, so that no other option and no other folder gets a robot in
FAULT to move. A file is named NAME@HARDWARE.fault, and any file with the same name *or* the same hardware means
the robot.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.fault_latch import FaultLatch, RobotFaultError

SUFFIX = ".fault"
# Options of a driver that say which hardware it drives.
DEVICE_OPTIONS = (
    "port", "device", "serial", "serial_port", "serial_number", "address", "host", "hostname", "ip", "ip_address",
    "robot_ip", "endpoint", "url", "uri", "interface", "channel", "bus", "can_id", "device_id",
)  # fmt: skip


def state_directory() -> Path:
    """`$XDG_STATE_HOME/mpo_robot`, or `~/.local/state/mpo_robot`; always absolute.

    Raises:
        RobotFaultError: the user has no home directory.
    """
    base = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not base.is_absolute():
        home = Path(os.path.expanduser("~"))
        if not home.is_absolute():
            raise RobotFaultError("no place to remember faults in: set XDG_STATE_HOME, HOME or estop.latch")
        base = home / ".local" / "state"
    return base / "mpo_robot"


def hardware_of(module: str, options: Mapping[str, Any]) -> str:
    """Which hardware a driver drives: its device options, those nearest the top; the driver itself if it has none.

    The values count as they are written: the same device by another path is another text, but /dev/serial/by-id/...
    stays what it is when the plug is pulled, and so must a fault.
    """
    level: list[Mapping[str, Any]] = [options]
    while level:
        found = [f"{key}={item[key]}" for item in level for key in DEVICE_OPTIONS if _names_a_device(item.get(key))]
        if found:
            return " ".join(found)
        level = [value for item in level for value in item.values() if isinstance(value, Mapping)]
    return module


def robot_latch(name: str, module: str, options: Mapping[str, Any], log_directory: str) -> FaultLatch:
    """The latch of a robot with a driver. Also honours what earlier versions left in the log directory."""
    directory, hardware = state_directory(), hardware_of(module, options)
    text = re.sub(r"[^A-Za-z0-9._-]+", "-", hardware).strip("-.")[-40:]
    key = f"{text}-{hashlib.sha256(hardware.encode()).hexdigest()[:8]}"

    def others() -> list[Path]:
        same = [*directory.glob(f"{name}@*{SUFFIX}"), *directory.glob(f"*@{key}{SUFFIX}")]
        return [*sorted(same), Path(log_directory or ".") / f"{name}{SUFFIX}"]

    return FaultLatch(directory / f"{name}@{key}{SUFFIX}", others)


def named_latch(file: str) -> FaultLatch:
    """The latch in the file that `estop.latch` names; a relative path counts from `state_directory`."""
    path = Path(file).expanduser()
    if path.is_absolute():
        return FaultLatch(path)
    return FaultLatch(state_directory() / path, lambda: [path])  # where older versions kept it


def _names_a_device(value: Any) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool) and value != ""
