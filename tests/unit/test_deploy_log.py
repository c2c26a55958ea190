from __future__ import annotations

import dataclasses
import errno
import io
import json
import math
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from mcap.exceptions import EndOfFile
from mcap.reader import make_reader
from mcap.records import Message
from mcap.stream_reader import StreamReader

from deploy import log_encoding, log_writer
from deploy.log_format import decode_step, encode_step, step_json_schema
from deploy.log_reader import is_being_written, parse_log, read_log
from deploy.log_writer import EpisodeLogWriter, LogConfig
from mpo_robot.episode import Source, episodes_from_records
from mpo_robot.errors import ConfigError, EpisodeError
from tests.support.records import SPEC, identity, make_records


def write_log(directory: Path, count: int = 5, *, one_by_one: bool = False, **settings: object) -> Path:
    writer = EpisodeLogWriter(directory, SPEC, "test", robot="bench", config=LogConfig(**settings))  # type: ignore[arg-type]
    writer.describe({"mass": 1.5}, 10, 20)
    for record in make_records(count):
        assert writer.append(record)
        while one_by_one and steps_in(writer.path) <= record.step_index:
            pass  # one chunk for each record, as in a control loop
    writer.close({"end_reason": "truncated"})
    assert writer.error is None
    return writer.path


def steps_in(path: Path) -> int:
    """Steps in a log that is being written; it may not have its description yet."""
    try:
        return len(read_log(path).records)
    except EpisodeError:
        return 0


def test_closed_log_gives_back_every_record_and_description(tmp_path: Path) -> None:
    path = write_log(tmp_path)
    contents = read_log(path)
    assert path.name == "test.mcap"
    assert contents.complete
    assert contents.problem == ""
    assert contents.recovered_bytes == contents.total_bytes == path.stat().st_size
    assert [identity(record) for record in contents.records] == [identity(record) for record in make_records(5)]
    assert contents.spec == SPEC
    assert contents.metadata["robot"] == "bench"
    assert contents.metadata["info"] == {"mass": 1.5}
    assert (contents.metadata["monotonic_ns"], contents.metadata["wall_time_ns"]) == (10, 20)
    assert contents.metadata["statistics"] == {
        "end_reason": "truncated",
        "log_written": 5,
        "log_dropped": 0,
        "log_parts": 1,
    }


def test_records_become_an_episode_bit_for_bit(tmp_path: Path) -> None:
    records = make_records(5)
    (episode,) = episodes_from_records(read_log(write_log(tmp_path)).records, SPEC)
    assert episode.observations[2].tobytes() == records[2].observation.tobytes()
    assert episode.actions[4].tobytes() == records[4].policy_action.tobytes()
    assert episode.trace_valid.all()
    assert not episode.terminated


