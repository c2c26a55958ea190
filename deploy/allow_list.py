"""`AllowList`: a directory with the public keys of those who may connect to a server, followed while it runs.

NAME.key                robots: may ask for actions
operators/NAME.key      operators: may also stop a trial or change which policy is in force
history.jsonl           audit of what `mpo-robot keys` changed

Who can change it decides who is an operator. So a file, or all of them, that others can write to counts for nothing
(`deploy.trusted_files`), also if it became so while the server runs.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from deploy.audit import AuditLog
from deploy.key_files import PUBLIC_SUFFIX, load_public, require_name, write_public
from deploy.trusted_files import find_doubt, find_doubt_above
from mpo_robot.errors import ConfigError

_log = logging.getLogger(__name__)
_FOLDER_MODE = 0o755  # whatever the umask: a group that can write to it is refused


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
        self._told: frozenset[str] = frozenset()  # problems that are in the log already

    def require_usable(self) -> None:
        """Check the list before it is relied on.

        Raises:
            ConfigError: no directory, no key in it, a key that cannot be read, or others can change a key or the list.
        """
        if not self.directory.is_dir() or not list(self._files()):
            raise ConfigError(
                f"allow-list {self.directory} is not a directory with public keys in it: add a robot's with "
                f"`mpo-robot keys allow {self.directory} NAME.key`"
            )
        _, problems = self._read()
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise ConfigError(f"allow-list {self.directory}: {problems[0]}{more}")

    def refresh(self) -> bool:
        """Read the directory again if it has changed; returns whether it had.

        What cannot be read, or others can change, is left out, and told once.
        """
        signature = self._look()
        if signature == self._signature:
            return False
        self._keys, problems = self._read()
        for problem in problems:
            if problem not in self._told:
                _log.warning("not allowed: %s", problem)
        self._signature, self._told = signature, frozenset(problems)
        return True

    def find(self, key: str) -> AllowedKey | None:
        """The entry of a public key (Z85) as of the last `refresh`; None: not allowed."""
        return self._keys.get(key)

    def __iter__(self) -> Iterator[AllowedKey]:
        return iter(sorted(self._keys.values(), key=lambda entry: (entry.role.value, entry.name)))

    def allow(self, public_key: Path, role: Role) -> AllowedKey:
        """Add a public key under the name of its file; a running server takes it up with its next connection.

        Raises:
            ConfigError: no public key file, the name or the key is taken, or the list cannot be written.
        """
        if public_key.suffix != PUBLIC_SUFFIX:
            raise ConfigError(f"{public_key} is not a public key file: give NAME{PUBLIC_SUFFIX}, never the secret one")
        name, key = public_key.name.removesuffix(PUBLIC_SUFFIX), load_public(public_key)
        require_name(name)
        self._require_free(name, key.decode(), role)
        path = self._folder(role) / public_key.name
        try:
            self.directory.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
            path.parent.mkdir(mode=_FOLDER_MODE, exist_ok=True)
            self._audit().append("allow", name=name, role=role.value, key=key.decode())
            write_public(path, key)
            if role is Role.OPERATOR:
                (self._folder(Role.ROBOT) / public_key.name).unlink(missing_ok=True)  # one name, one role
        except OSError as error:
            raise ConfigError(f"cannot write allow-list {self.directory}: {error.strerror}") from error
        return AllowedKey(name, key.decode(), role, path)

    def _require_free(self, name: str, key: str, role: Role) -> None:
        """A name has one key and one role, and a key one name, so that list and audit say who somebody is."""
        for path, listed in self._files():
            same_name, same_key = path.name == f"{name}{PUBLIC_SUFFIX}", _key_or_empty(path) == key
            if same_name and not same_key:
                raise ConfigError(f"{path} is another key of that name: revoke it first, or rename the new file")
            if same_key and not same_name:
                other = path.name.removesuffix(PUBLIC_SUFFIX)
                raise ConfigError(f"that key is allowed already, as {listed.value} {other}: one key has one name")
            if same_key and listed is Role.OPERATOR and role is Role.ROBOT:
                raise ConfigError(
                    f"{name} is an operator, who may do all that a robot may, and stays one: to take the operator's "
                    f"rights away, first run `mpo-robot keys revoke {self.directory} {name}`"
                )

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

    def _read(self) -> tuple[dict[str, AllowedKey], list[str]]:
        """Entries by key, and what is wrong with the others. If others can change the list itself, nobody is on it."""
        folders = [folder for folder in map(self._folder, Role) if folder.exists()]
        doubts = [find_doubt(folder) for folder in folders] + [find_doubt_above(folder) for folder in folders]
        if problems := list(dict.fromkeys(filter(None, doubts))):
            return {}, problems
        keys: dict[str, AllowedKey] = {}
        for path, role in self._files():
            try:
                doubt, key = find_doubt(path, links=False), load_public(path).decode()
            except ConfigError as error:
                problems.append(str(error))
                continue
            if doubt:
                problems.append(doubt)
            else:
                keys[key] = AllowedKey(path.name.removesuffix(PUBLIC_SUFFIX), key, role, path)  # operators come last
        return keys, problems

    def _look(self) -> tuple[tuple[object, ...], ...]:
        """Cheap value that changes with every key, and with who may change one."""
        seen: list[tuple[object, ...]] = []
        for role in Role:
            folder = self._folder(role)
            try:
                status = folder.stat()
                seen.append((str(folder), status.st_mode, status.st_uid, find_doubt_above(folder)))
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.name.endswith(PUBLIC_SUFFIX):
                            status = entry.stat(follow_symlinks=False)
                            seen.append((entry.path, status.st_ino, status.st_ctime_ns, status.st_size))
            except OSError:  # a directory that is gone allows nobody
                continue
        return tuple(sorted(seen, key=str))


def _key_or_empty(path: Path) -> str:
    try:
        return load_public(path).decode()
    except ConfigError:
        return ""
