"""`Pointer`: the only state of a policy registry, one JSON file that is replaced whole."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from mpo_robot.errors import ConfigError
from mpo_robot.specs import PolicySpec

POINTER_SCHEMA_VERSION = 1
VERSION = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Trial:
    """A second version that gets a share of the episodes.

    Attributes:
        version: The candidate.
        share: Of the episodes, in (0, 1).
    """

    version: str
    share: float

    def __post_init__(self) -> None:
        if not 0.0 < self.share < 1.0:
            raise ConfigError(f"the share of a trial must be between 0 and 1, got {self.share}")

    def takes(self, episode_id: str) -> bool:
        """Whether an episode gets the candidate: decided by the two names alone, so that a log can be checked.

        Another candidate draws anew.
        """
        digest = hashlib.sha256(f"{self.version}/{episode_id}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.share * 2**64


@dataclass(frozen=True)
class Pointer:
    """What is in force.

    Attributes:
        versions: In the order of rollback, the one in force last.
        spec: Interface of all of them.
        trial: The running trial.
        audit: Hash of the audit entry that announced this state; empty if from before there was a chain.
    """

    versions: tuple[str, ...]
    spec: PolicySpec
    trial: Trial | None = None
    audit: str = ""

    @property
    def current(self) -> str:
        """Version in force."""
        return self.versions[-1]

    @property
    def state(self) -> str:
        """What tells this state from all before and after it, also from those with the same version in force."""
        return self.audit or self.current

    def is_meant(self, expect: str, version: str) -> bool:
        """Whether somebody means this state who expects it, or a version in it; an empty text means any."""
        return expect in ("", self.state, version)

    @property
    def kept(self) -> set[str]:
        """Versions whose files are needed."""
        return {*self.versions, *([self.trial.version] if self.trial else [])}

    def encode(self) -> bytes:
        """Content of the file. Programs from before trials and audit hashes read it too."""
        data: dict[str, Any] = {
            "schema_version": POINTER_SCHEMA_VERSION,
            "versions": list(self.versions),
            "spec": self.spec.to_dict(),
            "audit": self.audit,
        }
        if self.trial is not None:
            data["trial"] = {"version": self.trial.version, "share": self.trial.share}
        return (json.dumps(data, indent=1) + "\n").encode()

    @staticmethod
    def decode(text: str | bytes, name: str) -> Pointer:
        """Inverse of `encode`; `name` is for errors.

        Raises:
            ConfigError: anything else.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{name} cannot be read: {error}") from error
        if not isinstance(data, dict) or data.get("schema_version") != POINTER_SCHEMA_VERSION:
            raise ConfigError(f"{name} is not of schema version {POINTER_SCHEMA_VERSION}")
        versions, spec, audit = data.get("versions"), data.get("spec"), data.get("audit", "")
        if not isinstance(versions, list) or not versions or not isinstance(spec, dict) or not isinstance(audit, str):
            raise ConfigError(f"{name} is damaged: it lacks its versions or its spec")
        trial = _trial(data["trial"], name) if "trial" in data else None
        if not all(isinstance(item, str) and VERSION.fullmatch(item) for item in versions):
            raise ConfigError(f"{name} is damaged: it holds something that is no version")
        return Pointer(tuple(versions), PolicySpec.from_dict(spec), trial, audit)


def _trial(data: Any, name: str) -> Trial:
    version = data.get("version") if isinstance(data, dict) else None
    share = data.get("share") if isinstance(data, dict) else None
    if not isinstance(version, str) or not VERSION.fullmatch(version) or not isinstance(share, (int, float)):
        raise ConfigError(f"{name} is damaged: its trial is not a version with a share")
    return Trial(version, float(share))
