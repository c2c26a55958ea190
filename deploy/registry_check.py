"""Does a registry tell one story: its audit log, its pointer and its files?"""

from __future__ import annotations

from dataclasses import dataclass

from deploy.policy_file import PolicyFile
from deploy.registry import NOT_COMPLETED, PolicyRegistry
from deploy.registry_pointer import Pointer
from mpo_robot.errors import ConfigError


@dataclass(frozen=True)
class RegistryReport:
    """What a verification found.

    Attributes:
        head: Hash of the last audit entry, to be kept elsewhere.
        entries: Lines of the audit.
        unchained: Of them, those from before lines were chained.
        torn: Of them, those cut off by a crash.
        problems: What does not fit; empty if everything does.
    """

    head: str
    entries: int
    unchained: int
    torn: int
    problems: tuple[str, ...]


def verify(registry: PolicyRegistry, known_head: str = "") -> RegistryReport:
    """Check the chain of the audit, that the pointer is what was announced last, and every kept file's hash.

    Args:
        registry: It is only read.
        known_head: The hash of an entry that was noted elsewhere; the log must still hold it.

    Raises:
        ConfigError: nothing was published yet, or the pointer is damaged.
    """
    pointer, report = registry.pointer(), registry.audit.verify()
    problems = [report.problem] if report.problem else []
    if known_head and known_head not in report.hashes:
        problems.append(f"the audit does not hold the entry {known_head[:12]} any more: its end, or all of it, is new")
    problems += _check_announcement(registry, pointer)
    for version in sorted(pointer.kept):
        try:
            found = PolicyFile.version_of(registry.path(version))
        except ConfigError as error:
            problems.append(str(error))
        else:
            if found != version:
                problems.append(f"{registry.path(version)} is damaged: its bytes have hash {found[:12]}")
    return RegistryReport(report.head, len(report.hashes), report.unchained, report.torn, tuple(problems))


def _check_announcement(registry: PolicyRegistry, pointer: Pointer) -> list[str]:
    """What is in force must be what the audit announced last, but for changes that were given up."""
    if not pointer.audit:
        return []  # from before there was a chain
    entries = registry.audit.entries()
    position = next((index for index, entry in enumerate(entries) if entry["hash"] == pointer.audit), None)
    if position is None:
        return ["the entry that announced what is in force is missing from the audit: its end was cut off or changed"]
    announced, later = entries[position], entries[position + 1 :]
    problems = []
    trial = pointer.trial.version if pointer.trial else None
    share = pointer.trial.share if pointer.trial else None
    if (announced.get("version"), announced.get("trial"), announced.get("share")) != (pointer.current, trial, share):
        problems.append("the pointer was changed: it is not what the audit says")
    given_up = {entry.get("announced") for entry in later if entry["event"] == NOT_COMPLETED}
    # The last one may have been interrupted a moment ago; the next change will say so.
    open_changes = [entry for entry in later[:-1] if entry["event"] != NOT_COMPLETED and entry["hash"] not in given_up]
    if open_changes:
        problems.append(f"{len(open_changes)} change(s) were announced later, and are not in force: the pointer is old")
    return problems
