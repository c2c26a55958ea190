"""Which policies of continued learning reached which registry.

A file beside the checkpoints, not in them: a policy is published after its checkpoint was saved, and saving the real
replay a second time only to note that would take long. If the process dies between publishing and noting it, the same
policy is published again, which changes nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deploy.registry import PolicyRegistry
from mpo_robot.run_folder import RunFolder, write_atomically


class Publications:
    """`RUN/learn/published.json`: the newest published learner step of each registry.

    Args:
        folder: The run.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._run = folder.path.resolve()
        self._file = folder.path / "learn" / "published.json"

    def holds(self, registry: Path, learner_steps: int) -> bool:
        """Whether a registry has a policy of `learner_steps`, or a later one, rolled back or not.

        Not if the noted one is gone from it: somebody emptied or replaced the directory.
        """
        entry = self._read().get(self._name(registry), {})
        if int(entry.get("learner_steps", -1)) < learner_steps:
            return False
        there = PolicyRegistry(registry)
        return there.signature() is not None and there.has(str(entry.get("policy_version")))

    def note(self, registry: Path, learner_steps: int, version: str) -> None:
        """The policy of `learner_steps` is now in a registry."""
        entry = {"learner_steps": learner_steps, "policy_version": version}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._file, json.dumps({**self._read(), self._name(registry): entry}, indent=1) + "\n")

    def _name(self, registry: Path) -> str:
        path = registry.resolve()  # relative inside the run, so that the run may be moved
        return str(path.relative_to(self._run) if path.is_relative_to(self._run) else path)

    def _read(self) -> dict[str, Any]:
        try:
            return json.loads(self._file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # absent or damaged: publish once more
            return {}
