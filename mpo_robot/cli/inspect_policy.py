"""What `mpo-robot inspect` tells about a policy file and a policy registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime

from deploy.categorical_policy import open_policy
from deploy.operations import describe as describe_state
from deploy.outcomes import OutcomeLog
from deploy.policy_file import METADATA_KEY
from deploy.registry import PolicyRegistry
from mpo_robot.specs import PolicySpec, TermSpec


def describe(path: Path) -> dict[str, Any]:
    """Hashes, interface, parity and origin of a policy; tells whether its graph was changed since its export.

    Raises:
        ConfigError, SpecMismatchError: not a policy this program can run.
    """
    policy = open_policy(path, verify_graph=False)
    metadata = policy.metadata
    claimed = metadata.get("graph_hash")
    changed = claimed != policy.graph_hash
    return {
        "policy_version": policy.policy_version,
        "graph_hash": policy.graph_hash,
        "graph": f"CHANGED since its export, which had {claimed}: refused everywhere else"
        if changed
        else "as exported",
        "spec_hash": policy.spec.spec_hash,
        "bytes": path.stat().st_size,
        **describe_spec(policy.spec),
        "parity": "void: measured on the graph before the change" if changed else metadata.get("parity") or None,
        "distribution": metadata.get("distribution"),
        "training": metadata.get("training") or None,
        "compatibility_keys": _other_keys(path) or None,
    }


def describe_spec(spec: PolicySpec) -> dict[str, Any]:
    """Period and both vectors of a spec, one row per term."""
    return {
        "control_dt": spec.control_dt,
        "rate": f"{1.0 / spec.control_dt:.6g} Hz",
        "observation_size": spec.observation_size,
        "action_size": spec.action_size,
        "observation": _rows(spec.observation),
        "command": _rows(spec.command),
    }


def describe_registry(path: Path) -> dict[str, Any]:
    """Version in force, the versions a rollback goes through, the trial, and how episodes of each version ended.

    Raises:
        ConfigError: the registry's pointer is damaged, or it names no version.
    """
    registry = PolicyRegistry(path)
    stored = {file.stem for file in (path / "versions").glob("*.onnx")}
    current, previous = registry.current_version(), registry.previous_versions()
    return {
        "current": current,
        "current_file_present": current in stored,
        "previous": list(reversed(previous)),
        "stored_versions": len(stored),
        **{key: value for key, value in describe_state(registry, OutcomeLog(path)).items() if key != "current"},
    }


def _rows(terms: tuple[TermSpec, ...]) -> list[dict[str, Any]]:
    rows, start = [], 0
    for term in terms:
        end = start + term.size - 1
        rows.append(
            {
                "index": str(start) if term.size == 1 else f"{start}-{end}",
                "term": term.name,
                "size": term.size,
                "unit": term.unit,
                "low": _bound(term.low),
                "high": _bound(term.high),
            }
            | ({} if term.choices is None else {"choices": term.choices})
        )
        start = end + 1
    return rows


def _bound(values: tuple[float, ...] | None) -> float | list[float] | None:
    if values is None:
        return None
    return values[0] if len(set(values)) == 1 else list(values)


def _other_keys(path: Path) -> dict[str, str]:
    """The comma-separated keys that other tools read."""
    entries = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).get_modelmeta().custom_metadata_map
    return {key: value for key, value in sorted(entries.items()) if key != METADATA_KEY}
