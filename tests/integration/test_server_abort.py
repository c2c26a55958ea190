"""A connection that breaks while its messages pile up must not end the server, as libzmq's heartbeats would."""

import subprocess
import sys
from pathlib import Path

from tests.support.onnx_files import small_spec, write_linear_policy

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import socket, struct, sys, time
from deploy.registry import PolicyRegistry
from deploy.server import PolicyServer, ServerConfig
from tests.support.fuzzing import StreamFuzzer

registry = PolicyRegistry(sys.argv[1] + "/registry")
registry.publish(sys.argv[1] + "/p.onnx")
with PolicyServer(registry, ServerConfig(endpoint="tcp://127.0.0.1:*")) as server:
    host, _, port = server.endpoint.removeprefix("tcp://").rpartition(":")
    with socket.create_connection((host, int(port))) as peer:
        peer.sendall(StreamFuzzer.GREETING)
        time.sleep(0.3)
        peer.sendall(StreamFuzzer.READY)
        time.sleep(0.3)
        peer.settimeout(0.5)
        try:
            while True:  # nobody reads, so that it gets full
                peer.sendall(b"\\x00\\x64" + b"x" * 100)
        except TimeoutError:
            pass
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # ends with a reset
    time.sleep(3.0)
    for _ in range(10):
        server.serve_once(10)
    print("alive", server.statistics.frames > 0)
"""


def test_a_connection_that_breaks_under_load_is_survived(tmp_path):
    write_linear_policy(tmp_path / "p.onnx", small_spec())
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "alive True\n"), done.stderr
