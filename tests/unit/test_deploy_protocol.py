import math
import typing

import msgspec
import numpy as np
import pytest

from deploy import protocol
from deploy.operations import COMMANDS
from mpo_robot.errors import ProtocolError
from tests.support.onnx_files import small_spec

SPEC = small_spec()
HASH = SPEC.spec_hash


def test_spec_round_trip():
    assert protocol.decode_spec(protocol.encode_spec(SPEC)) == SPEC


def test_a_frame_is_plain_msgpack_with_named_fields_and_little_endian_float32():
    observation = protocol.encode_array([1.0, -2.0, 0.5])
    frame = protocol.encode(protocol.ActRequest(**protocol.header(HASH, 7, 123), step_index=3, observation=observation))
    assert msgspec.msgpack.decode(frame) == {
        "type": "act_request",
        "protocol_version": 1,
        "spec_hash": HASH,
        "request_id": 7,
        "sent_ns": 123,
        "step_index": 3,
        "observation": b"\x00\x00\x80\x3f\x00\x00\x00\xc0\x00\x00\x00\x3f",
    }


def test_the_verbs_are_these_and_what_swaps_is_for_operators():
    tags = {kind.__struct_config__.tag for kind in typing.get_args(protocol.AnyMessage)}
    replies = {"welcome", "episode_ready", "act_reply", "episode_noted", "operated", "pong", "error"}
    assert tags - replies == {"hello", "begin_episode", "act_request", "end_episode", "ping", "operate"}
    assert not [name for name in COMMANDS if "stop" in name or "kill" in name]


def test_frames_over_the_limit_are_refused_on_both_sides():
    big = protocol.ActRequest(**protocol.header(HASH, 1, 0), step_index=0, observation=b"\0" * protocol.MAX_FRAME_BYTES)
    with pytest.raises(ProtocolError, match="over the limit"):
        protocol.encode(big)
    with pytest.raises(ProtocolError, match="over the limit"):
        protocol.decode(msgspec.msgpack.encode(big))


@pytest.mark.parametrize("data", [b"", b"\0" * 11, b"\0" * 16])
def test_arrays_of_another_length_are_refused(data):
    with pytest.raises(ProtocolError, match="expected 12"):
        protocol.decode_array(data, 3, "observation")


@pytest.mark.parametrize("size", [2, 500])
@pytest.mark.parametrize("bad", [[math.nan], [math.inf], [-math.inf], [math.inf, -math.inf]])
def test_arrays_that_are_not_finite_are_refused(bad, size):
    values = np.zeros(size)
    values[: len(bad)] = bad
    with pytest.raises(ProtocolError, match="NaN"):
        protocol.decode_array(protocol.encode_array(values), size, "action")


@pytest.mark.parametrize("size", [2, 500])
def test_the_largest_floats_are_finite(size):
    values = np.full(size, np.finfo(np.float32).max)
    np.testing.assert_array_equal(protocol.decode_array(protocol.encode_array(values), size, "x"), values)


@pytest.mark.parametrize("request_id", [-1, "1", 1.5, None, 2**64])
def test_request_ids_are_natural_numbers(request_id):
    fields = {"type": "ping", **protocol.header(HASH, 1, 0), "request_id": request_id}
    if request_id == 2**64:  # does not fit msgpack at all
        with pytest.raises(OverflowError):
            msgspec.msgpack.encode(fields)
        return
    with pytest.raises(ProtocolError):
        protocol.decode(msgspec.msgpack.encode(fields))


@pytest.mark.parametrize("spec_hash", ["", "a" * 63, "a" * 65, "a" * 100_000])
def test_spec_hashes_have_64_digits(spec_hash):
    with pytest.raises(ProtocolError):
        protocol.decode(msgspec.msgpack.encode({"type": "ping", **protocol.header(spec_hash, 1, 0)}))


@pytest.mark.parametrize("version", ["", "A" * 64, "a" * 63, "a" * 65, "../" * 22])
def test_a_version_to_resume_has_64_hex_digits(version):
    fields = {"episode_id": "e", "step_index": 0, "resume_policy_version": version}
    with pytest.raises(ProtocolError):
        protocol.decode(msgspec.msgpack.encode({"type": "begin_episode", **protocol.header(HASH, 1, 0), **fields}))


def test_a_future_version_with_other_fields_is_named_as_such():
    with pytest.raises(ProtocolError, match="version 2 is not supported"):
        protocol.decode(msgspec.msgpack.encode({"type": "novelty", "protocol_version": 2, "more": [1, 2]}))


def test_a_known_message_of_another_version_is_refused():
    frame = protocol.encode(protocol.Ping(**{**protocol.header(HASH, 1, 0), "protocol_version": 0}))
    with pytest.raises(ProtocolError, match="version 0 is not supported"):
        protocol.decode(frame)


def test_unknown_extra_fields_are_ignored():
    fields = {"type": "ping", **protocol.header(HASH, 1, 0), "later_addition": {"a": 1}}
    assert protocol.decode(msgspec.msgpack.encode(fields)) == protocol.Ping(**protocol.header(HASH, 1, 0))


def test_an_unknown_message_of_this_version_is_malformed():
    with pytest.raises(ProtocolError, match="not a message of protocol version 1"):
        protocol.decode(msgspec.msgpack.encode({"type": "novelty", **protocol.header(HASH, 1, 0)}))


def test_fields_that_were_added_within_the_version_may_be_absent():
    header = protocol.header(HASH, 1, 0)
    welcome = {"policy_version": "a" * 64, "spec_json": protocol.encode_spec(SPEC), "stochastic": True}
    assert protocol.decode(msgspec.msgpack.encode({"type": "welcome", **header, **welcome})).takes_outcomes is False
    old = protocol.decode(msgspec.msgpack.encode({"type": "operate", **header, "command": "status"}))
    assert (old.reason, old.token, old.expect) == ("", "", "")
