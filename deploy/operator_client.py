"""`ask_server`: one operator's command to a running policy server."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from deploy import protocol
from deploy.link import ClientLink
from deploy.protocol import Error, Operate, Operated
from deploy.security import ClientSecurity
from mpo_robot.errors import MpoRobotError, ProtocolError

_NO_SPEC = "0" * 64  # an operator has no robot
_WRITABLE_WAIT_NS = 20_000_000


class OperatorError(MpoRobotError):
    """The server refused an operator's command, or did not answer."""


def ask_server(
    endpoint: str,
    command: str,
    *,
    reason: str = "",
    security: ClientSecurity | None = None,
    token: str = "",
    timeout_s: float = 5.0,
) -> dict[str, Any]:
    """Send one of `deploy.operations.COMMANDS` and return the state of the registry after it.

    The command is sent once: if no answer comes, it may have been carried out.

    Args:
        endpoint: Of the server.
        command: What to do.
        reason: For the audit.
        security: The operator's key and the server's, off loopback.
        token: Of the server's user, on loopback without keys.
        timeout_s: For all of it.

    Raises:
        ConfigError: malformed endpoint, or keys that are missing or cannot be read.
        OperatorError: refused, or no answer.
    """
    deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
    number = secrets.randbits(40) + 1
    link = ClientLink(endpoint, security, time.monotonic_ns)
    try:
        header = protocol.header(_NO_SPEC, number, time.monotonic_ns())
        message = Operate(**header, command=command, reason=reason[:256], token=token)
        while not link.send(message):
            if time.monotonic_ns() > deadline_ns:
                raise OperatorError(f"no policy server at {endpoint}, or it does not allow this key")
            link.wait_writable(time.monotonic_ns() + _WRITABLE_WAIT_NS)
        while (frame := link.receive(deadline_ns)) is not None:
            reply = protocol.decode(frame)
            # An error about a frame that was not even read has no number: a server that knows no operators says that.
            if reply.request_id in (number, protocol.NO_REQUEST):
                return _result(reply)
    except ProtocolError as error:
        raise OperatorError(f"the server at {endpoint} answered with something else: {error}") from error
    finally:
        link.close()
    raise OperatorError(f"no answer from {endpoint}: look at the registry before you repeat {command!r}")


def _result(reply: protocol.AnyMessage) -> dict[str, Any]:
    if isinstance(reply, Error):
        raise OperatorError(f"{reply.text} [{reply.code}]")
    if not isinstance(reply, Operated):
        raise OperatorError(f"the server answered with {type(reply).__name__}")
    return json.loads(reply.state_json)
