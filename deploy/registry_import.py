"""Finding the registry of a policy file, and putting the file that a server is started with into it."""

from __future__ import annotations

from pathlib import Path

from deploy.onnx_policy import OnnxPolicy
from deploy.registry import PolicyRegistry
from mpo_robot.errors import ConfigError


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


def registry_directory(policy: Path) -> Path:
    """Registry of a policy: the directory itself, or the sibling `<file>.versions/` of an ONNX file.

    Raises:
        ConfigError: there is neither.
    """
    if policy.is_dir():
        return policy
    sibling = policy.with_name(f"{policy.name}.versions")
    if policy.is_file() or sibling.is_dir():
        return sibling
    raise ConfigError(f"no policy file or registry directory at {policy}: write one with `mpo-robot export`")
