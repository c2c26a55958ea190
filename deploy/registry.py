"""`PolicyRegistry`: a directory with policy versions and an atomically replaced pointer to the one in force.

    versions/<policy_version>.onnx   every kept version
    current                          JSON: the version in force, those before it (the base of rollback), their spec
    history.jsonl                    audit of every change; nothing depends on it

The pointer is the only state. A crash at any point of `publish` or `rollback` leaves the old pointer in force.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from deploy.onnx_policy import OnnxPolicy
from mpo_robot.errors import ConfigError, SpecMismatchError
from mpo_robot.specs import PolicySpec

POINTER_SCHEMA_VERSION = 1
_VERSION = re.compile("[0-9a-f]{64}")
_log = logging.getLogger(__name__)


class PolicyRegistry:
    """Policy versions on disk. Several processes may use one directory; changes are serialized by a lock file.

    Attributes:
        directory: Where it is.
    """

    def __init__(self, directory: str | Path, keep_versions: int = 100) -> None:
        """Open a registry; the directory is made by the first `publish`.

        Args:
            directory: Its path.
            keep_versions: How many versions, the current one included, keep their file and can be rolled back to.
        """
        if keep_versions < 2:
            raise ConfigError(f"keep_versions must be at least 2 so that a rollback is possible, got {keep_versions}")
        self.directory = Path(directory)
        self._keep_versions = keep_versions

    def publish(self, path: str | Path) -> str:
        """Check a policy file, copy it in and put it in force. Returns its version.

        Publishing the version in force again changes nothing.

        Raises:
            ConfigError: not a valid policy, or the registry cannot be written.
            SpecMismatchError: another interface than the current policy.
        """
        candidate = OnnxPolicy(path)
        with self._locked():
            stack, spec = self._read()
            if spec is not None:
                _require_same(candidate.spec, spec, self.directory)
            version = candidate.policy_version
            target = self.path(version)
            if not target.exists() or OnnxPolicy(target).policy_version != version:
                data = Path(path).read_bytes()
                _replace(target, data)
                if OnnxPolicy(target).policy_version != version:
                    target.unlink()
                    raise ConfigError(f"{path} changed while it was published: publish it again")
            if stack and stack[-1] == version:
                return version
            self._put_in_force([*stack, version], candidate.spec, "publish", str(path))
        return version

    def require_publishable(self, spec: PolicySpec) -> None:
        """Check that `publish` could take a policy of this interface, before work is spent on one.

        Raises:
            ConfigError: the registry cannot be written.
            SpecMismatchError: the current policy has another interface.
        """
        with self._locked():
            _, current = self._read()
            if current is not None:
                _require_same(spec, current, self.directory)
            for folder in (self.directory, self.directory / "versions"):
                probe = folder / f".probe.{os.getpid()}.tmp"
                probe.touch()
                probe.unlink()

    def rollback(self) -> str:
        """Put the version before the current one in force again and return it.

        Raises:
            ConfigError: there is none, or its file is missing or damaged.
        """
        with self._locked():
            stack, spec = self._read()
            if spec is None or len(stack) < 2:
                raise ConfigError(f"registry {self.directory} has no version before the current one to roll back to")
            self.load(stack[-2])
            self._put_in_force(stack[:-1], spec, "rollback", f"from {stack[-1]}")
        return stack[-2]

    def current(self) -> Path:
        """File of the version in force.

        Raises:
            ConfigError: nothing was published yet, or the pointer is damaged.
        """
        return self.path(self.current_version())

    def current_version(self) -> str:
        """Version in force; raises like `current`."""
        stack, _ = self._read()
        if not stack:
            raise ConfigError(f"{self.directory} is not a policy registry, or nothing was published to it yet")
        return stack[-1]

    def previous_versions(self) -> list[str]:
        """Versions before the current one, oldest first: what `rollback` goes through, from the end."""
        return self._read()[0][:-1]

    def path(self, version: str) -> Path:
        """Where the file of a version is, whether it exists or not.

        Raises:
            ConfigError: not a policy version, so that no text from outside becomes a path.
        """
        if not _VERSION.fullmatch(version):
            raise ConfigError(f"{version[:80]!r} is not a policy version (64 hex digits)")
        return self.directory / "versions" / f"{version}.onnx"

    def has(self, version: str) -> bool:
        """Whether the file of a version is here."""
        return _VERSION.fullmatch(version) is not None and self.path(version).exists()

    def load(self, version: str) -> OnnxPolicy:
        """The policy of a version.

        Raises:
            ConfigError: missing, not valid, or its bytes are not those of the version.
        """
        policy = OnnxPolicy(self.path(version))
        if policy.policy_version != version:
            raise ConfigError(f"{policy.path} is damaged: its bytes have hash {policy.policy_version[:12]}")
        return policy

    def signature(self) -> tuple[int, int, int] | None:
        """Cheap value that changes whenever the pointer does; None if there is no pointer."""
        try:
            status = (self.directory / "current").stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _read(self) -> tuple[list[str], PolicySpec | None]:
        """Versions in the order of rollback, the one in force last, and their spec; empty if nothing was published."""
        pointer = self.directory / "current"
        try:
            data = json.loads(pointer.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return [], None
        except (OSError, ValueError) as error:
            raise ConfigError(f"registry pointer {pointer} cannot be read: {error}") from error
        if not isinstance(data, dict) or data.get("schema_version") != POINTER_SCHEMA_VERSION:
            raise ConfigError(f"registry pointer {pointer} is not of schema version {POINTER_SCHEMA_VERSION}")
        versions, spec = data.get("versions"), data.get("spec")
        if not isinstance(versions, list) or not versions or not isinstance(spec, dict):
            raise ConfigError(f"registry pointer {pointer} is damaged: it lacks its versions or its spec")
        if not all(isinstance(item, str) and _VERSION.fullmatch(item) for item in versions):
            raise ConfigError(f"registry pointer {pointer} is damaged: it holds something that is no version")
        return versions, PolicySpec.from_dict(spec)

    def _put_in_force(self, stack: Sequence[str], spec: PolicySpec, event: str, detail: str) -> None:
        kept = list(stack[-self._keep_versions :])
        pointer = {"schema_version": POINTER_SCHEMA_VERSION, "versions": kept, "spec": spec.to_dict()}
        _replace(self.directory / "current", (json.dumps(pointer, indent=1) + "\n").encode())
        # From here on the change is in force; what follows must not make it look failed.
        try:
            self._audit({"event": event, "version": stack[-1], "detail": detail, "wall_time_ns": time.time_ns()})
            self._tidy(set(kept))
        except OSError as error:
            _log.warning("registry %s: %s is in force, but tidying up failed: %s", self.directory, stack[-1], error)

    def _tidy(self, kept: set[str]) -> None:
        """Remove what a crash left behind, and the oldest files beyond `keep_versions` that nothing points to."""
        folder = self.directory / "versions"
        for path in folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)
        files = sorted(folder.glob("*.onnx"), key=lambda path: path.stat().st_mtime_ns)
        loose = [path for path in files if path.stem not in kept]
        for path in loose[: max(0, len(files) - self._keep_versions)]:
            path.unlink()

    def _audit(self, entry: dict[str, object]) -> None:
        with (self.directory / "history.jsonl").open("ab") as stream:
            # A line cut by a crash must not swallow this one.
            if stream.tell() and not _ends_with_newline(self.directory / "history.jsonl"):
                stream.write(b"\n")
            stream.write(json.dumps(entry).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the registry's lock; the kernel releases it if this process dies."""
        try:
            (self.directory / "versions").mkdir(parents=True, exist_ok=True)
            lock = (self.directory / ".lock").open("w")
        except OSError as error:
            raise ConfigError(f"cannot write policy registry {self.directory}: {error.strerror}") from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield
            except OSError as error:
                raise ConfigError(f"cannot write policy registry {self.directory}: {error.strerror}") from error


