"""`mpo-robot demo`: the whole loop on one machine, every step through the same commands a user would type.

Training, serving and the robot run in separate processes. Nothing is preset: the numbers come from the evaluation, the
robot's logs and the export of this very run.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from deploy.log_reader import LogContents, read_log
from deploy.onnx_policy import OnnxPolicy
from deploy.registry import PolicyRegistry
from mpo_robot.errors import ConfigError, MpoRobotError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MARKER = ".mpo_robot_demo"  # a folder without it is never cleared
SERVER_START_SECONDS = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--dir", type=Path, default=Path("demo_run"), help="folder for all that the demo makes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=4, help="rounds of collecting on the robot and learning")
    parser.add_argument("--episodes", type=int, default=6, help="robot episodes per round")
    parser.add_argument("--evaluation-episodes", type=int, default=5, help="episodes per measured return")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="training overrides, for a shorter trial")


def run(args: argparse.Namespace) -> int:
    """Execute the command."""
    if not (CONFIGS / "train" / "demo.yaml").exists():
        raise ConfigError(f"the demo needs the configs/ folder of a source checkout; {CONFIGS} is not there")
    for name in ("rounds", "episodes", "evaluation_episodes"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1")
    if args.seed < 0:
        raise ConfigError(f"--seed must not be negative, got {args.seed}")
    if args.dir.exists():
        if any(args.dir.iterdir()) and not (args.dir / MARKER).exists():
            raise ConfigError(f"{args.dir} is not empty and was not made by the demo: give another --dir")
        shutil.rmtree(args.dir)
    args.dir.mkdir(parents=True)
    (args.dir / MARKER).touch()
    started = time.monotonic()
    result = Demo(args).run()
    result["minutes"] = (time.monotonic() - started) / 60
    demo_json = args.dir / "demo.json"
    demo_json.write_text(json.dumps(result, indent=1) + "\n")
    logs = [str(args.dir / name) for name in ("logs_zero_shot", "logs_collected", "logs_learned", "logs_real_time")]
    command(
        [
            "report",
            str(args.dir / "run"),
            "--logs",
            *logs,
            "--demo",
            str(demo_json),
            "-o",
            str(args.dir / "report.html"),
        ]
    )
    print(table(result, args.dir))
    return 0


class Demo:
    """One run of the demo in a folder."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.folder: Path = args.dir
        self.run_folder = self.folder / "run"
        self.policy = self.folder / "policy.onnx"
        self.registry = self.folder / "policy.onnx.versions"

    def run(self) -> dict[str, Any]:
        """All steps; returns the content of demo.json."""
        args = self.args
        say("1/6 Train in the nominal simulator")
        config = str(CONFIGS / "train" / "demo.yaml")
        command(["train", "--config", config, "--run", str(self.run_folder), f"seed={args.seed}", *args.overrides])
        nominal = json.loads(
            command(
                ["evaluate", str(self.run_folder), "--episodes", str(args.evaluation_episodes), "--json"], read=True
            )
        )
        say("2/6 Export to ONNX through the parity gate")
        command(["export", str(self.run_folder), "-o", str(self.policy)])
        with ExitStack() as stack:
            sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mpo_robot_")))
            measure, collect = f"ipc://{sockets}/measure", f"ipc://{sockets}/collect"
            say("3/6 Serve the policy from its own process (one server sends the mean, one samples)")
            stack.enter_context(server(self.policy, measure, ["--deterministic"]))
            stack.enter_context(server(self.policy, collect, ["--stochastic"]))
            say("4/6 Run the mismatched robot, zero-shot")
            zero_shot = self.robot(measure, "logs_zero_shot", args.evaluation_episodes, seed=50_000)
            say("5/6 Collect on the robot and learn from its logs; the servers take each new policy over")
            rounds = [self.round(collect, index) for index in range(args.rounds)]
            say("6/6 Run the mismatched robot with what was learnt, then once in real time")
            learned = self.robot(measure, "logs_learned", args.evaluation_episodes, seed=50_000)
            real_time = self.robot(measure, "logs_real_time", 1, seed=60_000, real_time=True)
        versions = sorted({record.policy_version for log in learned for record in log.records if record.policy_version})
        expected = PolicyRegistry(self.registry).current_version()
        if versions != [expected]:
            raise MpoRobotError(f"the robot was driven by {versions}, the registry has {expected} in force")
        return {
            "task": nominal["task"],
            "nominal_return": {
                "mean": nominal["return_mean"],
                "std": nominal["return_std"],
                "episodes": nominal["episodes"],
            },
            "zero_shot_return": returns_summary(zero_shot),
            "learned_return": returns_summary(learned),
            "rounds": rounds,
            "parity_max_abs_error": OnnxPolicy(self.policy).metadata["parity"]["max_abs_error"],
            "latency_us": latency_us(real_time),
            "real_time": timing(real_time),
            "real_steps": sum(item["real_steps"] for item in rounds),
            "policy_version": expected,
        }

    def round(self, endpoint: str, index: int) -> dict[str, Any]:
        """Collect stochastic episodes on the robot, then learn from the logs and publish."""
        known = set(self.folder.glob("logs_collected/*.mcap"))
        logs = self.robot(endpoint, "logs_collected", self.args.episodes, seed=1_000 * (index + 1))
        logs = [log for path, log in zip(sorted(self.folder.glob("logs_collected/*.mcap")), logs) if path not in known]
        command(
            [
                "learn",
                str(self.run_folder),
                "--logs",
                str(self.folder / "logs_collected"),
                "--publish",
                str(self.registry),
            ]
        )
        return {"real_steps": sum(len(log.records) for log in logs), "collected_return": returns_summary(logs)}

    def robot(self, endpoint: str, logs: str, episodes: int, seed: int, real_time: bool = False) -> list[LogContents]:
        """Run the robot's control loop in its own process; returns all logs of the directory."""
        directory = self.folder / logs
        name = "demo_real_time" if real_time else "demo"
        config = str(CONFIGS / "robots" / f"{name}.yaml")
        options = ["--endpoint", endpoint, "--log-dir", str(directory), "--episodes", str(episodes)]
        mismatch = CONFIGS / "randomization" / "cartpole_mismatch.yaml"  # the YAML's path holds in the checkout only
        command(["run-robot", "--config", config, *options, f"seed={seed}", f"robot.options.mismatch={mismatch}"])
        contents = [read_log(path) for path in sorted(directory.glob("*.mcap"))]
        broken = [log.problem for log in contents if not log.complete]
        if broken:
            raise MpoRobotError(f"a log in {directory} is not complete: {broken[0]}")
        return contents


