"""`ask_server`: one operator's command to a running policy server."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from deploy import protocol
from deploy.client_channel import RESEND_NS
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
    expect: str = "",
    security: ClientSecurity | None = None,
    token: str = "",
    timeout_s: float = 5.0,
) -> dict[str, Any]:
    """Have one of `deploy.operations.COMMANDS` carried out and return the state of the registry after it.

    A change is asked for with the state that it was decided on, so that it is made once at most: it is sent again until
    an answer comes, and the same call may be repeated with the `expect` that the error names.

    Args:
        endpoint: Of the server.
        command: What to do.
        reason: For the audit.
        expect: `state` of an earlier answer; empty: whatever the server says now.
        security: The operator's key and the server's, off loopback.
        token: Of the server's user, on loopback without keys.
        timeout_s: For all of it.

    Raises:
        ConfigError: malformed endpoint, or keys that are missing or cannot be read.
        OperatorError: refused, or no answer.
    """
    deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
    link = ClientLink(endpoint, security, time.monotonic_ns)
    try:
        now = _ask(link, endpoint, deadline_ns, "status", token)
        if command == "status":
            return now
        if "state" not in now:
            raise OperatorError(f"the server at {endpoint} is older than this program: use the program of its version")
        expect = expect or now["state"]
        return _ask(link, endpoint, deadline_ns, command, token, reason, expect)
    except ProtocolError as error:
        raise OperatorError(f"the server at {endpoint} answered with something else: {error}") from error
    finally:
        link.close()


def _ask(
    link: ClientLink,
    endpoint: str,
    deadline_ns: int,
    command: str,
    token: str,
    reason: str = "",
    expect: str = "",
) -> dict[str, Any]:
    """Send a command until it is answered."""
    number = secrets.randbits(40) + 1
    was_sent = False
    while time.monotonic_ns() < deadline_ns:
        header = protocol.header(_NO_SPEC, number, time.monotonic_ns())
        if not link.send(Operate(**header, command=command, token=token, reason=reason[:256], expect=expect)):
            link.wait_writable(time.monotonic_ns() + _WRITABLE_WAIT_NS)
            continue
        was_sent = True
        until_ns = min(deadline_ns, time.monotonic_ns() + RESEND_NS)
        while (frame := link.receive(until_ns)) is not None:
            reply = protocol.decode(frame)
            # An error about a frame that was not even read has no number: a server that knows no operators says that.
            if reply.request_id in (number, protocol.NO_REQUEST):
                return _result(reply)
    if not was_sent and not expect:
        keys = "does not allow this key" if link.secure else "wants keys: --secret-key and --server-key"
        raise OperatorError(f"no policy server at {endpoint}, or it {keys}")
    again = f"; repeat it with --expect {expect}, and it is done once at most" if expect else ""
    raise OperatorError(f"no answer from {endpoint} to {command!r}{again}")


def _result(reply: protocol.AnyMessage) -> dict[str, Any]:
    if isinstance(reply, Error):
        raise OperatorError(f"{reply.text} [{reply.code}]")
    if not isinstance(reply, Operated):
        raise OperatorError(f"the server answered with {type(reply).__name__}")
    return json.loads(reply.state_json)
