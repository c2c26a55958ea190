"""`KeyChecker`: answers ZeroMQ's question who may connect (ZAP, RFC 27), on a thread of its own."""

from __future__ import annotations

import logging
import threading

import zmq
from zmq.utils import z85

from deploy.allow_list import AllowList

DOMAIN = "mpo_robot"
_ENDPOINT = "inproc://zeromq.zap.01"
_VERSION = b"1.0"
_POLL_MS = 100
_log = logging.getLogger(__name__)


class KeyChecker:
    """Lets in the CURVE keys of an allow-list, which it looks at anew at every handshake.

    The key becomes the User-Id of every message of the connection. Others are turned away as for now (code 300), so
    that a client whose key is added later gets in by itself.

    Args:
        context: Of the sockets to be guarded.
        allowed: Who may.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], allowed: AllowList) -> None:
        self._allowed = allowed
        self._stopping = threading.Event()
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.rcvtimeo = _POLL_MS
        self._socket.bind(_ENDPOINT)
        self._thread = threading.Thread(target=self._run, name="key-check", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; from then on nobody gets in. May be called twice."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    request = self._socket.recv_multipart()
                except zmq.Again:
                    continue
                self._socket.send_multipart(self.answer(request))
        finally:
            self._socket.close()

    def answer(self, request: list[bytes]) -> list[bytes]:
        """Reply to a request: version, id, domain, address, connection's name, mechanism, credentials."""
        number = request[1] if len(request) > 1 else b""
        try:
            key = self._key_of(request)
            self._allowed.refresh()
            entry = self._allowed.find(key)
        except Exception as error:  # nothing may end this thread
            _log.error("a handshake was refused: %s", error)
            entry = None
        if entry is None:
            return [_VERSION, number, b"300", b"not allowed", b"", b""]
        return [_VERSION, number, b"200", b"OK", entry.key.encode(), b""]

    @staticmethod
    def _key_of(request: list[bytes]) -> str:
        if len(request) != 7 or request[0] != _VERSION or request[2] != DOMAIN.encode() or request[5] != b"CURVE":
            raise ValueError("not a CURVE request for this server")
        if len(request[6]) != 32:
            raise ValueError(f"a key has 32 bytes, not {len(request[6])}")
        return z85.encode(request[6]).decode()
