"""`mpo-robot serve`: put a policy behind a ZeroMQ endpoint, or roll its registry back. Needs no torch."""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import signal
import sys
from pathlib import Path
from typing import Any

from deploy.dashboard.launcher import Dashboard
from deploy.real_time import report_lines, use_real_time
from deploy.registry import PolicyRegistry
from deploy.registry_import import import_policy, registry_directory
from deploy.server import PolicyServer, ServerConfig
from deploy.telemetry import Telemetry
from mpo_robot.cli.settings_list import add_settings_option
from mpo_robot.config import apply_overrides, build, read_yaml

_CONFIGURED_PORT = -1
EPILOG = """\
POLICY.onnx is copied into the registry POLICY.onnx.versions/ beside it. `mpo-robot learn` publishes new versions
there, and the running server takes them over between episodes. Examples:

  mpo-robot serve policy.onnx
  mpo-robot serve policy.onnx --deterministic --endpoint ipc:///tmp/policy.sock
  mpo-robot serve policy.onnx --rollback         put the previous version in force (a running server follows)
  mpo-robot serve policy.onnx --config configs/deploy/server_lan.yaml session_idle_s=10
  mpo-robot serve policy.onnx realtime_priority=50
  mpo-robot serve policy.onnx --dashboard        a local web page: robots, latency, policies, e-stop, rollback
  mpo-robot serve policy.onnx --dashboard=8080 dashboard.robots.arm=tcp://127.0.0.1:5599
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `serve`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("policy", metavar="POLICY", type=Path, help="ONNX file, or a registry directory")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="server settings, over --config")
    parser.add_argument("--config", type=Path, help="YAML file with server settings (see configs/deploy/)")
    parser.add_argument("--endpoint", help="tcp://HOST:PORT or ipc://PATH (default tcp://127.0.0.1:5555)")
    add_settings_option(parser, lambda: {"": ServerConfig})
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--stochastic",
        dest="stochastic",
        action="store_true",
        default=None,
        help="sample actions, so that logs carry log-probs for learning (default)",
    )
    mode.add_argument("--deterministic", dest="stochastic", action="store_false", help="send the mean action")
    parser.add_argument("--seed", type=int, help="make the noise of every episode repeat")
    parser.add_argument("--curve-secret-key", type=Path, metavar="FILE", help="the server's secret key file")
    parser.add_argument(
        "--curve-allow", type=Path, metavar="DIR", help="directory with the allowed clients' public keys"
    )
    parser.add_argument(
        "--dashboard",
        nargs="?",
        type=_port,
        const=_CONFIGURED_PORT,
        metavar="PORT",
        help="show a web page for operators on this machine (docs/dashboard.md); its port, 0 for any free one, is "
        "dashboard.port if not given",
    )
    parser.add_argument(
        "--rollback", action="store_true", help="put the previous version in force, print both versions and exit"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM (exit 0), or roll back."""
    registry = PolicyRegistry(registry_directory(args.policy))
    if args.rollback:
        return _rollback(registry)
    config = _config(args)
    if args.policy.is_file():
        _import(args.policy, registry, config.stochastic)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    with contextlib.ExitStack() as stack:
        page = None
        if args.dashboard is not None:  # before real-time priority, which it must not inherit
            page = stack.enter_context(Dashboard(config.dashboard, registry.directory))
        return _serve(registry, config, page)


def _serve(registry: PolicyRegistry, config: ServerConfig, page: Dashboard | None) -> int:
    wanted = config.operating_system
    for line in report_lines(wanted, use_real_time(wanted)):  # before the server's threads start, which inherit it
        print(line)
    with PolicyServer(registry, config) as server:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: server.stop())
        # What is loaded now lives as long as the process: the collector need not walk it during a control tick.
        gc.collect()
        gc.freeze()
        mode = "stochastic" if config.stochastic else "deterministic"
        if page is not None:
            server.handler.telemetry = Telemetry(page.publish)
            print(f"dashboard {page.url}")
        print(f"policy {server.store.current.policy_version} from {registry.directory}, {mode}")
        print(f"mpo-robot serve: ready on {server.endpoint}", flush=True)
        server.serve_forever()
    print(f"mpo-robot serve: stopped; {server.statistics}, swaps {server.store.swaps}", flush=True)
    return 0


def _config(args: argparse.Namespace) -> ServerConfig:
    data: dict[str, Any] = read_yaml(args.config) if args.config else {}
    data = apply_overrides(data, args.overrides)
    for name in ("endpoint", "stochastic", "seed", "curve_secret_key", "curve_allow"):
        if getattr(args, name) is not None:
            data[name] = getattr(args, name)
    if args.dashboard not in (None, _CONFIGURED_PORT):
        data = apply_overrides(data, [f"dashboard.port={args.dashboard}"])
    return build(ServerConfig, data)


def _port(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no port; write --dashboard last, or --dashboard=PORT")
    return int(text)


def _import(policy: Path, registry: PolicyRegistry, stochastic: bool) -> None:
    before = registry.signature()
    version, own = import_policy(policy, registry, stochastic)
    if version != own:
        print(
            f"{policy} is version {own[:12]}, which its registry already had; the version in force is {version[:12]}, "
            "published or rolled back to since"
        )
    elif registry.signature() != before:
        print(f"published {policy} as version {version[:12]}")


def _rollback(registry: PolicyRegistry) -> int:
    old = registry.current_version()
    new = registry.rollback()
    print(f"rolled back from {old}\n              to {new}\na running server gives it to the next episode")
    return 0
