"""The folder of one training run: resolved config, versions, metrics, checkpoints, published policies."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from mpo_robot.errors import ConfigError
from mpo_robot.specs import PolicySpec

PACKAGES = ("torch", "mujoco", "dm-control", "gymnasium", "numpy", "onnxruntime", "pyzmq", "mpo-robot")


class RunFolder:
    """Paths of a run and atomic writes of its small files."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.run_file = self.path / "run.json"
        self.spec_file = self.path / "spec.json"
        self.metrics_file = self.path / "metrics.csv"
        self.evaluations_file = self.path / "evaluations.csv"
        self.checkpoints = self.path / "checkpoints"
        self.best_policy = self.path / "best_policy.pt"
        self.policies = self.path / "policies"
        self.tensorboard = self.path / "tensorboard"
        self.learn_checkpoints = self.path / "learn" / "checkpoints"

    @property
    def holds_checkpoint(self) -> bool:
        """Whether anything was saved that a training or `learn` can go on from."""
        return any(any(place.glob("step_*")) for place in (self.checkpoints, self.learn_checkpoints))

    def create(self, config_yaml: str, spec: PolicySpec, seed: int) -> None:
        """Make the folder and write what identifies the run.

        A run that was stopped before its first checkpoint is replaced, whatever its configuration: nothing of it can
        be continued, and its metrics would mix with the new ones.

        Raises:
            ConfigError: the folder already holds a run with a checkpoint, or results whose checkpoints are gone.
        """
        if self.holds_checkpoint:
            raise ConfigError(f"{self.path} already holds a run: use --resume to continue it, or another folder")
        if any(int(row["learner_steps"] or 0) for row in complete_rows(self.evaluations_file)):
            raise ConfigError(
                f"{self.path} holds the results of a run whose checkpoints are gone: move it away, or use another "
                "folder"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        for remains in (self.metrics_file, self.evaluations_file, self.best_policy):
            remains.unlink(missing_ok=True)
        shutil.rmtree(self.tensorboard, ignore_errors=True)
        write_atomically(self.spec_file, json.dumps(spec.to_dict(), indent=1))
        write_atomically(self.run_file, json.dumps(run_record(seed), indent=1))
        write_atomically(self.config_file, config_yaml)

    def record_resume(self, environment_steps: int, changes: Mapping[str, Any], config_yaml: str) -> None:
        """Add a resume to run.json: when, at which step, how and with which changed settings; keep those in force.

        Args:
            changes: `section.key` -> [value before, value after], so that run.json and config.yaml give every
                configuration the run ever had.
        """
        record = read_json(self.run_file) if self.run_file.exists() else {}
        session = run_record(record.get("seed", 0))
        record.setdefault("resumed", []).append(
            {
                "environment_steps": environment_steps,
                "changed_settings": dict(changes),
                **{name: session[name] for name in ("command", "started_wall_time", "git", "versions")},
            }
        )
        write_atomically(self.run_file, json.dumps(record, indent=1))
        if changes:
            write_atomically(self.config_file, config_yaml)

    def require(self) -> None:
        """Check that the folder holds a run.

        Raises:
            ConfigError: it does not.
        """
        if not self.config_file.exists():
            raise ConfigError(f"{self.path} is not a run folder (no config.yaml in it)")

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Hold the folder, made if missing, against a second process that would write to it.

        The kernel lets go when this process dies. A folder that is still empty at the end is removed.

        Raises:
            ConfigError: another process holds it, or it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise ConfigError(f"cannot write run folder {self.path}: {error.strerror}") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(
                    f"another process trains or learns in {self.path}: stop it, or use another folder"
                ) from error
            yield
        finally:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                self.path.rmdir()

    def spec(self) -> PolicySpec:
        """The run's policy spec.

        Raises:
            ConfigError: no run folder, or its spec is missing or damaged.
        """
        self.require()
        return PolicySpec.from_dict(read_json(self.spec_file))


def run_record(seed: int) -> dict[str, Any]:
    """Versions, machine, command, git commit and seed, for run.json."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "seed": seed,
        "command": sys.argv,
        "started_wall_time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "machine": {"platform": platform.platform(), "processor": processor_name(), "cores": os.cpu_count()},
        "versions": versions,
        "git": git_state(),
    }


def processor_name() -> str:
    """Model name of the CPU, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def git_state() -> dict[str, Any]:
    """Commit and dirty flag of the source tree, or nulls outside a git checkout."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    status = git("status", "--porcelain")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is damaged, or not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a JSON object, found {type(data).__name__}")
    return data


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file so that readers, and a crash, see the old or the new content, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def complete_rows(path: Path) -> csv.DictReader[str]:
    """Rows of a CSV file, but for a last one that was not written to its end; none of a file that is not there."""
    text = path.read_text() if path.exists() else ""
    return csv.DictReader(text[: text.rfind("\n") + 1].splitlines())


def _is_step(row: Mapping[str, str | None], last: int) -> bool:
    """Whether a row says its step, and that is none after `last`."""
    text = row["environment_steps"] or ""
    return text.isdecimal() and int(text) <= last


class CsvLog:
    """Append-only CSV with a fixed header; on resume, rows after the checkpoint's step are dropped."""

    def __init__(self, path: Path, columns: tuple[str, ...], resume_step: int | None = None) -> None:
        self.path = path
        self.columns = columns
        if resume_step is not None and path.exists():
            reader = complete_rows(path)
            if "environment_steps" not in (reader.fieldnames or ()):
                raise ConfigError(f"{path} is damaged (its first line names no environment_steps): move it away")
            rows = [row for row in reader if _is_step(row, resume_step)]
            lines = [",".join(columns)] + [",".join(row.get(column) or "" for column in columns) for row in rows]
            write_atomically(path, "\n".join(lines) + "\n")
        elif not path.exists():
            path.write_text(",".join(columns) + "\n")

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row; missing columns stay empty."""
        with self.path.open("a", newline="") as stream:
            csv.DictWriter(stream, self.columns, restval="", lineterminator="\n").writerow(dict(row))
