import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from deploy import protocol
from mpo_robot.errors import ProtocolError
from tests.support.messages import BODIES, LETTERS, messages


def decode_or_refuse(frame):
    """What the property says: a message or ProtocolError, nothing else."""
    try:
        return protocol.decode(frame)
    except ProtocolError:
        return None


@given(messages)
def test_decode_of_encode_is_the_message(message):
    assert protocol.decode(protocol.encode(message)) == message


@given(st.binary(max_size=300))
@example(b"")
@example(b"\xc1")
@example(b"\x91" * 5000)
@example(b"\x81\xa4type" * 3000)
@example(b"\xdf\xff\xff\xff\xff")
@example(b"\xc6\xff\xff\xff\xff" + b"x" * 10)
def test_any_bytes_give_a_message_or_a_protocol_error(data):
    decode_or_refuse(data)


@given(messages, st.data())
def test_a_damaged_frame_gives_a_message_or_a_protocol_error(message, data):
    frame = bytearray(protocol.encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    decode_or_refuse(bytes(frame))
    whole = protocol.encode(message)
    assert decode_or_refuse(whole[: data.draw(st.integers(0, len(whole) - 1))]) is None


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(LETTERS, max_size=20)
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(LETTERS, max_size=20), inner, max_size=4),
    max_leaves=20,
)


@given(st.sampled_from(list(BODIES)), st.dictionaries(st.sampled_from(["request_id", "protocol_version"]), JSON))
def test_valid_msgpack_of_the_wrong_shape_is_refused(kind, fields):
    frame = msgspec.msgpack.encode({"type": kind.__struct_config__.tag, **fields})
    assert decode_or_refuse(frame) is None


@given(messages, st.data())
def test_a_missing_or_mistyped_field_is_refused(message, data):
    fields = {"type": message.__struct_config__.tag, **msgspec.structs.asdict(message)}
    name = data.draw(st.sampled_from(["protocol_version", "spec_hash", "request_id", "sent_ns"]))
    if data.draw(st.booleans()):
        del fields[name]
    else:
        fields[name] = data.draw(st.sampled_from([None, 1.5, [], {}, "x", b"x", True]))
    with pytest.raises(ProtocolError):
        protocol.decode(msgspec.msgpack.encode(fields))


@given(messages, st.integers(-(2**31), 2**31).filter(lambda version: version != protocol.PROTOCOL_VERSION))
def test_another_protocol_version_is_refused_by_number(message, version):
    frame = protocol.encode(msgspec.structs.replace(message, protocol_version=version))
    with pytest.raises(ProtocolError, match=f"version {version} "):
        protocol.decode(frame)


@given(arrays(np.float32, st.integers(0, 50), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_arrays_come_back_bit_for_bit(values):
    back = protocol.decode_array(protocol.encode_array(values), len(values), "x")
    assert back.tobytes() == values.tobytes()
    assert back.dtype == np.float32
    assert back.flags.writeable


@given(st.binary(max_size=100), st.integers(0, 20))
def test_any_array_bytes_give_finite_values_or_a_protocol_error(data, size):
    try:
        values = protocol.decode_array(data, size, "x")
    except ProtocolError:
        return
    assert values.shape == (size,)
    assert np.isfinite(values).all()


@given(st.text(LETTERS, max_size=200) | JSON.map(lambda value: msgspec.json.encode(value).decode()))
@example("[" * 100_000)
@example('{"schema_version": 1e999}')
@example('{"schema_version": 1, "control_dt": 1, "observation": 3, "command": [null]}')
@example('{"schema_version": 1, "control_dt": 1, "observation": ["x"], "command": ["y"]}')
def test_any_text_gives_a_spec_or_a_protocol_error(text):
    with pytest.raises(ProtocolError):  # no text drawn here holds a whole spec
        protocol.decode_spec(text)
