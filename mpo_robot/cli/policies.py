"""`mpo-robot policies`: change, from here or from afar, which policy is in force; check the audit. Needs no torch."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from deploy.access import TOKEN_FILE, read_token
from deploy.operations import COMMANDS, describe
from deploy.operator_client import ask_server
from deploy.outcomes import OutcomeLog
from deploy.registry import PolicyRegistry
from deploy.registry_check import verify
from deploy.registry_import import registry_directory
from deploy.security import ClientSecurity
from mpo_robot.cli.facts import render
from mpo_robot.errors import ConfigError

EPILOG = """\
REGISTRY is the directory, or the policy file beside which it is. A running server follows every change with the next
episode. `mpo-robot inspect REGISTRY` shows the state. Examples:

  mpo-robot policies publish policy.onnx.versions new.onnx
  mpo-robot policies trial policy.onnx.versions new.onnx --share 0.2     a fifth of the episodes, by their names
  mpo-robot policies promote policy.onnx.versions                        the candidate is in force from now on
  mpo-robot policies rollback policy.onnx.versions --reason "limps"
  mpo-robot policies history policy.onnx.versions                        who did what and when
  mpo-robot policies verify policy.onnx.versions --head 3f2a...          exit code 1 if anything was tampered with
  mpo-robot policies remote rollback --endpoint tcp://robot-lab:5555 --secret-key keys/anna.key_secret \\
      --server-key keys/server.key
  mpo-robot policies remote status --token policy.onnx.versions/operator.token     on the server's own machine
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, summary in (
        ("publish", "put a policy file in force"),
        ("trial", "give another policy a share of the episodes"),
        ("promote", COMMANDS["promote"]),
        ("end-trial", COMMANDS["end-trial"]),
        ("rollback", COMMANDS["rollback"]),
        ("history", "print the audit log"),
        ("verify", "check the audit log's chain, the pointer and the files"),
    ):
        sub = actions.add_parser(name, help=summary)
        sub.add_argument("registry", type=Path, metavar="REGISTRY")
        if name in ("publish", "trial"):
            sub.add_argument(
                "policy", metavar="POLICY", help="ONNX file" + (", or a version" if name == "trial" else "")
            )
        if name == "trial":
            sub.add_argument("--share", type=float, required=True, help="of the episodes, between 0 and 1")
        if name in ("promote", "end-trial", "rollback"):
            sub.add_argument("--reason", default="", help="for the audit log")
        if name == "verify":
            sub.add_argument("--head", default="", metavar="HASH", help="head that was noted earlier, elsewhere")
    remote = actions.add_parser("remote", help="have a running server do it; takes an operator's key")
    remote.add_argument("command_name", choices=COMMANDS, metavar="COMMAND", help=", ".join(COMMANDS))
    remote.add_argument("--endpoint", default="tcp://127.0.0.1:5555", help="of the server")
    remote.add_argument("--secret-key", type=Path, metavar="FILE", help="the operator's NAME.key_secret")
    remote.add_argument("--server-key", type=Path, metavar="FILE", help="the server's public key")
    remote.add_argument("--token", type=Path, metavar="FILE", help=f"REGISTRY/{TOKEN_FILE}, on loopback without keys")
    remote.add_argument("--reason", default="", help="for the audit log")
    remote.add_argument(
        "--expect",
        default="",
        metavar="STATE",
        help="only if the registry's state is still this one, or was changed by this very command: repeats safely "
        "(default: the state that the server reports)",
    )


def run(args: argparse.Namespace) -> int:
    """Execute the command."""
    if args.action == "remote":
        return _remote(args)
    is_new = args.action == "publish" and not args.registry.exists()
    registry = PolicyRegistry(args.registry if is_new else registry_directory(args.registry))
    return _ACTIONS[args.action](registry, args)


def _change(registry: PolicyRegistry, args: argparse.Namespace) -> int:
    if args.action == "publish":
        registry.publish(args.policy)
    elif args.action == "trial":
        registry.start_trial(_source(registry, args.policy), args.share)
    elif args.action == "rollback":
        registry.rollback(reason=args.reason)
    else:
        registry.end_trial(promote=args.action == "promote", reason=args.reason)
    print(render(describe(registry, OutcomeLog(registry.directory))))
    return 0


def _source(registry: PolicyRegistry, text: str) -> str | Path:
    """A file, or a version in full or by its unambiguous beginning."""
    if Path(text).exists():
        return Path(text)
    found = list((registry.directory / "versions").glob(f"{text}*.onnx")) if text.isalnum() else []
    if len(found) != 1:
        raise ConfigError(f"{text} is neither a file nor the beginning of one version in {registry.directory}")
    return found[0].stem


def _history(registry: PolicyRegistry, args: argparse.Namespace) -> int:
    for entry in registry.audit.entries():
        time_ns = entry.pop("wall_time_ns", 0)
        when = datetime.fromtimestamp(time_ns / 1e9, timezone.utc).isoformat(timespec="seconds")
        known = (entry.pop("event", "?"), entry.pop("by", "?"), str(entry.pop("version", None) or "")[:12])
        hidden = {"prev": None, "hash": None, "process": None}
        rest = {key: value for key, value in entry.items() if value not in (None, "") and key not in hidden}
        print(when, *known, json.dumps(rest) if rest else "", sep="  ")
    return 0


def _verify(registry: PolicyRegistry, args: argparse.Namespace) -> int:
    report = verify(registry, args.head)
    print(f"{report.entries} audit entries, {report.unchained} of them from before the chain, {report.torn} torn")
    print(f"head {report.head}\n(note it elsewhere: whoever can write to the registry can also rewrite all of it)")
    for problem in report.problems:
        print(f"mpo-robot policies: {problem}", file=sys.stderr)
    return 1 if report.problems else 0


def _remote(args: argparse.Namespace) -> int:
    if (args.secret_key is None) != (args.server_key is None):
        raise ConfigError("--secret-key and --server-key go together: give both or none")
    state = ask_server(
        args.endpoint,
        args.command_name,
        reason=args.reason,
        expect=args.expect,
        security=ClientSecurity(args.secret_key, args.server_key) if args.secret_key else None,
        token=read_token(args.token) if args.token else "",
    )
    print(render(state))
    return 0


_ACTIONS: dict[str, Callable[[PolicyRegistry, Any], int]] = {
    **dict.fromkeys(("publish", "trial", "promote", "end-trial", "rollback"), _change),
    "history": _history,
    "verify": _verify,
}
