"""`mpo-robot serve --dashboard` in its own process, a robot's e-stop in this one, and requests to the page."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from deploy.registry import PolicyRegistry
from tests.support.onnx_files import small_spec, write_linear_policy
from tests.support.serving import ServerProcess
from tests.support.stoppable import How, StoppableRobot

SPEC = small_spec()


class DashboardServer:
    """A policy server with two versions in its registry, its page, and a robot that can be stopped.

    Attributes:
        url: Of the page, with the token.
        old, new: Versions; `new` is in force.
        estop: The robot's.
        registry: Of the server.
        server: Its process.
    """

    def __init__(self, directory: Path, robot: str = "arm", *arguments: str, stop: How = "works") -> None:
        policy = write_linear_policy(directory / "policy.onnx", SPEC)
        self.registry = PolicyRegistry(directory / "policy.onnx.versions")
        self.old = self.registry.publish(policy)
        self.new = self.registry.publish(write_linear_policy(directory / "new.onnx", SPEC, bias=0.5))
        self._robot = StoppableRobot(stop).__enter__()
        self.estop, self._topic = self._robot.estop, self._robot.topic
        config = directory / "server.yaml"
        config.write_text(yaml.safe_dump({"dashboard": {"robots": {robot: self._topic.endpoint}}}))
        try:
            self.server = ServerProcess(policy, "--config", str(config), *arguments, "--dashboard", "0")
        except BaseException:
            self._robot.__exit__(None, None, None)
            raise
        (line,) = [line for line in self.server.output if line.startswith("dashboard ")]
        self.url = line.removeprefix("dashboard ")
        base, _, self.token = self.url.partition("#")
        self.host = base.removeprefix("http://").rstrip("/")

    def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str | None] | None = None
    ) -> tuple[int, Any]:
        """Status and body, as JSON if it is; a request as the page makes it, with changes to its headers."""
        given: dict[str, str | None] = {"Authorization": f"Bearer {self.token}", "Host": self.host}
        if method == "POST":
            given |= {"Origin": f"http://{self.host}", "Content-Type": "application/json"}
        given |= headers or {}
        connection = http.client.HTTPConnection(self.host, timeout=60)
        try:
            connection.putrequest(method, path, skip_host=True)
            data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
            for name, value in {**given, "Content-Length": str(len(data))}.items():
                if value is not None:
                    connection.putheader(name, value)
            connection.endheaders(data)
            reply = connection.getresponse()
            content = reply.read()
        finally:
            connection.close()
        is_json = reply.headers.get_content_type() == "application/json"
        return reply.status, json.loads(content) if is_json else content.decode()

    def state(self) -> Any:
        """What the page is told."""
        status, state = self.request("GET", "/api/state")
        assert status == 200, state
        return state

    def page_process(self) -> int:
        """Process id of the page."""
        pid = self.server.process.pid
        (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(child)

    def __enter__(self) -> DashboardServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.__exit__(kind, error, trace)
        self._robot.__exit__(kind, error, trace)
