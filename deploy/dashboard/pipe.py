"""Frames through a pipe to the page's process: a length of 4 bytes, then the content. The writer never waits."""

from __future__ import annotations

import os
from typing import BinaryIO

MAX_FRAME = 1 << 24


class FrameWriter:
    """Writing end. A frame that does not fit while the reader is behind is dropped, never half of it.

    Attributes:
        dropped: How many.
    """

    def __init__(self, descriptor: int) -> None:
        """Take a pipe's descriptor, which the caller closes."""
        os.set_blocking(descriptor, False)
        self.dropped = 0
        self._descriptor = descriptor
        self._rest = memoryview(b"")

    def write(self, data: bytes) -> bool:
        """Hand over a frame; False if it was dropped. Raises OSError if the reader is gone."""
        self._push()
        if self._rest:
            self.dropped += 1
            return False
        self._rest = memoryview(len(data).to_bytes(4, "big") + data)
        self._push()
        return True

    def _push(self) -> None:
        """Write what the pipe takes."""
        while self._rest:
            try:
                self._rest = self._rest[os.write(self._descriptor, self._rest) :]
            except BlockingIOError:
                return


def read_frame(stream: BinaryIO) -> bytes | None:
    """The next frame, waited for; None at the end of the stream, or if what comes is no frame."""
    head = stream.read(4)
    size = int.from_bytes(head, "big")
    if len(head) < 4 or size > MAX_FRAME:
        return None
    data = stream.read(size)
    return data if len(data) == size else None
