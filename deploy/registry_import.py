"""Putting the file that a server is started with into its registry."""

from __future__ import annotations

from pathlib import Path

from deploy.onnx_policy import OnnxPolicy
from deploy.registry import PolicyRegistry


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
