"""The page's process: serves HTTP on loopback until its feed ends, which is when the policy server does."""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
from waitress.server import create_server

from deploy.dashboard.app import make_app
from deploy.dashboard.commands import Commands
from deploy.dashboard.config import DashboardConfig
from deploy.dashboard.fleet import Fleet
from deploy.dashboard.gate import Gate
from deploy.dashboard.monitor import Monitor
from deploy.dashboard.pipe import read_frame
from deploy.dashboard.registry_view import RegistryView
from deploy.telemetry import decode
from mpo_robot.config import build
from mpo_robot.errors import MpoRobotError

_LOOPBACK = "127.0.0.1"
_NICE = 5  # the server comes first
_HTTP = {
    "threads": 8,
    "connection_limit": 200,
    "channel_timeout": 10,  # seconds until a silent connection is closed
    "cleanup_interval": 5,
    "max_request_header_size": 16 << 10,
    "max_request_body_size": 4 << 10,
    "ident": None,
    "asyncore_use_poll": True,
}

_log = logging.getLogger(__name__)


def main() -> None:
    """Read the settings from standard input, answer with one line of JSON, then serve until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the server, which ends this process by its feed
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    feed = sys.stdin.buffer
    first = read_frame(feed)
    if first is None:
        return
    try:
        os.nice(_NICE)
        monitor, url = start(msgspec.msgpack.decode(first))
    except (MpoRobotError, OSError) as error:
        _answer({"error": str(error)})
        return
    _answer({"url": url})
    while (frame := read_frame(feed)) is not None:
        try:
            monitor.take(decode(frame))
        except msgspec.DecodeError:
            _log.exception("a snapshot of the server could not be read")
    os._exit(0)  # the other threads wait for things that may never come


def start(settings: dict[str, Any]) -> tuple[Monitor, str]:
    """Start all threads; returns what takes the server's snapshots, and the page's URL with its token.

    Raises:
        OSError: the port cannot be bound.
        ConfigError: settings that are not valid.
    """
    config = build(DashboardConfig, settings["config"])
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((_LOOPBACK, config.port))
    except OSError as error:
        listener.close()
        raise OSError(f"port {config.port} cannot be used: {error.strerror}") from error
    port = listener.getsockname()[1]
    registry = RegistryView(Path(settings["registry"]))
    fleet = Fleet({name: (endpoint, config.security(name)) for name, endpoint in config.robots.items()})
    monitor = Monitor(registry, fleet)
    token = secrets.token_urlsafe(32)
    app = make_app(monitor, Commands(registry.registry, fleet))
    server = create_server(Gate(app, token, port), sockets=[listener], **_HTTP)
    fleet.start()
    registry.start()
    threading.Thread(target=server.run, name="http", daemon=True).start()
    # After the `#`: a browser keeps that part to itself, so the token is in no request line and no Referer.
    return monitor, f"http://{_LOOPBACK}:{port}/#{token}"


def _answer(message: dict[str, str]) -> None:
    print(json.dumps(message), flush=True)
