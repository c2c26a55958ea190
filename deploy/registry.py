"""`PolicyRegistry`: a directory with policy versions and an atomically replaced pointer to the one in force.

    versions/<policy_version>.onnx   every kept version
    current                          JSON: the version in force, those before it (the base of rollback), their spec,
                                     and the trial of another version
    history.jsonl                    audit of every change, chained by hashes

The pointer is the only state. Every change is announced in the audit first and takes effect with the replacement of
the pointer: a crash at any point before that leaves the old state in force, and nothing is in force unannounced.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.audit import AuditLog
from deploy.durable import replace_file
from deploy.onnx_policy import OnnxPolicy
from deploy.policy_file import PolicyFile
from deploy.registry_pointer import VERSION, Pointer, Trial
from mpo_robot.errors import ConfigError, SpecMismatchError
from mpo_robot.specs import PolicySpec

_log = logging.getLogger(__name__)
NOT_COMPLETED = "not_completed"


class PolicyRegistry:
    """Policy versions on disk. Several processes may use one directory; changes are serialized by a lock file.

    Every change takes `by`, who makes it (empty: the user of this process), for the audit.

    Attributes:
        directory: Where it is.
        audit: The log of changes.
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
        self.audit = AuditLog(self.directory / "history.jsonl")
        self._keep_versions = keep_versions

    def publish(self, path: str | Path, by: str = "") -> str:
        """Check a policy file, copy it in and put it in force, which ends a trial. Returns its version.

        Publishing the version in force again changes nothing.

        Raises:
            ConfigError: not a valid policy, or the registry cannot be written.
            SpecMismatchError: another interface than the current policy.
        """
        candidate = OnnxPolicy(path)
        with self._locked():
            pointer = self._read()
            version = self._take_in(candidate, pointer)
            if pointer is not None and pointer.current == version:
                return version
            versions = (*(pointer.versions if pointer else ()), version)
            self._commit(Pointer(versions, candidate.spec), "publish", by, detail=str(path))
        return version

    def start_trial(self, source: str | Path, share: float, by: str = "") -> str:
        """Give a share of the episodes to another version, in place of a running trial. Returns the version.

        Args:
            source: A policy file, or a version that the registry has.
            share: Of the episodes, in (0, 1).

        Raises:
            ConfigError: nothing is in force, the candidate is in force itself, is not valid or the share is not.
            SpecMismatchError: another interface than the current policy.
        """
        known = isinstance(source, str) and self.has(source)
        candidate = self.load(str(source)) if known else OnnxPolicy(source)
        with self._locked():
            pointer = self._require_pointer()
            if candidate.policy_version == pointer.current:
                raise ConfigError(f"{str(source)[:80]} is the version in force: a trial needs another one")
            trial = Trial(candidate.policy_version, share)
            self._take_in(candidate, pointer)
            self._commit(dataclasses.replace(pointer, trial=trial), "trial", by, share=share)
        return trial.version

    def end_trial(self, promote: bool, by: str = "", reason: str = "", expect: str = "") -> str:
        """Stop a trial, its candidate put in force or not. Returns the version in force then.

        Args:
            promote: Put the candidate in force.
            reason: For the audit.
            expect: The candidate or the `Pointer.state` that is meant; another one is left alone.

        Raises:
            ConfigError: there is no trial, its candidate is damaged, or it is not the one that is meant.
        """
        with self._locked():
            pointer = self._require_pointer()
            trial = pointer.trial
            if trial is None or not pointer.is_meant(expect, trial.version):
                raise ConfigError(f"registry {self.directory} has no trial{' of ' + expect[:12] if expect else ''}")
            versions = pointer.versions
            if promote:
                self.load(trial.version)
                versions = (*versions, trial.version)
            event = "promote" if promote else "trial_end"
            new = Pointer(versions, pointer.spec)
            self._commit(new, event, by, detail=reason, candidate=trial.version, expect=expect)
        return versions[-1]

    def rollback(self, by: str = "", reason: str = "", expect: str = "") -> str:
        """Put the version before the current one in force again and return it. Ends a trial.

        Args:
            reason: For the audit.
            expect: The version to get away from, or the `Pointer.state`; if another is in force, nothing happens.

        Raises:
            ConfigError: there is none, its file is missing or damaged, or another version than expected is in force.
        """
        with self._locked():
            pointer = self._read()
            if pointer is None or len(pointer.versions) < 2:
                raise ConfigError(f"registry {self.directory} has no version before the current one to roll back to")
            if not pointer.is_meant(expect, pointer.current):
                raise ConfigError(f"not rolled back: {expect[:12]} is not in force any more")
            self.load(pointer.versions[-2])
            new = Pointer(pointer.versions[:-1], pointer.spec)
            self._commit(new, "rollback", by, detail=reason, left=pointer.current, expect=expect)
        return new.current

    def require_publishable(self, spec: PolicySpec) -> None:
        """Check that `publish` could take a policy of this interface, before work is spent on one.

        Raises:
            ConfigError: the registry cannot be written.
            SpecMismatchError: the current policy has another interface.
        """
        with self._locked():
            current = self._read()
            if current is not None:
                _require_same(spec, current.spec, self.directory)
            for folder in (self.directory, self.directory / "versions"):
                probe = folder / f".probe.{os.getpid()}.tmp"
                probe.touch()
                probe.unlink()

    def pointer(self) -> Pointer:
        """What is in force.

        Raises:
            ConfigError: nothing was published yet, or the pointer is damaged.
        """
        return self._require_pointer()

    def current(self) -> Path:
        """File of the version in force; raises like `pointer`."""
        return self.path(self.current_version())

    def current_version(self) -> str:
        """Version in force; raises like `pointer`."""
        return self._require_pointer().current

    def previous_versions(self) -> list[str]:
        """Versions before the current one, oldest first: what `rollback` goes through, from the end."""
        pointer = self._read()
        return list(pointer.versions[:-1]) if pointer else []

    def path(self, version: str) -> Path:
        """Where the file of a version is, whether it exists or not.

        Raises:
            ConfigError: not a policy version, so that no text from outside becomes a path.
        """
        if not VERSION.fullmatch(version):
            raise ConfigError(f"{version[:80]!r} is not a policy version (64 hex digits)")
        return self.directory / "versions" / f"{version}.onnx"

    def has(self, version: str) -> bool:
        """Whether the file of a version is here."""
        return VERSION.fullmatch(version) is not None and self.path(version).exists()

    def load(self, version: str) -> OnnxPolicy:
        """The policy of a version; its bytes are hashed before anything parses them.

        Raises:
            ConfigError: missing, not valid, or its bytes are not those of the version.
        """
        return OnnxPolicy(PolicyFile.read(self.path(version), expected_version=version))

    def signature(self) -> tuple[int, int, int] | None:
        """Cheap value that changes whenever the pointer does; None if there is no pointer."""
        try:
            status = (self.directory / "current").stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _read(self) -> Pointer | None:
        path = self.directory / "current"
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"registry pointer {path} cannot be read: {error.strerror}") from error
        return Pointer.decode(text, f"registry pointer {path}")

    def _require_pointer(self) -> Pointer:
        pointer = self._read()
        if pointer is None:
            raise ConfigError(f"{self.directory} is not a policy registry, or nothing was published to it yet")
        return pointer

    def _take_in(self, candidate: OnnxPolicy, pointer: Pointer | None) -> str:
        """Copy a policy file in unless it is here, undamaged; returns its version."""
        if pointer is not None:
            _require_same(candidate.spec, pointer.spec, self.directory)
        version = candidate.policy_version
        target = self.path(version)
        if not target.exists() or PolicyFile.version_of(target) != version:
            replace_file(target, candidate.path.read_bytes())
            if PolicyFile.version_of(target) != version:
                target.unlink()
                raise ConfigError(f"{candidate.path} changed while it was published: publish it again")
        return version

    def _commit(self, pointer: Pointer, event: str, by: str, **facts: Any) -> None:
        """Announce a change, then make it."""
        self._note_interrupted()
        pointer = dataclasses.replace(pointer, versions=pointer.versions[-self._keep_versions :])
        trial = pointer.trial.version if pointer.trial else None
        entry = self.audit.append(event, by, version=pointer.current, trial=trial, **facts)
        try:
            replace_file(self.directory / "current", dataclasses.replace(pointer, audit=entry).encode())
        except OSError as error:
            with contextlib.suppress(OSError):
                self.audit.append(NOT_COMPLETED, by, announced=entry, detail=str(error.strerror))
            raise
        try:  # the change is in force; what follows must not make it look failed
            self._tidy(pointer.kept)
        except OSError as error:
            _log.warning("registry %s: %s is in force, but tidying up failed: %s", self.directory, event, error)

    def _note_interrupted(self) -> None:
        """Write down that the last announced change never came into force, if a crash left that open."""
        last, pointer = self.audit.last(), self._read()
        if last is None or "prev" not in last or last["event"] == NOT_COMPLETED:
            return
        if last["hash"] != (pointer.audit if pointer else ""):
            self.audit.append(NOT_COMPLETED, announced=last["hash"], detail="found by the next change")

    def _tidy(self, kept: set[str]) -> None:
        """Remove what a crash left behind, and the oldest files beyond `keep_versions` that nothing points to."""
        folder = self.directory / "versions"
        for path in (*folder.glob(".*.tmp"), *self.directory.glob(".*.tmp")):
            os.unlink(path)
        files = sorted(folder.glob("*.onnx"), key=lambda path: path.stat().st_mtime_ns)
        loose = [path for path in files if path.stem not in kept]
        for path in loose[: max(0, len(files) - self._keep_versions)]:
            os.unlink(path)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the registry's lock; the kernel releases it if this process dies."""
        try:
            os.makedirs(self.directory / "versions", exist_ok=True)
            lock = (self.directory / ".lock").open("w")
        except OSError as error:
            raise ConfigError(f"cannot write policy registry {self.directory}: {error.strerror}") from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield
            except OSError as error:
                raise ConfigError(f"cannot write policy registry {self.directory}: {error.strerror}") from error


def _require_same(candidate: PolicySpec, current: PolicySpec, directory: Path) -> None:
    try:
        candidate.require_same(current, "the new policy", "the current policy")
    except SpecMismatchError as error:
        raise SpecMismatchError(
            f"{error} The registry is {directory}; if the robot itself has changed, start with an empty one."
        ) from error
