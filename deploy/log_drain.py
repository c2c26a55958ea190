"""Take from a queue what waits in it, and for a while what comes."""

from __future__ import annotations

import queue
import time
from typing import TypeVar

T = TypeVar("T")


def drain(source: queue.SimpleQueue[T], seconds: float, end: type) -> list[T]:
    """At least one item; waits for the first, then collects for `seconds`, or until an item of type `end` comes.

    Such an item is the last that anybody puts into the queue, so it is the last of the list.
    """
    items = [source.get()]
    until = time.monotonic() + seconds
    while not isinstance(items[-1], end) and (left := until - time.monotonic()) > 0:
        try:
            items.append(source.get(timeout=left))
        except queue.Empty:
            break
    while not source.empty():
        items.append(source.get())
    return items
