"""A crash at every single change of the file system leaves the old policy in force, or the new one, whole."""

import itertools
import shutil

import pytest

from deploy.registry import PolicyRegistry
from deploy.registry_check import verify
from tests.support.crashes import Crash, CrashAt
from tests.support.onnx_files import small_spec, write_linear_policy

SPEC = small_spec()
OPERATIONS = {
    "publish": lambda registry, new: registry.publish(new),
    "rollback": lambda registry, new: registry.rollback(),
    "start_trial": lambda registry, new: registry.start_trial(new, 0.5),
    "promote": lambda registry, new: registry.end_trial(promote=True),
    "end_trial": lambda registry, new: registry.end_trial(promote=False),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Policies 0.onnx ..., and a registry with the first two in force and the third on trial."""
    folder = tmp_path_factory.mktemp("crashes")
    files = [write_linear_policy(folder / f"{i}.onnx", SPEC, bias=i / 10) for i in range(5)]
    registry = PolicyRegistry(folder / "registry")
    for path in files[:2]:
        registry.publish(path)
    registry.start_trial(files[2], 0.2)
    return folder


def state(registry):
    pointer = registry.pointer()
    return pointer.versions, pointer.trial


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_crash_at_any_step_leaves_the_old_state_or_the_new_one(folder, tmp_path, monkeypatch, name):
    operation, new = OPERATIONS[name], folder / "3.onnx"
    finished = PolicyRegistry(shutil.copytree(folder / "registry", tmp_path / "finished"))
    before = state(finished)
    operation(finished, new)
    after = state(finished)
    assert after != before
    outcomes = []
    for step in itertools.count(1):
        registry = PolicyRegistry(shutil.copytree(folder / "registry", tmp_path / str(step)))
        with CrashAt(step, monkeypatch) as crash:
            try:
                operation(registry, new)
                break
            except Crash:
                assert crash.calls >= step
        outcomes.append(state(registry))
        assert outcomes[-1] in (before, after)
        assert verify(registry).problems == ()
        current = registry.current_version()
        assert registry.load(current).policy_version == current
        # The next change works, tidies up, and says what was not completed.
        assert registry.publish(folder / "4.onnx") == registry.current_version()
        report = verify(registry)
        assert report.problems == ()
        events = [entry["event"] for entry in registry.audit.entries()]
        announced = events.count({"start_trial": "trial", "end_trial": "trial_end"}.get(name, name))
        given_up = events.count("not_completed")
        assert announced - given_up == (1 if outcomes[-1] == after else 0) + {"publish": 3, "start_trial": 1}.get(
            name, 0
        )
        assert not list(registry.directory.rglob(".*.tmp"))
    assert outcomes == sorted(outcomes, key=lambda outcome: outcome == after)  # once in force, always in force
    assert outcomes[0] == before
    assert outcomes[-1] == after  # only the directory's sync and tidying come after the replacement
    assert len(outcomes) >= 8


def test_a_crash_in_the_first_publish_leaves_no_registry_or_a_whole_one(folder, tmp_path, monkeypatch):
    for step in itertools.count(1):
        registry = PolicyRegistry(tmp_path / str(step))
        with CrashAt(step, monkeypatch):
            try:
                registry.publish(folder / "0.onnx")
                break
            except Crash:
                pass
        if registry.signature() is not None:
            assert verify(registry).problems == ()
        version = registry.publish(folder / "0.onnx")
        assert registry.load(registry.current_version()).policy_version == version
        assert verify(registry).problems == ()
    assert step > 12
