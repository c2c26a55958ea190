"""The servers that `benchmarks/round_trip.py` compares ours with: each in its own process, with its own client."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks._peers import CLIENTS, SERVERS, PeerProcess
from tests.support.onnx_files import small_spec, write_linear_policy


@pytest.mark.parametrize("kind", SERVERS)
def test_every_peer_gives_the_action_of_the_policy(kind: str, tmp_path: Path) -> None:
    for package in ("msgpack", {"zmq": "zmq", "websocket": "websockets", "grpc": "grpc"}[kind]):
        pytest.importorskip(package)
    spec = small_spec()
    path = write_linear_policy(tmp_path / "p.onnx", spec, weight=np.eye(3, 2), stddev=1e-6)
    observation = np.array([0.5, -0.25, 0.0], np.float32)
    with PeerProcess(kind, path) as server:
        client = CLIENTS[kind](server.address)
        for _ in range(2):
            np.testing.assert_allclose(client.act(observation), [0.5, -0.25], atol=1e-4)
        client.close()
    assert server.process.returncode is not None
