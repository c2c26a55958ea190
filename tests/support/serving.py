"""Policy servers for tests: in a thread of this process, or as the real command in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from deploy.registry import PolicyRegistry
from deploy.server import PolicyServer, ServerConfig

ANY_PORT = "tcp://127.0.0.1:*"
READY = re.compile(r"^mpo-robot serve: ready on (\S+)$")


class ServerThread:
    """A `PolicyServer` on a free port, running in a thread while the context is open."""

    def __init__(self, policy: str | Path, **settings: Any) -> None:
        self.registry = PolicyRegistry(Path(policy).with_name(f"{Path(policy).name}.versions"))
        self.registry.publish(policy)
        settings.setdefault("endpoint", ANY_PORT)
        settings.setdefault("registry_poll_s", 60.0)  # swaps in tests come from BeginEpisode alone
        self.server = PolicyServer(self.registry, ServerConfig(**settings))
        self.endpoint = self.server.endpoint
        self._thread = threading.Thread(target=self.server.serve_forever)

    def __enter__(self) -> ServerThread:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.stop()
        self._thread.join()


class ServerProcess:
    """`mpo-robot serve POLICY ...` in its own process; `endpoint` is known once the constructor returns."""

    def __init__(self, policy: str | Path, *arguments: str, endpoint: str = ANY_PORT) -> None:
        command = [sys.executable, "-m", "mpo_robot.cli.main", "serve", str(policy), "--endpoint", endpoint, *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.output: list[str] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line.rstrip())
            if match := READY.match(line.rstrip()):
                self.endpoint = match.group(1)
                return
        self.process.wait()
        self.process.stdout.close()
        raise RuntimeError("the server did not start:\n" + "\n".join(self.output))

    def finish(self) -> int:
        """Wait for the end of the process, collect the rest of its output, and return its exit code."""
        rest, _ = self.process.communicate(timeout=30)
        self.output.extend(rest.splitlines())
        return self.process.returncode

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        if self.process.stdout is not None and not self.process.stdout.closed:
            self.process.communicate()