def say(text: str) -> None:
    """Headline of a step."""
    print(f"\n== {text}", flush=True)


def command(arguments: Sequence[str], read: bool = False) -> str:
    """Run an mpo-robot command in its own process, showing it first; returns its output if `read`.

    Raises:
        MpoRobotError: it failed.
    """
    print(f"$ mpo-robot {shlex.join(arguments)}", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "mpo_robot.cli.main", *arguments], stdout=subprocess.PIPE if read else None, text=True
    )
    if done.returncode:
        raise MpoRobotError(f"`mpo-robot {arguments[0]}` ended with exit code {done.returncode}")
    return done.stdout or ""


@contextmanager
def server(policy: Path, endpoint: str, options: Sequence[str]) -> Iterator[None]:
    """A policy server process, ready to answer; stopped with SIGTERM at the end."""
    arguments = ["serve", str(policy), "--endpoint", endpoint, *options]
    print(f"$ mpo-robot {shlex.join(arguments)} &", flush=True)
    log = policy.parent / f"server_{endpoint.rpartition('/')[2]}.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "mpo_robot.cli.main", *arguments], stdout=stream, stderr=subprocess.STDOUT
        )
        try:
            wait_ready(process, log)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for the server's readiness line.

    Raises:
        MpoRobotError: the server ended, or did not get ready in time.
    """
    deadline = time.monotonic() + SERVER_START_SECONDS
    while "ready" not in log.read_text():
        if process.poll() is not None or time.monotonic() > deadline:
            raise MpoRobotError(f"the policy server did not start: {log.read_text().strip()}")
        time.sleep(0.05)


def returns_summary(logs: Sequence[LogContents]) -> dict[str, float]:
    """Mean and spread of the undiscounted returns of logs."""
    values = np.array([sum(record.reward for record in log.records) for log in logs], np.float64)
    return {"mean": float(values.mean()), "std": float(values.std()), "episodes": len(values)}


def latency_us(logs: Sequence[LogContents]) -> dict[str, float]:
    """Percentiles of the time from sending an observation to receiving the action, microseconds."""
    values = np.array([record.latency_ns for log in logs for record in log.records]) / 1e3
    return {
        "p50": float(np.percentile(values, 50)),
        "p99": float(np.percentile(values, 99)),
        "max": float(values.max()),
    }


def timing(logs: Sequence[LogContents]) -> dict[str, int]:
    """Steps and missed deadlines."""
    records = [record for log in logs for record in log.records]
    return {"steps": len(records), "deadlines_missed": sum(record.deadline_missed for record in records)}


def table(result: dict[str, Any], folder: Path) -> str:
    """The closing table."""

    def row(label: str, item: dict[str, float]) -> str:
        return f"  {label:<44}{item['mean']:8.1f} +- {item['std']:.1f}  ({item['episodes']:.0f} episodes)"

    latency, real_time = result["latency_us"], result["real_time"]
    lines = [
        "",
        f"The loop on {result['task']}, in {result['minutes']:.1f} minutes",
        row("return in the nominal simulator", result["nominal_return"]),
        row("return on the mismatched robot, zero-shot", result["zero_shot_return"]),
        row(f"... after learning from {result['real_steps']:,} logged steps", result["learned_return"]),
        f"  {'policy latency in real time, p50 / p99 / max':<44}"
        f"{latency['p50']:8.0f} / {latency['p99']:.0f} / {latency['max']:.0f} us",
        f"  {'deadlines missed in real time':<44}{real_time['deadlines_missed']:8d} of {real_time['steps']} steps",
        f"  {'torch / onnxruntime parity, max abs error':<44}{result['parity_max_abs_error']:8.1e}",
        f"Report: {folder / 'report.html'}",
    ]
    return "\n".join(lines)
