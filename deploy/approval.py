"""`ApprovedPolicies`: a list of SHA-256 hashes outside the registry, without which no version is served."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from mpo_robot.errors import ConfigError

_LINE = re.compile(r"([0-9a-f]{64})(\s.*)?")


class ApprovedPolicies:
    """A file as `sha256sum *.onnx` prints it, read anew at every question. `#` begins a comment.

    Who can publish to the registry, such as a training machine, cannot approve what it publishes if this file belongs
    to somebody else.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def require(self, version: str) -> None:
        """Refuse a version that is not listed.

        Raises:
            ConfigError: it is not listed; the file cannot be read, anyone can write to it, or a line is no hash.
        """
        if version not in self._read():
            raise ConfigError(
                f"policy {version} is not approved: after checking it, add its line of `sha256sum` to {self.path}"
            )

    def _read(self) -> set[str]:
        try:
            mode, text = self.path.stat().st_mode, self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the approved policies {self.path}: {error}") from error
        if mode & stat.S_IWOTH:
            raise ConfigError(f"every user can write to {self.path}: run `chmod o-w {self.path}`")
        versions: set[str] = set()
        for number, line in enumerate(text.splitlines(), 1):
            line = line.partition("#")[0].strip()
            if not line:
                continue
            match = _LINE.fullmatch(line)
            if match is None:
                raise ConfigError(f"{self.path}, line {number}: expected a SHA-256 of 64 hex digits and a file name")
            versions.add(match.group(1))
        return versions
