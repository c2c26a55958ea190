"""What identifies the graph of an ONNX file, from its bytes alone: a robot computer has no `onnx` package.

An ONNX file is one protobuf message, `ModelProto`: fields one after the other, each with its number in front.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

_METADATA_PROPS = 14  # field number in ModelProto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


def graph_hash(data: bytes) -> str:
    """SHA-256 (64 hex digits) of everything in an ONNX file but its metadata.

    Covers the graph with its weights, the operator sets and local functions: all that decides what the policy does.

    Raises:
        ValueError: not a sequence of protobuf fields.
    """
    view = memoryview(data)
    digest = hashlib.sha256()
    for number, start, end in _fields(view):
        if number != _METADATA_PROPS:
            digest.update(view[start:end])
    return digest.hexdigest()


def _fields(data: memoryview) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each field of a protobuf message."""
    position = 0
    while position < len(data):
        start = position
        key, position = _varint(data, position)
        kind = key & 7
        if kind == _VARINT:
            _, position = _varint(data, position)
        elif kind == _BYTES:
            size, position = _varint(data, position)
            position += size
        elif kind in (_FIXED32, _FIXED64):
            position += 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"unknown wire type {kind} at byte {start}")
        if position > len(data):
            raise ValueError(f"the field at byte {start} reaches beyond the end")
        yield key >> 3, start, position


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """Value of a variable-length integer and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError("cut off within a number")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"no end of the number before byte {position}")
