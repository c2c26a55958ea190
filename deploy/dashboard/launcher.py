"""The server's side of the operator's page: starts its process, feeds it, and outlives it.

The page is a process of its own, so that neither its work nor a browser that hangs can take the interpreter from the
thread that answers robots. All that thread does for it is a write of a few kilobytes that never waits.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import select
import subprocess
import sys
from pathlib import Path
from typing import IO, cast

import msgspec

from deploy.dashboard.config import DashboardConfig
from deploy.dashboard.pipe import FrameWriter
from mpo_robot.errors import ConfigError

_log = logging.getLogger(__name__)
_START_S = 120.0
_END_S = 5.0
# The child finds its modules where this process does, and not in whatever folder it was started in.
_PROGRAM = "import sys; sys.path[:] = {path!r}; from deploy.dashboard.process import main; main()"


class Dashboard:
    """The page's process. One thread.

    Attributes:
        url: Where the page is, with the token: whoever knows it can stop robots and roll back policies.
        process: The process.
    """

    def __init__(self, config: DashboardConfig, registry: Path) -> None:
        """Start it.

        Args:
            config: Its settings.
            registry: Directory of the server's policy registry.

        Raises:
            ConfigError: the extra `dashboard` is not installed, the port is taken, or the process does not start.
        """
        missing = [name for name in ("bottle", "waitress") if importlib.util.find_spec(name) is None]
        if missing:
            raise ConfigError(f"--dashboard needs {' and '.join(missing)}: pip install 'mpo-robot[dashboard]'")
        command = [sys.executable, "-c", _PROGRAM.format(path=sys.path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self._feed, self._answers = cast("IO[bytes]", self.process.stdin), cast("IO[bytes]", self.process.stdout)
        self._writer: FrameWriter | None = FrameWriter(self._feed.fileno())
        try:
            self.publish(msgspec.msgpack.encode({"config": config, "registry": str(registry)}, enc_hook=str))
            self.url = self._answer()
        except BaseException:
            self.close()
            raise

    def publish(self, snapshot: bytes) -> None:
        """Hand on a snapshot; it is dropped if the page's process is behind or gone. Never waits, never raises."""
        if self._writer is None:
            return
        try:
            self._writer.write(snapshot)
        except OSError:
            self._writer = None
            _log.error("the operator's page has ended; robots are served as before")

    def close(self) -> None:
        """End the process. May be called twice."""
        self._writer = None
        self._answers.close()
        with contextlib.suppress(OSError):
            self._feed.close()  # tells it to end
        try:
            self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Dashboard:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _answer(self) -> str:
        """The URL it comes up with."""
        line = b""
        if select.select([self._answers], [], [], _START_S)[0]:
            line = self._answers.readline()
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise ConfigError("the operator's page did not start; see the lines above") from error
        if "error" in answer:
            raise ConfigError(f"--dashboard: {answer['error']}")
        return answer["url"]
