"""A TCP proxy that is told by lines of JSON on its standard input what to do to the traffic.

    python -m tests.support.soak_proxy TARGET_PORT [SEED]      prints its own port

`{"mode": "cut" | "delay" | "stall" | "corrupt", "seconds": s, "delay_s": s, "probability": p}`; after that it forwards
again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
from typing import Any


class Proxy:
    """Forwards connections to 127.0.0.1:`target`."""

    def __init__(self, target: int, seed: int) -> None:
        self._target = target
        self._random = random.Random(seed)
        self._order: dict[str, Any] = {"mode": "open"}
        self._until = 0.0
        self._writers: set[asyncio.StreamWriter] = set()

    def obey(self, order: dict[str, Any]) -> None:
        """Take an order."""
        self._order, self._until = order, asyncio.get_running_loop().time() + float(order["seconds"])
        if order["mode"] == "cut":
            for writer in self._writers:
                writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            if self._mode == "cut":
                return
            their_reader, their_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            return
        finally:
            if self._mode == "cut":
                writer.transport.abort()
        pair = {writer, their_writer}
        self._writers |= pair
        try:
            pumps = [asyncio.create_task(self._pump(reader, their_writer)),
                     asyncio.create_task(self._pump(their_reader, writer))]  # fmt: skip
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            self._writers -= pair
            for end in pair:
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                if self._mode == "delay":
                    await asyncio.sleep(float(self._order["delay_s"]))
                while self._mode == "stall":
                    await asyncio.sleep(0.01)
                if self._mode == "corrupt" and self._random.random() < self._order["probability"]:
                    data = self._spoil(data)
                writer.write(data)
                await writer.drain()

    def _spoil(self, data: bytes) -> bytes:
        spoilt = bytearray(data)
        spoilt[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
        return bytes(spoilt)

    @property
    def _mode(self) -> str:
        return str(self._order["mode"]) if asyncio.get_running_loop().time() < self._until else "open"


async def run(target: int, seed: int) -> None:
    """Serve until standard input is closed."""
    proxy = Proxy(target, seed)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while line := await orders.readline():
        proxy.obey(json.loads(line))
    server.close()


if __name__ == "__main__":
    asyncio.run(run(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
