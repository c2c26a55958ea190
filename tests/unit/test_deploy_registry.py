import hashlib
import json
import os
import threading
from fractions import Fraction

import pytest

from deploy import policy_file
from deploy.onnx_policy import OnnxPolicy
from deploy.registry import PolicyRegistry
from deploy.registry_check import verify
from deploy.registry_import import import_policy
from deploy.registry_pointer import Trial
from mpo_robot.errors import ConfigError, SpecMismatchError
from tests.support.onnx_files import small_spec, write_linear_policy

SPEC = small_spec()


@pytest.fixture
def registry(tmp_path):
    return PolicyRegistry(tmp_path / "registry")


@pytest.fixture
def files(tmp_path):
    """Three different policies for one robot."""
    return [write_linear_policy(tmp_path / f"{i}.onnx", SPEC, bias=i / 10) for i in range(3)]


def events(registry):
    return [json.loads(line)["event"] for line in (registry.directory / "history.jsonl").read_text().splitlines()]


def test_publish_puts_a_copy_in_force(registry, files):
    version = registry.publish(files[0])
    assert version == OnnxPolicy(files[0]).policy_version
    assert registry.current_version() == version
    assert registry.current() == registry.directory / "versions" / f"{version}.onnx"
    assert registry.current().read_bytes() == files[0].read_bytes()
    assert registry.load(version).spec == SPEC
    files[0].unlink()
    assert registry.load(version).policy_version == version


def test_an_empty_registry_says_so(registry):
    with pytest.raises(ConfigError, match="nothing was published"):
        registry.current()
    with pytest.raises(ConfigError, match="no version before"):
        registry.rollback()
    assert registry.signature() is None


def test_publishing_the_current_version_again_changes_nothing(registry, files):
    registry.publish(files[0])
    before = registry.signature()
    registry.publish(files[0])
    assert registry.signature() == before
    assert registry.previous_versions() == []


def test_rollback_walks_back_and_forgets_what_it_left(registry, files):
    a, b, c = (registry.publish(path) for path in files)
    assert registry.previous_versions() == [a, b]
    assert registry.rollback() == b
    assert registry.current_version() == b
    assert registry.rollback() == a
    with pytest.raises(ConfigError, match="no version before"):
        registry.rollback()
    assert registry.current_version() == a
    assert registry.publish(files[2]) == c
    assert registry.rollback() == a
    assert events(registry) == ["publish"] * 3 + ["rollback"] * 2 + ["publish", "rollback"]


def test_signature_changes_with_every_change(registry, files):
    seen = set()
    for path in files:
        registry.publish(path)
        seen.add(registry.signature())
    registry.rollback()
    seen.add(registry.signature())
    assert len(seen) == 4


def test_an_invalid_file_is_refused_and_the_old_one_stays(registry, files, tmp_path):
    version = registry.publish(files[0])
    (tmp_path / "bad.onnx").write_bytes(files[1].read_bytes()[:-50])
    before = registry.signature()
    with pytest.raises(ConfigError):
        registry.publish(tmp_path / "bad.onnx")
    assert registry.signature() == before
    assert registry.current_version() == version
    assert events(registry) == ["publish"]


def test_another_interface_is_refused_by_name(registry, files, tmp_path):
    version = registry.publish(files[0])
    other = write_linear_policy(tmp_path / "other.onnx", small_spec(control_dt=0.05))
    with pytest.raises(SpecMismatchError, match="control_dt"):
        registry.publish(other)
    assert registry.current_version() == version


# Writes of a publish: version file (sync, rename, directory sync), audit (sync), pointer (as the version file).
# A rollback has the last four. A failed sync or rename of a file undoes the change; a directory's does not.
@pytest.mark.parametrize(
    ("operation", "step", "succeeds"),
    [("publish", step, step in (2, 6)) for step in range(7)] + [("rollback", step, step == 3) for step in range(4)],
)
def test_a_failure_at_any_write_leaves_a_working_registry(registry, files, monkeypatch, operation, step, succeeds):
    versions = [registry.publish(path) for path in files[:2]]
    calls = 0

    def failing(original):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == step + 1:
                raise OSError(28, "No space left on device")
            return original(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(os.fsync))
        patch.setattr(os, "replace", failing(os.replace))
        try:
            result = registry.publish(files[2]) if operation == "publish" else registry.rollback()
        except ConfigError:
            result = None
    assert calls > step
    assert (result is not None) == succeeds
    in_force = registry.current_version()
    assert in_force == (result if succeeds else versions[1])
    assert registry.load(in_force).policy_version == in_force
    new = registry.publish(files[2])
    assert registry.load(registry.current_version()).policy_version == new
    assert not list((registry.directory / "versions").glob(".*"))
    assert verify(registry).problems == ()


