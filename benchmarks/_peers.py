"""Three usual ways to put a policy behind a socket, for `round_trip.py`: server processes and their clients.

    python benchmarks/_peers.py zmq|websocket|grpc POLICY.onnx PRIORITY

starts a server, which prints `ready ADDRESS`. Each is what a roboticist would write with the public library and its
fastest plain settings: no encryption, no compression, no checks, no deadlines, one client. All call `Policy.answer`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import zmq

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from deploy.onnx_policy import OnnxPolicy  # noqa: E402 (the repository root has to be on the path first)
from deploy.timing import use_real_time_priority  # noqa: E402
from mpo_robot.errors import ConfigError  # noqa: E402

FloatArray = npt.NDArray[np.float32]
READY = "ready "
METHOD = "/policy.Policy/Act"
_TIMEOUT_S = 5.0


def require(name: str) -> Any:
    """Import a package of the extra `bench`.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"this benchmark needs {name}: pip install 'mpo-robot[bench]'") from error


class Policy:
    """What every server calls: the policy, sampling as `mpo-robot serve` does."""

    def __init__(self, path: Path) -> None:
        self._policy = OnnxPolicy(path)
        self._rng = np.random.default_rng(0)

    def answer(self, observation: FloatArray) -> tuple[FloatArray, float]:
        """Action [A] and its log density."""
        result = self._policy.act(observation, True, self._rng)
        return result.action, result.log_prob


class Client(Protocol):
    """Asks one server."""

    def act(self, observation: FloatArray) -> FloatArray:
        """Action [A] for an observation [O]; raises if there is none."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


class Packer:
    """msgpack of mappings with raw float32 bytes in them: what is lean and usual."""

    def __init__(self) -> None:
        msgpack = require("msgpack")
        self.pack, self.unpack = msgpack.packb, msgpack.unpackb

    def request(self, observation: FloatArray) -> bytes:
        """From the client."""
        return self.pack({"observation": observation.tobytes()})

    def reply(self, policy: Policy, frame: bytes) -> bytes:
        """The server's answer to a request."""
        observation = np.frombuffer(self.unpack(frame)["observation"], np.float32)
        action, log_prob = policy.answer(observation)
        return self.pack({"action": action.tobytes(), "log_prob": log_prob})

    def action(self, frame: bytes) -> FloatArray:
        """The action in an answer."""
        return np.frombuffer(self.unpack(frame)["action"], np.float32)


def pack_array(value: Any) -> Any:
    """msgpack hook in the way of openpi's client: an array becomes a mapping with its bytes, type and shape."""
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"cannot send a {type(value).__name__}")


def unpack_array(value: dict[Any, Any]) -> Any:
    """Inverse of `pack_array`."""
    if b"__ndarray__" in value:
        return np.ndarray(buffer=value[b"data"], dtype=np.dtype(value[b"dtype"]), shape=value[b"shape"])
    if b"__npgeneric__" in value:
        return np.dtype(value[b"dtype"]).type(value[b"data"])
    return value


def serve_zmq(policy: Policy) -> None:
    """Plain REP socket, one message after the other."""
    packer, socket = Packer(), zmq.Context().socket(zmq.REP)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    _tell(f"tcp://127.0.0.1:{port}")
    while True:
        socket.send(packer.reply(policy, socket.recv()))


def serve_websocket(policy: Policy) -> None:
    """As openpi's policy server: asyncio, greets with metadata, then one answer per message with the arrays in it."""
    msgpack, server = require("msgpack"), require("websockets.asyncio.server")
    packer = msgpack.Packer(default=pack_array)

    async def talk(connection: Any) -> None:
        await connection.send(packer.pack({"policy": "benchmark"}))
        async for frame in connection:
            observation = msgpack.unpackb(frame, object_hook=unpack_array)["observation"]
            action, log_prob = policy.answer(observation)
            await connection.send(packer.pack({"actions": action, "log_prob": log_prob}))

    async def main() -> None:
        async with server.serve(talk, "127.0.0.1", 0, compression=None, max_size=None) as running:
            _tell(f"ws://127.0.0.1:{running.sockets[0].getsockname()[1]}")
            await running.serve_forever()

    asyncio.run(main())


