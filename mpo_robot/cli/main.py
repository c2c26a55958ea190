"""`mpo-robot`: entry point. Loads only the module of the chosen command, so a robot computer needs no torch."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, TextIO, cast

from mpo_robot import __version__
from mpo_robot.errors import MpoRobotError

COMMANDS = {
    "demo": "run the whole loop on a small task: train, export, serve, robot, log, learn",
    "train": "train a policy with MPO on a simulated task",
    "evaluate": "roll out a run's policy or an ONNX file and print returns",
    "export": "write a run's policy as ONNX, through a parity gate",
    "serve": "serve an ONNX policy over ZeroMQ",
    "keys": "make keys for serving off loopback, allow and revoke them",
    "policies": "see and change what a policy registry has in force: trials, rollback, audit",
    "run-robot": "run the control loop of a robot (simulated or real)",
    "estop": "stop a robot by message, or ask for its state",
    "rearm": "let a robot move again after an e-stop or another fault",
    "emulate-bus": "emulate a bus of Dynamixel servos that move a simulated ant, to try a driver on",
    "ingest": "check episode logs and add the good ones to a run's real replay",
    "learn": "continue learning from a run and episode logs, publish new policy versions",
    "log": "verify, repair, plot and export episode logs",
    "inspect": "print what is inside a policy, a log or a run folder",
    "report": "write one self-contained HTML page about a run",
    "bench": "run the benchmarks and store their results, or train algorithms and compare them",
}


def build_parser(chosen: str | None) -> argparse.ArgumentParser:
    """Parser with every command listed and the chosen command's own arguments loaded."""
    parser = argparse.ArgumentParser(prog="mpo-robot", description="Sim-to-real reinforcement learning with MPO.")
    parser.add_argument("--version", action="version", version=f"mpo-robot {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == chosen:
            module = load_command(name)
            module.add_arguments(subparser)
            subparser.set_defaults(execute=module.run)
    return parser


def load_command(name: str) -> ModuleType:
    """Module of a command.

    Raises:
        MpoRobotError: a package it needs is not installed.
    """
    try:
        return importlib.import_module(f"mpo_robot.cli.{name.replace('-', '_')}")
    except ModuleNotFoundError as error:
        raise missing_package(error) from error


def execute(namespace: argparse.Namespace) -> int:
    """Run the chosen command; a package that it imports only on its way may be missing too."""
    try:
        return int(namespace.execute(namespace) or 0)
    except ModuleNotFoundError as error:
        raise missing_package(error) from error


def missing_package(error: ModuleNotFoundError) -> Exception:
    """What to raise for a module that cannot be found: how to install it, or the error itself if it is our own."""
    package = (error.name or "mpo_robot").partition(".")[0]
    if package in ("mpo_robot", "sim", "deploy"):
        return error
    advice = "pip install 'mpo-robot[train]'"
    if package == "dm_control" and sys.version_info >= (3, 13):
        advice += " and, on Python 3.13, pip install --no-deps dm-control"
    return MpoRobotError(
        f"package {package!r} is not installed: this needs more than the robot-level install, use {advice}"
    )


class PatientStream:
    """A text stream whose reader may go away, as `head` does: what is written afterwards is dropped.

    A robot episode or a training must neither end nor fail because nobody reads along any more.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or drop the text if the reader is gone."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._drop_all()
            return len(text)

    def flush(self) -> None:
        """Flush, or drop what was to be flushed."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._drop_all()

    def _drop_all(self) -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 2 bad input, 130 interrupted."""
    out, err = (cast(TextIO, PatientStream(stream)) for stream in (sys.stdout, sys.stderr))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            return _main(argv)
        finally:  # here and not when the interpreter ends, where nobody handles a reader that is gone
            out.flush()
            err.flush()


def _main(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    try:
        parser = build_parser(chosen)
        namespace = _parse(parser, arguments)
        if namespace.command is None:
            parser.print_help()
            return 2
        return execute(namespace)
    except MpoRobotError as error:
        print(f"mpo-robot {chosen}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"mpo-robot {chosen}: interrupted", file=sys.stderr)
        return 130


def _parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Like `parse_args`, but key=value overrides may also stand after options, where argparse does not look."""
    namespace, rest = parser.parse_known_args(arguments)
    if rest:
        if not hasattr(namespace, "overrides") or any(word.startswith("-") or "=" not in word for word in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        namespace.overrides = [*namespace.overrides, *rest]
    return namespace


if __name__ == "__main__":
    sys.exit(main())