def test_leftovers_of_a_crash_are_removed_by_the_next_publish(registry, files):
    registry.publish(files[0])
    leftover = registry.directory / "versions" / ".abc.onnx.1234.tmp"
    leftover.write_bytes(b"half a file")
    registry.publish(files[1])
    assert not leftover.exists()


def test_a_torn_audit_line_does_not_swallow_the_next(registry, files):
    registry.publish(files[0])
    with (registry.directory / "history.jsonl").open("a") as stream:
        stream.write('{"event": "pub')
    version = registry.publish(files[1])
    lines = (registry.directory / "history.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["version"] == version
    assert len(lines) == 3


def test_a_damaged_version_is_found_and_repaired_by_publishing_it_again(registry, files, tmp_path):
    version = registry.publish(files[0])
    registry.path(version).write_bytes(files[1].read_bytes())
    with pytest.raises(ConfigError, match="damaged"):
        registry.load(version)
    assert registry.publish(files[0]) == version
    assert registry.load(version).policy_version == version


def test_a_lost_current_file_does_not_stop_a_new_publish(registry, files):
    registry.path(registry.publish(files[0])).unlink()
    version = registry.publish(files[1])
    assert registry.load(registry.current_version()).policy_version == version


def test_rollback_to_a_lost_file_is_refused_and_the_current_one_stays(registry, files):
    a, b = registry.publish(files[0]), registry.publish(files[1])
    registry.path(a).unlink()
    with pytest.raises(ConfigError, match="cannot read"):
        registry.rollback()
    assert registry.current_version() == b


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema_version": 2}', '{"schema_version": 1, "versions": [], "spec": {}}']
)
def test_a_damaged_pointer_is_an_error_that_names_it(registry, files, text):
    registry.publish(files[0])
    (registry.directory / "current").write_text(text)
    for call in (registry.current, registry.rollback, lambda: registry.publish(files[1])):
        with pytest.raises(ConfigError, match=r"registry pointer .*current"):
            call()


@pytest.mark.parametrize("version", ["", "..", "../../etc/passwd", "a" * 63, "A" * 64, "a" * 64 + "\n"])
def test_only_hashes_become_paths(registry, version):
    assert not registry.has(version)
    with pytest.raises(ConfigError, match="not a policy version"):
        registry.path(version)


def test_old_versions_are_dropped_but_not_those_that_rollback_needs(tmp_path):
    registry = PolicyRegistry(tmp_path / "registry", keep_versions=3)
    paths = [write_linear_policy(tmp_path / f"{i}.onnx", SPEC, bias=i / 10) for i in range(6)]
    versions = [registry.publish(path) for path in paths]
    assert [registry.has(version) for version in versions] == [False, False, False, True, True, True]
    assert registry.rollback() == versions[4]
    assert registry.rollback() == versions[3]
    with pytest.raises(ConfigError, match="at least 2"):
        PolicyRegistry(tmp_path, keep_versions=1)


def test_concurrent_publishers_are_serialized(tmp_path):
    directory = tmp_path / "registry"
    paths = [write_linear_policy(tmp_path / f"{i}.onnx", SPEC, bias=i / 10) for i in range(8)]
    threads = [threading.Thread(target=PolicyRegistry(directory).publish, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    registry = PolicyRegistry(directory)
    versions = [*registry.previous_versions(), registry.current_version()]
    assert sorted(versions) == sorted(OnnxPolicy(path).policy_version for path in paths)
    assert len(events(registry)) == 8


def test_import_does_not_undo_what_was_published_or_rolled_back_since(registry, files):
    a, own = import_policy(files[0], registry)
    assert a == own
    b = registry.publish(files[1])
    assert import_policy(files[0], registry) == (b, a)
    assert registry.rollback() == a
    assert import_policy(files[1], registry) == (a, b)
    new, own = import_policy(files[2], registry)
    assert new == own == registry.current_version()


def test_a_directory_that_cannot_be_written_is_a_config_error(tmp_path, files):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="cannot write"):
        PolicyRegistry(tmp_path / "file").publish(files[0])


def test_whether_a_policy_could_be_published_is_known_before_there_is_one(registry, files, tmp_path):
    registry.require_publishable(SPEC)
    assert registry.signature() is None  # nothing is in force by that
    version = registry.publish(files[0])
    registry.require_publishable(SPEC)
    with pytest.raises(SpecMismatchError, match=r"control_dt.*start with an empty one"):
        registry.require_publishable(small_spec(control_dt=0.05))
    assert registry.current_version() == version
    assert [path.name for path in (registry.directory / "versions").iterdir()] == [f"{version}.onnx"]
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "versions").write_text("in the way")
    with pytest.raises(ConfigError, match="cannot write"):
        PolicyRegistry(tmp_path / "occupied").require_publishable(SPEC)