def serve_grpc(policy: Policy) -> None:
    """Unary calls with bytes, which need no generated code; one worker, as a policy serves one caller at a time."""
    grpc, packer = require("grpc"), Packer()

    def act(frame: bytes, context: Any) -> bytes:
        return packer.reply(policy, frame)

    _, service, method = METHOD.split("/")
    handlers = {method: grpc.unary_unary_rpc_method_handler(act)}
    server = grpc.server(ThreadPoolExecutor(max_workers=1))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    _tell(f"127.0.0.1:{port}")
    server.wait_for_termination()


class ZmqClient:
    """REQ socket."""

    def __init__(self, address: str) -> None:
        self._packer, self._context = Packer(), zmq.Context()
        self._socket = self._context.socket(zmq.REQ)
        self._socket.linger, self._socket.rcvtimeo = 0, int(_TIMEOUT_S * 1e3)
        self._socket.connect(address)

    def act(self, observation: FloatArray) -> FloatArray:
        """See `Client`."""
        self._socket.send(self._packer.request(observation))
        return self._packer.action(self._socket.recv())

    def close(self) -> None:
        """See `Client`."""
        self._socket.close()
        self._context.term()


class WebsocketClient:
    """As openpi's client: synchronous, waits for the answer without a deadline."""

    def __init__(self, address: str) -> None:
        msgpack, client = require("msgpack"), require("websockets.sync.client")
        self._pack, self._unpack = msgpack.Packer(default=pack_array).pack, msgpack.unpackb
        self._open = contextlib.ExitStack()
        self._connection = self._open.enter_context(client.connect(address, compression=None, max_size=None))
        self._connection.recv(timeout=_TIMEOUT_S)  # the metadata

    def act(self, observation: FloatArray) -> FloatArray:
        """See `Client`."""
        self._connection.send(self._pack({"observation": observation}))
        return self._unpack(self._connection.recv(), object_hook=unpack_array)["actions"]

    def close(self) -> None:
        """See `Client`."""
        self._open.close()


class GrpcClient:
    """Insecure channel, unary calls."""

    def __init__(self, address: str) -> None:
        grpc, self._packer = require("grpc"), Packer()
        self._channel = grpc.insecure_channel(address)
        self._call = self._channel.unary_unary(METHOD)

    def act(self, observation: FloatArray) -> FloatArray:
        """See `Client`."""
        return self._packer.action(self._call(self._packer.request(observation)))

    def close(self) -> None:
        """See `Client`."""
        self._channel.close()


SERVERS: dict[str, Callable[[Policy], None]] = {"zmq": serve_zmq, "websocket": serve_websocket, "grpc": serve_grpc}
CLIENTS: dict[str, Callable[[str], Client]] = {"zmq": ZmqClient, "websocket": WebsocketClient, "grpc": GrpcClient}


class PeerProcess:
    """One of `SERVERS` in its own process, ended with the context. `address` is for its client."""

    def __init__(self, kind: str, policy: Path, priority: int = 0) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), kind, str(policy), str(priority)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith(READY):
            self.close()
            raise RuntimeError(f"the {kind} server did not start")
        self.address = line.removeprefix(READY).strip()

    def close(self) -> None:
        """End the process. May be called twice."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _tell(address: str) -> None:
    print(f"{READY}{address}", flush=True)


def main(arguments: list[str]) -> int:
    """Serve."""
    kind, path, priority = arguments
    if int(priority) and (problem := use_real_time_priority(int(priority))):
        print(problem, file=sys.stderr)
    SERVERS[kind](Policy(Path(path)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
