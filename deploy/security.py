"""Who may connect: loopback by default, CURVE keys with an allow-list everywhere else. See docs/security.md."""

from __future__ import annotations

import ipaddress
import logging
from dataclasses import dataclass
from pathlib import Path

import zmq
from zmq.auth.thread import ThreadAuthenticator

from deploy.allow_list import AllowList
from deploy.key_files import load_public, load_secret
from mpo_robot.errors import ConfigError

_DOMAIN = "mpo_robot"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerSecurity:
    """CURVE settings of a server.

    Attributes:
        secret_key: The server's own NAME.key_secret file.
        allow: Directory with the public keys of those who may connect (`deploy.allow_list`), followed while it runs.
    """

    secret_key: Path
    allow: Path


@dataclass(frozen=True)
class ClientSecurity:
    """CURVE settings of a client.

    Attributes:
        secret_key: The client's own NAME.key_secret file.
        server_key: The server's public key file; a server with another key is not talked to.
    """

    secret_key: Path
    server_key: Path


def is_local(endpoint: str) -> bool:
    """Whether only this machine can reach an endpoint: ipc, or tcp on a loopback address. A wildcard is not local.

    Raises:
        ConfigError: neither `tcp://HOST:PORT` nor `ipc://PATH`.
    """
    transport, separator, address = endpoint.partition("://")
    host, colon, port = address.rpartition(":")
    if separator and transport == "ipc" and address:
        return True
    if not separator or transport != "tcp" or not colon or not host or not port:
        raise ConfigError(f"endpoint {endpoint!r} must look like tcp://127.0.0.1:5555 or ipc:///path/to/socket")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a wildcard, an interface or a host name
        return False


def require_safe(endpoint: str, security: ServerSecurity | ClientSecurity | None) -> None:
    """Refuse an endpoint that others can reach without keys.

    Raises:
        ConfigError: off loopback without security, or a malformed endpoint.
    """
    if is_local(endpoint) or security is not None:
        return
    raise ConfigError(
        f"endpoint {endpoint} is reachable from other machines, which needs CURVE keys on both sides: make them with "
        "`mpo-robot keys new`, then give the server --curve-secret-key and --curve-allow and the "
        "robot its own secret key and the server's public key. Or use tcp://127.0.0.1:PORT."
    )


class _KeyCheck:
    """Asked by the ZAP thread at every handshake; looks at the allow-list anew each time."""

    def __init__(self, allowed: AllowList) -> None:
        self._allowed = allowed

    def callback(self, domain: str, key: bytes) -> bool:
        try:
            self._allowed.refresh()
            return self._allowed.find(key.decode()) is not None
        except Exception:  # it must not end the ZAP thread
            _log.exception("a handshake was refused because the allow-list could not be read")
            return False


def secure_server(socket: zmq.Socket[bytes], security: ServerSecurity, allowed: AllowList) -> ThreadAuthenticator:
    """Turn on CURVE on a socket before it is bound; call `stop()` of the result when done.

    Raises:
        ConfigError: keys that are missing, malformed, readable by others, or an allow-list that is not usable.
    """
    public, secret = load_secret(security.secret_key)
    allowed.require_usable()
    allowed.refresh()
    authenticator = ThreadAuthenticator(socket.context)
    authenticator.start()
    authenticator.configure_curve_callback(domain=_DOMAIN, credentials_provider=_KeyCheck(allowed))
    socket.curve_publickey, socket.curve_secretkey = public, secret
    socket.curve_server = True
    # Without these two, ZeroMQ lets everybody in when nobody answers its question who may.
    socket.zap_domain = _DOMAIN.encode()
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    return authenticator


def secure_client(socket: zmq.Socket[bytes], security: ClientSecurity) -> None:
    """Turn on CURVE on a socket before it is connected.

    Raises:
        ConfigError: keys that are missing, malformed or readable by others.
    """
    public, secret = load_secret(security.secret_key)
    socket.curve_publickey, socket.curve_secretkey = public, secret
    socket.curve_serverkey = load_public(security.server_key)
