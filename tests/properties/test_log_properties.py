from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mcap.opcode import Opcode
from mcap.writer import MCAP0_MAGIC

from deploy.log_checks import check_episode
from deploy.log_format import decode_step, encode_step
from deploy.log_reader import parse_log, read_log
from deploy.log_repair import repair_log
from deploy.log_writer import EpisodeLogWriter
from mpo_robot.episode import episodes_from_records
from mpo_robot.errors import EpisodeError
from tests.support.onnx_files import small_spec
from tests.support.records import identity, make_records
from tests.support.robot_process import wait_until

SPEC = small_spec(observation_size=1, action_size=1)
COUNT = 2


@pytest.fixture(scope="module")
def log_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small closed log, one chunk per record."""
    writer = EpisodeLogWriter(tmp_path_factory.mktemp("log"), SPEC, "test")
    for index, record in enumerate(make_records(COUNT, SPEC)):
        writer.append(record)
        while b'"step_index":%d' % index not in writer.path.read_bytes():
            pass
    writer.close()
    return writer.path.read_bytes()


def test_truncation_at_every_byte_keeps_exactly_the_complete_prefix(log_bytes: bytes) -> None:
    expected = [identity(record) for record in make_records(COUNT, SPEC)]
    # A record is complete when its chunk is, and a chunk ends with the JSON of its record.
    texts = [encode_step(record) for record in make_records(COUNT, SPEC)]
    ends = [log_bytes.index(text) + len(text) for text in texts]
    refused = 0
    for length in range(len(log_bytes)):
        try:
            contents = parse_log(log_bytes[:length], "cut")
        except EpisodeError:
            assert refused == length, "a longer prefix was refused after a shorter one was read"
            refused += 1
            continue
        whole = sum(end <= length for end in ends)
        assert [identity(record) for record in contents.records] == expected[:whole]
        assert not contents.complete
        assert contents.problem
        assert contents.recovered_bytes <= length
    assert refused < ends[0] - len(texts[0])
    assert parse_log(log_bytes, "whole").complete


@given(data=st.data())
def test_flipped_bytes_never_invent_or_change_a_record(log_bytes: bytes, data: st.DataObject) -> None:
    content = bytearray(log_bytes)
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
        content[position] = data.draw(st.integers(0, 255))
    expected = [identity(record) for record in make_records(COUNT, SPEC)]
    try:
        contents = parse_log(bytes(content), "damaged")
    except EpisodeError:
        return
    found = [identity(record) for record in contents.records]
    assert found == [item for item in expected if item in found], "invented, changed, repeated or out of order"
    if contents.complete:
        assert len(found) == COUNT


LONG = 24


@pytest.fixture(scope="module")
def long_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed log, one chunk per record. A path: hypothesis prints what it calls a test with."""
    writer = EpisodeLogWriter(tmp_path_factory.mktemp("long"), SPEC, "test")
    for index, record in enumerate(make_records(LONG, SPEC)):
        writer.append(record)
        wait_until(lambda index=index: b'"step_index":%d,' % index in writer.path.read_bytes())
    writer.close({"end_reason": "truncated"})
    return writer.path


PLACES = st.integers(0, 9_999)  # in 1/10,000 of the file's length
CHANGES = st.lists(
    st.tuples(st.sampled_from(["copy", "copy", "copy", "cut", "flip"]), PLACES, PLACES, PLACES), min_size=1, max_size=4
)


def damage(content: bytes, changes: list[tuple[str, int, int, int]]) -> bytes:
    """Copy ranges to places, cut the end off, flip bits."""
    data = bytearray(content)
    for kind, start, end, target in changes:
        start, end, target = (place * len(data) // 10_000 for place in (start, end, target))
        if kind == "copy":
            data[target:target] = data[min(start, end) : max(start, end)]
        elif kind == "cut":
            del data[max(start, len(data) // 4) :]
        else:
            data[start] ^= 1 << end % 8
    return bytes(data)


@given(changes=CHANGES)
def test_damaged_logs_give_each_record_once_and_repair_leaves_nothing_to_mend(
    long_log: Path, changes: list[tuple[str, int, int, int]]
) -> None:
    whole_log = long_log.read_bytes()
    content = damage(whole_log, changes)
    expected = [identity(record) for record in make_records(LONG, SPEC)]
    try:
        contents = parse_log(content, "damaged")
    except EpisodeError:
        return
    found = [identity(record) for record in contents.records]
    assert found == [item for item in expected if item in found], "invented, changed, repeated or out of order"
    if content != whole_log:
        assert contents.problem
    with tempfile.TemporaryDirectory() as folder:
        source, mended = Path(folder, "damaged.mcap"), Path(folder, "mended.mcap")
        source.write_bytes(content)
        repair_log([source], mended)
        whole = read_log(mended)
    assert [identity(record) for record in whole.records] == found
    problems = [finding.text for finding in check_episode(whole) if finding.is_problem]
    assert all(text.startswith(("missing steps", "no completed step")) for text in problems), problems


def test_a_copied_range_counts_each_step_once(long_log: Path) -> None:
    """Each chunk copied to behind itself and to the front: the copies pass every checksum."""
    data = long_log.read_bytes()
    chunks, position = [], len(MCAP0_MAGIC)  # by their lengths: the times in a log may look like a chunk's first bytes
    while position < len(data) - len(MCAP0_MAGIC):
        end = position + 9 + int.from_bytes(data[position + 1 : position + 9], "little")
        if data[position] == Opcode.CHUNK:
            chunks.append((position, end))
        position = end
    with_steps = [(start, end) for start, end in chunks if b'"step_index":' in data[start:end]]
    assert len(with_steps) > 3
    for start, end in with_steps[1:]:
        for target in (end, with_steps[1][0], with_steps[-1][1]):
            contents = parse_log(data[:target] + data[start:end] + data[target:], "copied")
            assert [record.step_index for record in contents.records] == list(range(LONG))
            assert contents.problem.startswith("messages that are there more than once: ")
            assert not contents.complete
            assert len(episodes_from_records(contents.records, SPEC)[0]) == LONG


@given(
    vector=hnp.arrays(np.float32, 3, elements=st.floats(width=32)),
    log_prob=st.floats(),
    reward=st.floats(),
)
def test_json_round_trip_is_exact(vector: np.ndarray, log_prob: float, reward: float) -> None:
    record = dataclasses.replace(make_records(1)[0], observation=vector, behavior_log_prob=log_prob, reward=reward)
    back = decode_step(encode_step(record))
    finite = ~np.isnan(vector)
    assert back.observation[finite].tobytes() == vector[finite].tobytes()
    assert np.isnan(back.observation[~finite]).all()
    assert np.float64(back.behavior_log_prob).tobytes() == np.float64(log_prob).tobytes() or np.isnan(log_prob)
    assert np.float64(back.reward).tobytes() == np.float64(reward).tobytes() or np.isnan(reward)


@given(junk=st.binary(max_size=200))
def test_any_bytes_give_a_step_or_an_error(junk: bytes) -> None:
    with pytest.raises(EpisodeError):
        decode_step(junk)
