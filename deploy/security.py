"""Who may connect: loopback by default, CURVE keys with an allow-list everywhere else.

`python -m deploy.security DIRECTORY NAME` makes a key pair: NAME.key_secret stays on its machine, NAME.key (public)
goes to the other side.
"""

from __future__ import annotations

import ipaddress
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator

from mpo_robot.errors import ConfigError


@dataclass(frozen=True)
class ServerSecurity:
    """CURVE settings of a server.

    Attributes:
        secret_key: The server's own NAME.key_secret file.
        allow: Directory with the public key (NAME.key) of every client that may connect. Read at start.
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
        "`python -m deploy.security keys NAME`, then give the server --curve-secret-key and --curve-allow and the "
        "robot its own secret key and the server's public key. Or use tcp://127.0.0.1:PORT."
    )


def secure_server(socket: zmq.Socket[bytes], security: ServerSecurity) -> ThreadAuthenticator:
    """Turn on CURVE on a socket before it is bound; call `stop()` of the result when done.

    Raises:
        ConfigError: keys that are missing, malformed, readable by others, or an empty allow-list.
    """
    public, secret = _load_secret(security.secret_key)
    if not security.allow.is_dir() or not any(security.allow.glob("*.key")):
        raise ConfigError(f"allow-list {security.allow} is not a directory with public keys (NAME.key) in it")
    for path in sorted(security.allow.glob("*.key")):
        _load(path)
    authenticator = ThreadAuthenticator(socket.context)
    authenticator.start()
    authenticator.configure_curve(domain="*", location=str(security.allow))
    socket.curve_publickey, socket.curve_secretkey = public, secret
    socket.curve_server = True
    return authenticator


def secure_client(socket: zmq.Socket[bytes], security: ClientSecurity) -> None:
    """Turn on CURVE on a socket before it is connected.

    Raises:
        ConfigError: keys that are missing, malformed or readable by others.
    """
    public, secret = _load_secret(security.secret_key)
    socket.curve_publickey, socket.curve_secretkey = public, secret
    socket.curve_serverkey = _load(security.server_key)[0]


def create_keys(directory: str | Path, name: str) -> tuple[Path, Path]:
    """Make NAME.key and NAME.key_secret (readable by the owner only) and return both paths.

    Raises:
        ConfigError: one of them exists already, or the directory cannot be written.
    """
    folder = Path(directory)
    paths = folder / f"{name}.key", folder / f"{name}.key_secret"
    for path in paths:
        if path.exists():
            raise ConfigError(f"{path} exists already: choose another name, or remove it if no machine uses it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths[1].touch(mode=0o600)  # before the secret is in it
        zmq.auth.create_certificates(folder, name)
    except OSError as error:
        raise ConfigError(f"cannot write keys to {folder}: {error.strerror}") from error
    return paths


def _load_secret(path: Path) -> tuple[bytes, bytes]:
    public, secret = _load(path)
    if secret is None:
        raise ConfigError(f"{path} holds no secret key: give the NAME.key_secret file")
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"secret key {path} can be read by other users: run `chmod 600 {path}`")
    return public, secret


def _load(path: Path) -> tuple[bytes, bytes | None]:
    try:
        return zmq.auth.load_certificate(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read key file {path}: {error}") from error


def main(arguments: list[str]) -> int:
    """Command line of `python -m deploy.security`."""
    if len(arguments) != 2:
        print("usage: python -m deploy.security DIRECTORY NAME", file=sys.stderr)
        return 2
    try:
        public, secret = create_keys(*arguments)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"public key {public} (copy to the other side)\nsecret key {secret} (never leaves this machine)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
