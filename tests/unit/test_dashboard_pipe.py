"""The pipe to the page's process: whole frames or none, and a writer that never waits."""

import os

import pytest

from deploy.dashboard.pipe import MAX_FRAME, FrameWriter, read_frame


@pytest.fixture
def pipe():
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as reader:
        yield reader, write_end
        if write_end is not None:
            os.close(write_end)


def test_frames_arrive_whole_and_in_order(pipe):
    reader, descriptor = pipe
    writer = FrameWriter(descriptor)
    for data in (b"one", b"", b"three" * 100):
        assert writer.write(data)
        assert read_frame(reader) == data


def test_a_reader_that_hangs_costs_frames_and_no_time(pipe):
    """More than the pipe takes: the writer returns all the same, and the reader gets nothing cut off afterwards."""
    reader, descriptor = pipe
    writer = FrameWriter(descriptor)
    frames = [bytes([number]) * 50_000 for number in range(20)]
    taken = [frame for frame in frames if writer.write(frame)]
    assert 0 < len(taken) < len(frames)
    assert writer.dropped == len(frames) - len(taken)
    got = []
    for _ in taken[:-1]:
        got.append(read_frame(reader))
        writer.write(b"next")  # pushes on what was half written
    got.append(read_frame(reader))
    assert got == taken
    assert read_frame(reader) == b"next"


def test_a_reader_that_is_gone_is_an_error():
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        with pytest.raises(BrokenPipeError):
            FrameWriter(write_end).write(b"x")
    finally:
        os.close(write_end)


@pytest.mark.parametrize("data", [b"", b"\0\0", b"\0\0\0\5four", (MAX_FRAME + 1).to_bytes(4, "big") + b"x"])
def test_what_is_no_frame_ends_the_stream(data, tmp_path):
    path = tmp_path / "stream"
    path.write_bytes(data)
    with path.open("rb") as stream:
        assert read_frame(stream) is None
