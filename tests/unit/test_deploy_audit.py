import json

import pytest

from deploy.audit import GENESIS, AuditLog
from deploy.registry import PolicyRegistry
from deploy.registry_check import verify
from tests.support.onnx_files import small_spec, write_linear_policy

SPEC = small_spec()


@pytest.fixture
def log(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl")
    for number in range(4):
        log.append("change", "somebody", number=number)
    return log


def test_entries_say_who_what_and_when_and_are_chained(log):
    entries = log.entries()
    assert [entry["number"] for entry in entries] == [0, 1, 2, 3]
    assert {entry["by"] for entry in entries} == {"somebody"}
    assert [entry["prev"] for entry in entries] == [GENESIS, *(entry["hash"] for entry in entries[:-1])]
    assert all(entry["wall_time_ns"] > 0 and entry["process"] > 0 for entry in entries)
    report = log.verify()
    assert (report.problem, report.torn, report.unchained, report.head) == ("", 0, 0, entries[-1]["hash"])
    log.append("change")
    assert "@" in log.entries()[-1]["by"]


@pytest.mark.parametrize("damage", ["change", "remove", "insert", "swap", "remove first", "unchain"])
def test_a_changed_line_shows(log, damage):
    lines = log.path.read_text().splitlines()
    if damage == "change":
        lines[1] = lines[1].replace("somebody", "nobody")
    elif damage == "remove":
        del lines[1]
    elif damage == "insert":
        lines.insert(1, lines[1])
    elif damage == "swap":
        lines[1], lines[2] = lines[2], lines[1]
    elif damage == "remove first":
        del lines[0]
    else:
        lines[3] = json.dumps({"event": "change"})
    log.path.write_text("\n".join(lines) + "\n")
    assert "line" in log.verify().problem


def test_a_torn_line_is_counted_and_followed(log):
    with log.path.open("a") as stream:
        stream.write('{"prev": "')
    assert (log.verify().torn, log.verify().problem) == (1, "")
    assert log.last() is None
    log.append("change", number=4)
    assert (log.verify().torn, log.verify().problem) == (1, "")
    assert log.entries()[-1]["number"] == 4
    text = log.path.read_text()
    log.path.write_text(text.replace('{"prev": "\n', '{"prev": "x\n'))
    assert log.verify().problem


def test_lines_from_before_the_chain_are_counted(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl")
    log.path.write_text('{"event": "publish"}\n{"event": "publish"}\n')
    log.append("change")
    report = log.verify()
    assert (report.unchained, report.problem, len(report.hashes)) == (2, "", 3)


@pytest.fixture
def registry(tmp_path):
    registry = PolicyRegistry(tmp_path / "registry")
    for number in range(3):
        registry.publish(write_linear_policy(tmp_path / f"{number}.onnx", SPEC, bias=number / 10))
    assert verify(registry).problems == ()
    return registry


def test_a_cut_off_end_of_the_audit_shows(registry):
    lines = registry.audit.path.read_text().splitlines(keepends=True)
    registry.audit.path.write_text("".join(lines[:-1]))
    assert "missing from the audit" in verify(registry).problems[0]


def test_a_new_history_shows_to_who_noted_the_head(registry, tmp_path):
    head = verify(registry).head
    assert verify(registry, known_head=head).problems == ()
    registry.rollback()
    assert verify(registry, known_head=head).problems == ()
    for path in ("history.jsonl", "current"):
        (registry.directory / path).unlink()
    registry.publish(tmp_path / "0.onnx")
    assert verify(registry).problems == ()
    assert "does not hold the entry" in verify(registry, known_head=head).problems[0]


def test_a_changed_pointer_shows(registry):
    pointer = registry.directory / "current"
    data = json.loads(pointer.read_text())
    data["versions"].reverse()
    pointer.write_text(json.dumps(data))
    assert "not what the audit says" in verify(registry).problems[0]


def test_an_old_pointer_put_back_shows(registry, tmp_path):
    pointer = registry.directory / "current"
    old = pointer.read_bytes()
    for number in (4, 5):
        registry.publish(write_linear_policy(tmp_path / f"{number}.onnx", SPEC, bias=number / 10))
    pointer.write_bytes(old)
    assert "the pointer is old" in verify(registry).problems[0]


def test_a_damaged_file_shows(registry, tmp_path):
    version = registry.previous_versions()[0]
    registry.path(version).write_bytes((tmp_path / "2.onnx").read_bytes())
    assert "damaged" in verify(registry).problems[0]
    registry.path(version).unlink()
    assert "cannot read" in verify(registry).problems[0]
