"""Who may connect: loopback by default, CURVE keys with an allow-list everywhere else. See docs/security.md."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

import zmq

from deploy.allow_list import AllowList
from deploy.key_files import load_public, load_secret
from deploy.trusted_files import require_trusted
from deploy.zap import DOMAIN, KeyChecker
from mpo_robot.errors import ConfigError


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


LAST_PORT = 65535  # of TCP and UDP; ZeroMQ takes larger ones modulo 65536


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
    if port != "*" and not (port.isascii() and port.isdigit() and int(port) <= LAST_PORT):
        raise ConfigError(f"endpoint {endpoint!r}: the port must be a number of at most {LAST_PORT}, got {port!r}")
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


def secure_server(socket: zmq.Socket[bytes], security: ServerSecurity, allowed: AllowList) -> KeyChecker:
    """Turn on CURVE on a socket before it is bound; call `stop()` of the result when done.

    Raises:
        ConfigError: keys that are missing, malformed, readable by others, or an allow-list that is not usable.
    """
    public, secret = load_secret(security.secret_key)
    allowed.require_usable()
    allowed.refresh()
    socket.curve_publickey, socket.curve_secretkey = public, secret
    socket.curve_server = True
    # Without these two, ZeroMQ lets everybody in when nobody answers its question who may.
    socket.zap_domain = DOMAIN.encode()
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    return KeyChecker(socket.context, allowed)


def secure_client(socket: zmq.Socket[bytes], security: ClientSecurity) -> None:
    """Turn on CURVE on a socket before it is connected.

    Raises:
        ConfigError: keys that are missing, malformed or readable by others, or a server's key that others can change:
            whoever does decides which server it is.
    """
    public, secret = load_secret(security.secret_key)
    socket.curve_publickey, socket.curve_secretkey = public, secret
    server_key = load_public(security.server_key)
    require_trusted(security.server_key)
    socket.curve_serverkey = server_key