def test_float32_extremes_survive_json() -> None:
    odd = np.array([np.nan, np.inf, -np.inf], np.float32)
    tiny = np.array([np.finfo(np.float32).smallest_subnormal, -0.0, np.finfo(np.float32).max], np.float32)
    record = dataclasses.replace(
        make_records(1)[0],
        observation=odd,
        next_observation=tiny,
        behavior_log_prob=math.nan,
        reward=-math.inf,
        source=Source.FALLBACK,
    )
    data = encode_step(record)
    json.loads(data, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    back = decode_step(data)
    np.testing.assert_array_equal(back.observation, odd)
    assert back.next_observation.tobytes() == tiny.tobytes()
    assert math.isnan(back.behavior_log_prob)
    assert back.reward == -math.inf
    assert back.source is Source.FALLBACK


def test_json_schema_names_exactly_the_written_fields() -> None:
    schema = json.loads(step_json_schema())
    assert set(schema["properties"]) == set(json.loads(encode_step(make_records(1)[0])))


def test_standard_reader_opens_the_file_with_crc_checks(tmp_path: Path) -> None:
    path = write_log(tmp_path, signals=True)
    with path.open("rb") as stream:
        reader = make_reader(stream, validate_crcs=True)
        summary = reader.get_summary()
        assert summary is not None
        assert summary.statistics is not None
        assert summary.statistics.message_count == 10
        assert {schema.encoding for schema in summary.schemas.values()} == {"jsonschema"}
        steps = [json.loads(message.data) for _, _, message in reader.iter_messages("/step")]
        signals = [json.loads(message.data) for _, _, message in reader.iter_messages("/signals")]
    assert [step["step_index"] for step in steps] == list(range(5))
    np.testing.assert_array_equal(np.float32(signals[3]["observation"]["state"]), make_records(5)[3].observation)
    assert signals[3]["applied_command"].keys() == {"motor"}


def test_stream_reader_of_the_mcap_library_reads_a_cut_off_file(tmp_path: Path) -> None:
    data = write_log(tmp_path, one_by_one=True).read_bytes()
    cut = data[: data.index(b'"step_index":4')]
    steps = []

    def read_to_the_end() -> None:
        for record in StreamReader(io.BytesIO(cut), validate_crcs=True).records:
            if isinstance(record, Message):
                steps.append(json.loads(record.data)["step_index"])

    with pytest.raises(EndOfFile):
        read_to_the_end()
    assert steps == [0, 1, 2, 3]


def test_every_record_reaches_the_file_before_close(tmp_path: Path) -> None:
    writer = EpisodeLogWriter(tmp_path, SPEC, "test", config=LogConfig(fsync="step"))
    records = make_records(3)
    for record in records:
        writer.append(record)
    deadline = threading.Event()
    while steps_in(writer.path) < 3:
        assert not deadline.wait(0.01)
    contents = read_log(writer.path)
    assert not contents.complete
    assert "no end record" in contents.problem
    assert is_being_written(writer.path)
    writer.close()
    assert not is_being_written(writer.path)


def test_flush_interval_collects_records_in_one_chunk(tmp_path: Path) -> None:
    path = write_log(tmp_path, count=20, flush_interval_s=60.0)
    assert len(read_log(path).records) == 20
    with path.open("rb") as stream:
        summary = make_reader(stream).get_summary()
    assert summary is not None
    assert len(summary.chunk_indexes) == 1


def test_full_queue_drops_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    taken = threading.Event()

    def slow_encode(record: object) -> bytes:
        taken.set()
        assert release.wait(30)
        return encode_step(record)  # type: ignore[arg-type]

    monkeypatch.setattr(log_encoding, "encode_step", slow_encode)
    writer = EpisodeLogWriter(tmp_path, SPEC, "test", config=LogConfig(queue_size=2))
    records = make_records(5)
    assert writer.append(records[0])
    assert taken.wait(30)  # the thread is busy with the first, so the queue is empty
    assert [writer.append(record) for record in records[1:]] == [True, True, False, False]
    release.set()
    writer.close()
    assert writer.dropped == 2
    contents = read_log(writer.path)
    assert [record.step_index for record in contents.records] == [0, 1, 2]
    assert contents.metadata["statistics"]["log_dropped"] == 2


def test_write_error_is_kept_and_never_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full_disk)
    writer = EpisodeLogWriter(tmp_path, SPEC, "test", config=LogConfig(fsync="step"))
    writer.append(make_records(1)[0])
    writer.close()
    assert isinstance(writer.error, OSError)
    assert writer.dropped == 1
    assert not writer.append(make_records(1)[0])


def test_record_that_cannot_be_encoded_does_not_kill_the_writer_thread(tmp_path: Path) -> None:
    writer = EpisodeLogWriter(tmp_path, SPEC, "test")
    good, bad = make_records(2)
    writer.append(good)
    writer.append(dataclasses.replace(bad, latency_ns=object()))  # type: ignore[arg-type]
    writer.close()
    assert isinstance(writer.error, TypeError)
    contents = read_log(writer.path)
    assert contents.complete, "the error concerns one record, not the file"
    assert [record.step_index for record in contents.records] == [0]
    assert writer.dropped == contents.metadata["statistics"]["log_dropped"] == 1


def test_record_that_mcap_cannot_express_spoils_no_chunk(tmp_path: Path) -> None:
    writer = EpisodeLogWriter(tmp_path, SPEC, "test", config=LogConfig(flush_interval_s=60.0))
    records = make_records(3)
    for record in (records[0], dataclasses.replace(records[1], wall_time_ns=-1), records[2]):
        writer.append(record)
    writer.close()
    assert "does not fit into an MCAP message" in str(writer.error)
    contents = read_log(writer.path)
    assert contents.complete
    assert [record.step_index for record in contents.records] == [0, 2]


def test_unfit_steps_are_kept_apart(tmp_path: Path) -> None:
    writer = EpisodeLogWriter(tmp_path, SPEC, "test")
    records = make_records(3)
    writer.append(records[0])
    writer.append_invalid(records[1])
    writer.append(records[2])
    writer.close()
    contents = read_log(writer.path)
    assert [record.step_index for record in contents.records] == [0, 2]
    assert [record.step_index for record in contents.invalid_records] == [1]
    assert len(episodes_from_records(contents.records, SPEC)) == 2


def test_damage_in_the_middle_costs_one_record_and_nothing_behind_it(tmp_path: Path) -> None:
    path = write_log(tmp_path, count=6, one_by_one=True)
    data = bytearray(path.read_bytes())
    third = data.index(b'"step_index":3')
    data[third + 20] ^= 0x10
    path.write_bytes(data)
    contents = read_log(path)
    assert [record.step_index for record in contents.records] == [0, 1, 2, 4, 5]
    assert not contents.complete
    assert "damaged chunk record (crc" in contents.problem
    assert contents.metadata["statistics"]["log_written"] == 6
    assert 500 < contents.total_bytes - contents.recovered_bytes < 3000
    # The gap starts a new part: no transition joins the steps on both sides of it.
    assert [len(part) for part in episodes_from_records(contents.records, SPEC)] == [3, 2]


