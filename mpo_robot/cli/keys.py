"""`mpo-robot keys`: make CURVE keys, and say which of them a policy server lets in. Needs no torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from deploy.allow_list import AllowedKey, AllowList, Role
from deploy.key_files import create_keys

EPILOG = """\
A server that other machines can reach demands keys on both sides (docs/security.md). Once, on each machine its own:

  mpo-robot keys new server                       on the server; keys/server.key goes to every robot
  mpo-robot keys new robot1                       on the robot; keys/robot1.key goes to the server
  mpo-robot keys allow keys/allowed robot1.key    on the server, which may be running
  mpo-robot keys allow keys/allowed anna.key --operator      may also roll policies back from afar
  mpo-robot keys revoke keys/allowed robot1       a running server stops serving it within half a second
  mpo-robot keys list keys/allowed
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    new = actions.add_parser("new", help="make a key pair")
    new.add_argument("name", metavar="NAME", help="of the machine or the person")
    new.add_argument("--dir", type=Path, default=Path("keys"), help="where to (default: keys)")
    allow = actions.add_parser("allow", help="add a public key to an allow-list")
    revoke = actions.add_parser("revoke", help="remove a key from an allow-list")
    show = actions.add_parser("list", help="print an allow-list")
    for sub in (allow, revoke, show):
        sub.add_argument("allow_list", metavar="LIST", type=Path, help="directory, the server's curve_allow")
    allow.add_argument("public_key", metavar="NAME.key", type=Path, help="public key file")
    allow.add_argument("--operator", action="store_true", help="may also change which policy is in force")
    revoke.add_argument("name", metavar="NAME", help="as `list` prints it")


def run(args: argparse.Namespace) -> int:
    """Execute the command."""
    if args.action == "new":
        public, secret = create_keys(args.dir, args.name)
        print(f"public key {public} (copy to the other side)\nsecret key {secret} (never leaves this machine)")
        return 0
    allowed = AllowList(args.allow_list)
    if args.action == "allow":
        entry = allowed.allow(args.public_key, Role.OPERATOR if args.operator else Role.ROBOT)
        print(f"allowed {_line(entry)}")
    elif args.action == "revoke":
        for entry in allowed.revoke(args.name):
            print(f"revoked {_line(entry)}")
    else:
        allowed.refresh()
        entries = list(allowed)
        print("\n".join(map(_line, entries)) or "nobody")
    return 0


def _line(entry: AllowedKey) -> str:
    return f"{entry.role.value:<8}  {entry.name:<24}  {entry.key}"
