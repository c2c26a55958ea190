from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deploy.log_format import decode_step, encode_step
from deploy.log_reader import parse_log
from deploy.log_writer import EpisodeLogWriter
from mpo_robot.errors import EpisodeError
from tests.support.onnx_files import small_spec
from tests.support.records import identity, make_records

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