def test_every_single_damaged_byte_costs_one_record_at_most(tmp_path: Path) -> None:
    data = write_log(tmp_path, count=4, one_by_one=True).read_bytes()
    expected = [identity(record) for record in make_records(4)]
    begin = data.index(b'"step_index":0') - 300  # behind the description, without which nothing can be read
    rng = np.random.default_rng(0)
    for position in range(begin, len(data), 13):
        damaged = bytearray(data)
        damaged[position] ^= int(rng.integers(1, 256))
        found = [identity(record) for record in parse_log(bytes(damaged), "damaged").records]
        assert found == [item for item in expected if item in found]
        assert len(found) >= 3, f"byte {position}"


def test_damaged_lengths_do_not_swallow_intact_records(tmp_path: Path) -> None:
    data = write_log(tmp_path, count=6, one_by_one=True).read_bytes()
    texts = [data.index(b'"step_index":%d' % index) for index in range(6)]
    # Of the chunk with step 2 and of the message index behind it: as if they reached over steps 3 and 4.
    chunk = data.rindex(b"\x06", 0, texts[2] - 60)
    index = data.rindex(b"\x07", texts[2], texts[3])
    for start, kept in ((chunk, [0, 1, 3, 4, 5]), (index, [0, 1, 2, 3, 4, 5])):
        damaged = bytearray(data)
        length = int.from_bytes(data[start + 1 : start + 9], "little")
        reach = texts[5] - start - 400
        assert length < reach
        damaged[start + 1 : start + 9] = reach.to_bytes(8, "little")
        contents = parse_log(bytes(damaged), "damaged")
        assert [record.step_index for record in contents.records] == kept
        assert not contents.complete


def test_topics_of_a_damaged_first_chunk_come_from_the_summary_if_that_is_intact(tmp_path: Path) -> None:
    data = write_log(tmp_path, count=3, one_by_one=True).read_bytes()
    damaged = bytearray(data)
    damaged[data.index(b"/step")] ^= 1
    contents = parse_log(bytes(damaged), "damaged")
    assert [record.step_index for record in contents.records] == [1, 2]  # the first chunk holds step 0 as well
    assert not contents.complete
    damaged[data.rindex(b"/step")] ^= 1  # now nothing trustworthy says which channel holds valid steps
    contents = parse_log(bytes(damaged), "damaged")
    assert contents.records == ()
    assert "description of channel" in contents.problem


def test_file_that_ends_in_a_block_of_zeros_keeps_the_records(tmp_path: Path) -> None:
    path = write_log(tmp_path, count=3, one_by_one=True)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b'"step_index":2')] + bytes(4096))
    contents = read_log(path)
    assert [record.step_index for record in contents.records] == [0, 1]
    assert not contents.complete


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89MCAP0\r\n", b"\x89MCAP0\r\n" + bytes(range(256))])
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.mcap"
    path.write_bytes(content)
    with pytest.raises(EpisodeError, match=r"x\.mcap"):
        read_log(path)


def test_damaged_description_is_refused(tmp_path: Path) -> None:
    path = write_log(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data.replace(b'\\"control_dt\\": 0.02', b'\\"control_dt\\": 0.03').replace(b"0.02", b"0.03", 1))
    with pytest.raises(EpisodeError, match="checksum"):
        read_log(path)


def test_missing_file_and_other_schema_version_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EpisodeError, match="cannot read"):
        read_log(tmp_path / "none.mcap")
    with pytest.raises(EpisodeError, match="cannot read"):
        is_being_written(tmp_path / "none.mcap")
    monkeypatch.setattr(log_writer, "STEP_SCHEMA_VERSION", 99)
    with pytest.raises(EpisodeError, match="schema version 99"):
        read_log(write_log(tmp_path))


def test_description_comes_first_and_once(tmp_path: Path) -> None:
    writer = EpisodeLogWriter(tmp_path, SPEC, "test")
    writer.append(make_records(1)[0])
    with pytest.raises(ValueError, match="before its first step"):
        writer.describe({}, 0, 0)
    writer.close()
    assert read_log(writer.path).metadata["info"] == {}


def test_discarded_log_leaves_no_file(tmp_path: Path) -> None:
    writer = EpisodeLogWriter(tmp_path, SPEC, "test")
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_log_is_never_overwritten_and_names_are_checked(tmp_path: Path) -> None:
    write_log(tmp_path)
    with pytest.raises(EpisodeError, match="never overwritten"):
        EpisodeLogWriter(tmp_path, SPEC, "test")
    with pytest.raises(EpisodeError, match="cannot name a file"):
        EpisodeLogWriter(tmp_path, SPEC, "../escape")
    (tmp_path / "file").touch()
    with pytest.raises(EpisodeError, match="cannot create"):
        EpisodeLogWriter(tmp_path / "file" / "deeper", SPEC, "test")


def test_log_config_refuses_senseless_values() -> None:
    with pytest.raises(ConfigError, match="queue_size"):
        LogConfig(queue_size=0)
    with pytest.raises(ConfigError, match="flush_interval_s"):
        LogConfig(flush_interval_s=-1.0)