def test_tampered_bytes_are_refused_before_anything_parses_them(registry, files, monkeypatch):
    version = registry.publish(files[0])
    data = bytearray(files[0].read_bytes())
    data[len(data) // 2] ^= 1
    registry.path(version).write_bytes(bytes(data))
    opened = []
    monkeypatch.setattr("deploy.policy_file._open_session", lambda data, path: opened.append(path))
    with pytest.raises(ConfigError, match="damaged"):
        registry.load(version)
    assert opened == []


def test_a_trial_runs_until_it_is_ended_promoted_or_overtaken(registry, files, tmp_path):
    a = registry.publish(files[0])
    b = registry.start_trial(files[1], 0.25, by="me")
    assert registry.current_version() == a
    assert (registry.pointer().trial.version, registry.pointer().trial.share) == (b, 0.25)
    assert registry.end_trial(promote=False) == a
    assert registry.pointer().trial is None
    registry.start_trial(b, 0.5)
    assert registry.end_trial(promote=True, expect=b) == b
    assert registry.previous_versions() == [a]
    registry.start_trial(files[2], 0.5)
    assert registry.rollback() == a
    assert registry.pointer().trial is None
    registry.start_trial(files[2], 0.5)
    registry.publish(files[1])
    assert registry.pointer().trial is None
    assert next(entry["by"] for entry in registry.audit.entries() if entry["event"] == "trial") == "me"


def test_what_cannot_be_tried_is_refused(registry, files, tmp_path):
    with pytest.raises(ConfigError, match="nothing was published"):
        registry.start_trial(files[1], 0.5)
    a = registry.publish(files[0])
    b = registry.start_trial(files[1], 0.5)
    before = registry.signature()
    for source, share, text in ((files[0], 0.5, "in force"), (a, 0.5, "in force"), (files[2], 1.0, "between 0 and 1")):
        with pytest.raises(ConfigError, match=text):
            registry.start_trial(source, share)
    with pytest.raises(SpecMismatchError, match="control_dt"):
        registry.start_trial(write_linear_policy(tmp_path / "o.onnx", small_spec(control_dt=0.05)), 0.5)
    with pytest.raises(ConfigError, match="has no trial of"):
        registry.end_trial(promote=True, expect=a)
    assert registry.signature() == before
    registry.path(b).unlink()
    with pytest.raises(ConfigError, match="cannot read"):
        registry.end_trial(promote=True)
    registry.end_trial(promote=False)
    with pytest.raises(ConfigError, match="has no trial"):
        registry.end_trial(promote=False)


def test_a_rollback_from_a_version_that_is_gone_already_does_nothing(registry, files):
    a, b = registry.publish(files[0]), registry.publish(files[1])
    registry.publish(files[2])
    with pytest.raises(ConfigError, match="not in force any more"):
        registry.rollback(expect=b)
    registry.rollback(expect=registry.current_version())
    assert registry.rollback(expect=b) == a


def test_a_trial_divides_episodes_by_their_names():
    trial = Trial("a" * 64, 0.2)
    names = [f"robot-20260101T000000-abc123-{number:04d}" for number in range(2000)]
    taken = [name for name in names if trial.takes(name)]
    assert 0.16 < len(taken) / len(names) < 0.24
    assert taken == [name for name in names if Trial("a" * 64, 0.2).takes(name)]
    assert set(taken) < {name for name in names if Trial("a" * 64, 0.5).takes(name)}
    assert taken != [name for name in names if Trial("b" * 64, 0.2).takes(name)]
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(ConfigError):
            Trial("a" * 64, share)


def test_a_trial_takes_the_episodes_that_the_page_says():
    """docs/wire_protocol.md: the first 8 bytes of SHA-256(`<candidate>/<episode_id>`), as a fraction of 2^64."""
    for number in range(50):
        digest = hashlib.sha256(f"{'a' * 64}/e{number}".encode()).hexdigest()
        fraction = Fraction(int(digest[:16], 16), 2**64)
        for share in (0.2, 0.5, float(fraction) + 1e-9, float(fraction) - 1e-9):
            assert Trial("a" * 64, share).takes(f"e{number}") is (fraction < share)


def test_the_bytes_that_were_hashed_are_those_that_are_parsed(registry, files, monkeypatch):
    version = registry.publish(files[0])
    read, opened = policy_file._read_bytes, []

    def read_then_change(path):
        data = read(path)
        path.write_bytes(b"changed in between")
        return data

    monkeypatch.setattr(policy_file, "_read_bytes", read_then_change)
    open_session = policy_file._open_session
    monkeypatch.setattr(
        policy_file, "_open_session", lambda data, path: opened.append(data) or open_session(data, path)
    )
    assert registry.load(version).policy_version == version
    assert [hashlib.sha256(data).hexdigest() for data in opened] == [version]