def import_policy(path: str | Path, registry: PolicyRegistry, stochastic: bool = False) -> tuple[str, str]:
    """Publish a file unless the registry has had it. Returns the version in force and the file's own.

    A server that restarts with the same command must not undo what was published or rolled back since.

    Args:
        stochastic: The policy is to be served so; one that cannot be is not published.

    Raises:
        PolicyError: it would be published, is to be sampled from and has no density.
    """
    candidate = OnnxPolicy(path)
    if registry.signature() is not None and registry.has(candidate.policy_version):
        return registry.current_version(), candidate.policy_version
    candidate.require_mode(stochastic)
    return registry.publish(path), candidate.policy_version


def _require_same(candidate: PolicySpec, current: PolicySpec, directory: Path) -> None:
    try:
        candidate.require_same(current, "the new policy", "the current policy")
    except SpecMismatchError as error:
        raise SpecMismatchError(
            f"{error} The registry is {directory}; if the robot itself has changed, start with an empty one."
        ) from error


def _replace(target: Path, data: bytes) -> None:
    """Write a file so that a crash leaves either the old content or the new one, on disk and not only in a cache."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    try:
        directory = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:  # the new content is there; only a power cut could still bring the old one back
        _log.warning("%s was replaced, but its directory could not be synced: %s", target, error)


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"
