"""`AllowList`: a directory with the public keys of those who may connect to a server, followed while it runs.

NAME.key                robots: may ask for actions
operators/NAME.key      operators: may also stop a trial or change which policy is in force
history.jsonl           audit of what `mpo-robot keys` changed
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from deploy.audit import AuditLog
from deploy.key_files import PUBLIC_SUFFIX, load_public, require_name, write_public
from mpo_robot.errors import ConfigError

_log = logging.getLogger(__name__)


class Role(str, Enum):
    """What a key may do."""

    ROBOT = "robot"
    OPERATOR = "operator"


class AllowedKey(NamedTuple):
    """One entry: its name, public key in Z85, role and file."""

    name: str
    key: str
    role: Role
    path: Path


class AllowList:
    """The keys of a directory. `role_of` and `refresh` may be called from several threads.

    Args:
        directory: Its path.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._signature: object = None
        self._keys: dict[str, AllowedKey] = {}

    def require_usable(self) -> None:
        """Check the list before it is relied on.

        Raises:
            ConfigError: no directory, no key in it, a key that cannot be read, or anyone may write to it.
        """
        if not self.directory.is_dir() or not list(self._files()):
            raise ConfigError(
                f"allow-list {self.directory} is not a directory with public keys in it: add a robot's with "
                f"`mpo-robot keys allow {self.directory} NAME.key`"
            )
        for folder in (self.directory, self._folder(Role.OPERATOR)):
            if folder.is_dir() and folder.stat().st_mode & stat.S_IWOTH:
                raise ConfigError(f"every user can add keys to the allow-list {folder}: run `chmod o-w {folder}`")
        for path, _ in self._files():
            load_public(path)

    def refresh(self) -> bool:
        """Read the directory again if it has changed; returns whether it had. A key that cannot be read is left out."""
        signature = self._look()
        if signature == self._signature:
            return False
        keys: dict[str, AllowedKey] = {}
        for path, role in self._files():
            try:
                key = load_public(path).decode()
            except ConfigError as error:
                _log.warning("not allowed: %s", error)
            else:
                keys[key] = AllowedKey(path.name.removesuffix(PUBLIC_SUFFIX), key, role, path)  # operators come last
        self._keys, self._signature = keys, signature
        return True

    def find(self, key: str) -> AllowedKey | None:
        """The entry of a public key (Z85) as of the last `refresh`; None: not allowed."""
        return self._keys.get(key)

    def __iter__(self) -> Iterator[AllowedKey]:
        return iter(sorted(self._keys.values(), key=lambda entry: (entry.role.value, entry.name)))

    def allow(self, public_key: Path, role: Role) -> AllowedKey:
        """Add a public key under the name of its file; a running server takes it up with its next connection.

        Raises:
            ConfigError: no public key file, the name is taken by another key, or the list cannot be written.
        """
        if public_key.suffix != PUBLIC_SUFFIX:
            raise ConfigError(f"{public_key} is not a public key file: give NAME{PUBLIC_SUFFIX}, never the secret one")
        name, key = public_key.name.removesuffix(PUBLIC_SUFFIX), load_public(public_key)
        require_name(name)
        path = self._folder(role) / public_key.name
        if path.exists() and load_public(path) != key:
            raise ConfigError(f"{path} is another key of that name: revoke it first, or rename the new file")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._audit().append("allow", name=name, role=role.value, key=key.decode())
            write_public(path, key)
        except OSError as error:
            raise ConfigError(f"cannot write allow-list {self.directory}: {error.strerror}") from error
        return AllowedKey(name, key.decode(), role, path)

    def revoke(self, name: str) -> list[AllowedKey]:
        """Remove a key, in both roles and under whatever other names it is listed; returns what was removed.

        Raises:
            ConfigError: no key of that name, or the list cannot be written.
        """
        self.refresh()
        listed = [(path, role) for path, role in self._files() if path.name == f"{name}{PUBLIC_SUFFIX}"]
        if not listed:
            known = ", ".join(entry.name for entry in self) or "none"
            raise ConfigError(f"no key {name[:80]!r} in allow-list {self.directory}; it has: {known}")
        readable = {_key_or_empty(path) for path, _ in listed} - {""}
        doomed = [item for item in self._files() if item in listed or _key_or_empty(item[0]) in readable]
        removed = [
            AllowedKey(path.name.removesuffix(PUBLIC_SUFFIX), _key_or_empty(path), role, path) for path, role in doomed
        ]
        try:
            for entry in removed:
                self._audit().append("revoke", name=entry.name, role=entry.role.value, key=entry.key)
                entry.path.unlink()
        except OSError as error:
            raise ConfigError(f"cannot write allow-list {self.directory}: {error.strerror}") from error
        return removed

    def _audit(self) -> AuditLog:
        return AuditLog(self.directory / "history.jsonl")

    def _folder(self, role: Role) -> Path:
        return self.directory / "operators" if role is Role.OPERATOR else self.directory

    def _files(self) -> Iterator[tuple[Path, Role]]:
        for role in Role:
            for path in sorted(self._folder(role).glob(f"*{PUBLIC_SUFFIX}")):
                yield path, role

    def _look(self) -> tuple[tuple[str, int, int, int], ...]:
        """Cheap value that changes with every key."""
        seen: list[tuple[str, int, int, int]] = []
        for role in Role:
            try:
                with os.scandir(self._folder(role)) as entries:
                    for entry in entries:
                        if entry.name.endswith(PUBLIC_SUFFIX):
                            status = entry.stat()
                            seen.append((entry.path, status.st_ino, status.st_mtime_ns, status.st_size))
            except OSError:  # a directory that is gone allows nobody
                continue
        return tuple(sorted(seen))


def _key_or_empty(path: Path) -> str:
    try:
        return load_public(path).decode()
    except ConfigError:
        return ""
