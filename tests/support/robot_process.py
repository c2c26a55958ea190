"""`mpo-robot run-robot` with the fake robot: its YAML, and the command in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]


def write_config(directory: Path, *, options: dict[str, Any] | None = None, **settings: Any) -> Path:
    """Robot YAML for the fake robot; its calls go to `directory/journal`, logs to `directory/logs`."""
    data = {
        "robot": {
            "kind": "module",
            "name": "fake",
            "module": "tests.support.fake_robot:make_robot",
            "options": {"journal": str(directory / "journal"), **(options or {})},
        },
        "log": {"directory": str(directory / "logs")},
        "seed": 0,
        **settings,
    }
    path = directory / "robot.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def journal(directory: Path) -> list[str]:
    """Calls the fake robot has had so far."""
    path = directory / "journal"
    return path.read_text().splitlines() if path.exists() else []


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Poll; a generous limit, because only a hang should fail."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.01)


class RobotProcess:
    """`run-robot --config CONFIG ...` in its own process, killed at the end of the context if still alive."""

    def __init__(self, config: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "mpo_robot.cli.main", "run-robot", "--config", str(config), *arguments]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def finish(self) -> tuple[int, str]:
        """Exit code and output."""
        output, _ = self.process.communicate(timeout=60)
        return self.process.returncode, output

    def __enter__(self) -> RobotProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        if self.process.stdout is not None and not self.process.stdout.closed:
            self.process.communicate()
