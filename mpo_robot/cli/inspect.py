"""`mpo-robot inspect`: what is inside a policy, a log, a folder of logs, a policy registry or a run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from deploy.log_format import LOG_SUFFIX
from mpo_robot.cli import inspect_log, inspect_policy, inspect_run
from mpo_robot.cli.facts import jsonable, render
from mpo_robot.errors import ConfigError

_MCAP_MAGIC = b"\x89MCAP"


class _Kind(NamedTuple):
    """A kind of thing: how it is called and who describes it."""

    name: str
    describe: Callable[[Path], dict[str, Any]]


_POLICY = _Kind("policy", inspect_policy.describe)
_LOG = _Kind("log", inspect_log.describe)
_LOG_FOLDER = _Kind("logs", inspect_log.describe_folder)
_REGISTRY = _Kind("registry", inspect_policy.describe_registry)
_RUN = _Kind("run", inspect_run.describe)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("path", type=Path, metavar="PATH", help="policy.onnx, log.mcap, run folder or folder of logs")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(args: argparse.Namespace) -> int:
    """Execute the command."""
    kind = kind_of(args.path)
    facts = kind.describe(args.path)
    if args.json:
        text = json.dumps(jsonable({"kind": kind.name, "path": str(args.path), **facts}), indent=1, allow_nan=False)
    else:
        text = f"{kind.name} {args.path}\n{render(facts)}"
    print(text)
    return 0


def kind_of(path: Path) -> _Kind:
    """What a path is, by its content rather than its name.

    Raises:
        ConfigError: missing, unreadable, or nothing this program makes.
    """
    try:
        if path.is_dir():
            return _kind_of_folder(path)
        with path.open("rb") as stream:
            start = stream.read(len(_MCAP_MAGIC))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no {path}") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if start == _MCAP_MAGIC or path.suffix == LOG_SUFFIX:
        return _LOG
    if path.suffix == ".onnx":
        return _POLICY
    raise ConfigError(f"{path} is none of: policy (.onnx), episode log (.mcap), run folder, folder of logs")


def _kind_of_folder(path: Path) -> _Kind:
    if (path / "config.yaml").exists():
        return _RUN
    if (path / "current").exists() and (path / "versions").is_dir():
        return _REGISTRY
    if any(path.glob(f"*{LOG_SUFFIX}")):
        return _LOG_FOLDER
    raise ConfigError(f"{path} is no run folder (no config.yaml), no policy registry, and holds no {LOG_SUFFIX} logs")
