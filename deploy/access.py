"""`Access`: what a peer may do. Robots act; operators also change which policy is in force."""

from __future__ import annotations

import hmac
import secrets
from pathlib import Path
from typing import NamedTuple

from deploy.allow_list import AllowList, Role
from deploy.durable import replace_file
from deploy.key_files import require_private
from mpo_robot.errors import ConfigError

TOKEN_FILE = "operator.token"


class Peer(NamedTuple):
    """Who a message is from.

    Attributes:
        route: The connection's name in the server's socket. Its owner may have chosen it, so it proves nothing.
        key: The public key (Z85) that the connection proved to have; empty without CURVE.
    """

    route: bytes
    key: str = ""


class Access:
    """With CURVE the key decides; without, operators show a token that only the server's user can read.

    Args:
        allowed: The allow-list, if CURVE is on.
        token: Operators' token, if CURVE is off; empty: there are no operators.
    """

    def __init__(self, allowed: AllowList | None = None, token: str = "") -> None:
        self.allowed = allowed
        self._token = token.encode()

    def may_talk(self, peer: Peer) -> bool:
        """Whether a connected peer is still allowed."""
        return self.allowed is None or self.allowed.find(peer.key) is not None

    def operator(self, peer: Peer, token: str) -> str:
        """Name of an operator for the audit; empty: not an operator."""
        if self.allowed is not None:
            entry = self.allowed.find(peer.key)
            return f"operator {entry.name}" if entry is not None and entry.role is Role.OPERATOR else ""
        is_right = bool(self._token) and hmac.compare_digest(self._token, token.encode("utf-8", "replace"))
        return "operator with the token of the server's user" if is_right else ""


def read_or_make_token(directory: Path) -> str:
    """The operators' token in `directory`/operator.token, made with mode 0600 if there is none.

    Raises:
        ConfigError: it cannot be made, or like `read_token`.
    """
    path = directory / TOKEN_FILE
    try:
        if not path.exists():
            replace_file(path, secrets.token_hex(32).encode() + b"\n", mode=0o600)
    except OSError as error:
        raise ConfigError(f"cannot make the operators' token {path}: {error.strerror}") from error
    return read_token(path)


def read_token(path: Path) -> str:
    """The token in a file.

    Raises:
        ConfigError: it cannot be read, others can read it, or it is too short to be one.
    """
    require_private(path)
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the operators' token {path}: {error}") from error
    if len(token) < 32:
        raise ConfigError(f"{path} holds no token: remove it, and the next server makes a new one")
    return token
