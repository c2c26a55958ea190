"""`PolicyFile`: an exported policy as read from disk, identified and opened, of any kind."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime

from deploy.onnx_file import graph_hash
from mpo_robot.errors import ConfigError, SpecMismatchError, first_line
from mpo_robot.specs import PolicySpec

METADATA_KEY = "mpo_robot"
METADATA_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class PolicyFile:
    """What is in a policy file.

    Attributes:
        path: Where it was read from.
        session: Ready to run.
        metadata: The parsed `mpo_robot` metadata; its `graph_hash` is the one at export.
        spec: Interface of the policy.
        policy_version: SHA-256 (64 hex digits) of the file's bytes.
        graph_hash: SHA-256 of the file without its metadata, as it is now.
    """

    path: Path
    session: onnxruntime.InferenceSession
    metadata: dict[str, Any]
    spec: PolicySpec
    policy_version: str
    graph_hash: str

    @staticmethod
    def read(path: str | Path, expected_version: str | None = None) -> PolicyFile:
        """Read and open a policy.

        Args:
            path: The file.
            expected_version: The version it must have; another one is refused before anything parses the file.

        Raises:
            ConfigError: unreadable, not the expected version, not ONNX, or foreign metadata.
            SpecMismatchError: the spec inside does not have the hash the file claims.
        """
        path = Path(path)
        data = _read_bytes(path)
        # Loading from the bytes that were hashed: the file cannot change between the two.
        version = hashlib.sha256(data).hexdigest()
        if expected_version is not None and version != expected_version:
            raise ConfigError(f"{path} is damaged: its bytes have hash {version[:12]}")
        session = _open_session(data, path)
        metadata = _read_metadata(session, path)
        spec = _read_spec(metadata, path)
        return PolicyFile(path, session, metadata, spec, version, graph_hash(data))

    @staticmethod
    def version_of(path: Path) -> str:
        """SHA-256 of a file's bytes; raises ConfigError if it cannot be read."""
        return hashlib.sha256(_read_bytes(path)).hexdigest()

    def require_exported_graph(self) -> None:
        """Check that the graph is the one that passed the parity gate.

        Raises:
            ConfigError: it was changed since.
        """
        claimed = self.metadata.get("graph_hash")
        if claimed != self.graph_hash:
            raise ConfigError(
                f"{self.path}: claims graph_hash {str(claimed)[:12]} but the graph inside has {self.graph_hash[:12]}: "
                "it is not the one that passed the parity gate. The file was edited or damaged, export it again"
            )


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read policy {path}: {error.strerror}") from error


def _open_session(data: bytes, path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # these networks are far too small to share between threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # fatal only: every problem comes back as an exception
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no common base class for its errors
        raise ConfigError(f"{path} is not an ONNX policy this program can load: {first_line(error)}") from error


def _read_metadata(session: onnxruntime.InferenceSession, path: Path) -> dict[str, Any]:
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise ConfigError(f"{path} has no {METADATA_KEY!r} metadata: write it with `mpo-robot export`")
    try:
        metadata = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{path}: metadata {METADATA_KEY!r} is not JSON: {error}") from error
    if not isinstance(metadata, dict) or metadata.get("schema_version") != METADATA_SCHEMA_VERSION:
        found = metadata.get("schema_version") if isinstance(metadata, dict) else type(metadata).__name__
        raise ConfigError(f"{path}: metadata has schema_version {found}, this program reads {METADATA_SCHEMA_VERSION}")
    return metadata


def _read_spec(metadata: dict[str, Any], path: Path) -> PolicySpec:
    if not isinstance(metadata.get("spec"), dict):
        raise ConfigError(f"{path}: metadata {METADATA_KEY!r} holds no policy spec")
    spec = PolicySpec.from_dict(metadata["spec"])
    if metadata.get("spec_hash") != spec.spec_hash:
        raise SpecMismatchError(
            f"{path}: claims spec_hash {str(metadata.get('spec_hash'))[:12]} but the spec inside has "
            f"{spec.spec_hash[:12]}: the file was edited or damaged, export it again"
        )
    return spec
