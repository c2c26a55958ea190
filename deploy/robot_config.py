"""`RobotConfig`: the YAML of `mpo-robot run-robot`, and what is built from it apart from the robot itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from deploy.action_source import ActionSource, LocalSource, ServerSource
from deploy.client import PolicyClient
from deploy.estop import EStop, EStopConfig
from deploy.fallback import FallbackConfig
from deploy.fault_latch import FaultLatch
from deploy.latch_place import named_latch, robot_latch
from deploy.loading import load_name
from deploy.log_config import LogConfig
from deploy.log_opener import log_opener
from deploy.loop_parts import LoopConfig, LoopParts, limits_for
from deploy.observation_checks import ObservationConfig
from deploy.onnx_policy import OnnxPolicy
from deploy.robot import Robot, RobotError
from deploy.safety import SafetyConfig
from deploy.security import ClientSecurity
from deploy.timing import Clock, SystemClock
from mpo_robot.errors import ConfigError
from mpo_robot.specs import PolicySpec

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class RobotSection:
    """Which robot.

    Attributes:
        kind: `simulated`, or `module` for a driver of your own.
        name: For people, and in the names of files; 1 to 64 letters, digits and `._-`, the first a letter or digit.
        module: `package.module:Factory` of a driver; called with `options` as keyword arguments, it returns an object
            with the members of `deploy.robot.Robot`.
        options: Settings of the simulated robot or of the driver.
    """

    kind: Literal["simulated", "module"]
    name: str = "robot"
    module: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"robot.name must be 1 to 64 letters, digits, '.', '_' and '-', the first a letter or digit, "
                f"got {self.name[:80]!r}"
            )
        if self.kind == "simulated" and self.module:
            raise ConfigError(
                f"robot.module is for kind: module; the robot is simulated: take {self.module!r} out, or change that"
            )
        if self.kind == "module" and self.module.count(":") != 1:
            raise ConfigError(f"robot.module must look like package.module:Factory, got {self.module!r}")


@dataclass(frozen=True)
class ServerSection:
    """Where the policy server is.

    Attributes:
        endpoint: `tcp://HOST:PORT` or `ipc://PATH`.
        timeout_s: For the handshake before each episode.
        secret_key: This robot's NAME.key_secret; both key files are needed off loopback.
        server_key: The server's public NAME.key.
        spin_s: Busy-wait this long for each action before sleeping until it comes: the answer is there sooner, and
            the wait costs a core. For loops with real-time priority; a normal program on a busy machine loses by it.
    """

    endpoint: str = "tcp://127.0.0.1:5555"
    timeout_s: float = 5.0
    secret_key: Path | None = None
    server_key: Path | None = None
    spin_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.spin_s >= 0:
            raise ConfigError(f"server.spin_s must not be negative, got {self.spin_s}")
        if (self.secret_key is None) != (self.server_key is None):
            raise ConfigError("server.secret_key and server.server_key go together: give both or none")
        if self.timeout_s <= 0:
            raise ConfigError(f"server.timeout_s must be positive, got {self.timeout_s}")

    @property
    def security(self) -> ClientSecurity | None:
        """Keys, if given."""
        if self.secret_key is None or self.server_key is None:
            return None
        return ClientSecurity(self.secret_key, self.server_key)


@dataclass(frozen=True)
class RobotConfig:
    """Everything `mpo-robot run-robot` needs.

    Attributes:
        robot: Which robot.
        policy: `server` asks a policy server; `local` acts with `policy_path` in this process, without a server.
        policy_path: ONNX policy for `policy: local` and for the `local` rung of the ladder.
        stochastic: Whether the policy in this process samples. A server decides for itself.
        episodes: How many to run; 0 runs until stopped.
        seed: Of the robot's start states and of local sampling; episode i gets seed + i.
        server: Where the policy server is.
        loop: Timing.
        safety: Limits.
        observation: Checks of readings.
        fallback: What happens without an action.
        estop: Where emergency stops come from, and where a fault is remembered.
        log: Where and how episodes are logged.
    """

    robot: RobotSection
    policy: Literal["server", "local"] = "server"
    policy_path: Path | None = None
    stochastic: bool = True
    episodes: int = 1
    seed: int | None = None
    server: ServerSection = field(default_factory=ServerSection)
    loop: LoopConfig = field(default_factory=LoopConfig)
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    observation: ObservationConfig = field(default_factory=ObservationConfig)
    fallback: FallbackConfig = field(default_factory=FallbackConfig)
    estop: EStopConfig = field(default_factory=EStopConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        if self.episodes < 0:
            raise ConfigError(f"episodes must not be negative, got {self.episodes}; 0 runs until stopped")
        if self.seed is not None and self.seed < 0:
            raise ConfigError(f"seed must not be negative, got {self.seed}")
        if self.policy_path is None and (self.policy == "local" or self.fallback.needs_local_policy):
            user = "policy: local" if self.policy == "local" else "the `local` rung of fallback.ladder"
            raise ConfigError(f"{user} needs policy_path (or --policy FILE.onnx): the policy file to act with")


def load_driver(section: RobotSection) -> Robot:
    """Robot from `package.module:Factory`; modules in the working directory are found.

    Raises:
        RobotError: it cannot be imported, or the factory does not take the options.
    """
    factory: Callable[..., Robot] = load_name(section.module, "robot.module")
    try:
        return factory(**section.options)
    except TypeError as error:
        raise RobotError(f"robot.module {section.module!r} does not take robot.options: {error}") from error


def fault_latch(config: RobotConfig) -> FaultLatch:
    """Where faults of this robot are remembered. By default a real robot's are, a simulated one's are not."""
    robot, file = config.robot, config.estop.latch
    if file:
        return named_latch(file)
    if file is None and robot.kind == "module":
        return robot_latch(robot.name, robot.module, robot.options, config.log.directory)
    return FaultLatch(None)


def build_parts(
    config: RobotConfig, spec: PolicySpec, should_stop: Callable[[], bool], estop: EStop | None = None
) -> tuple[LoopParts, str]:
    """Parts of the control loop, and a line that says who acts. Connects to the server, so that a wrong one is refused
    before the robot moves.

    Raises:
        MpoRobotError: a limit for a term that the robot lacks, a policy that does not fit it, no server, or a log
            directory that cannot be written.
    """
    # What the configuration alone decides comes before the wait for a server.
    observation = config.observation.for_robot(is_simulated=config.robot.kind == "simulated")
    limits_for(spec, config.loop, config.safety, observation)
    open_log = log_opener(config.log, spec, config.robot.name)
    clock = SystemClock(round(config.loop.spin_s * 1e9))
    local = None
    if config.policy_path is not None:
        policy = OnnxPolicy(config.policy_path)
        spec.require_same(policy.spec, "the robot", f"policy {config.policy_path}")
        local = LocalSource(policy, config.stochastic, config.seed)
    if config.policy == "local" and local is not None:
        source: ActionSource = local
        line = f"policy {config.policy_path} in this process"
    else:
        source, line = _server_source(config, spec, clock)
    parts = LoopParts(
        source=source,
        local=local,
        loop=config.loop,
        safety=config.safety,
        observation=observation,
        fallback=config.fallback,
        open_log=open_log,
        should_stop=should_stop,
        estop=estop or EStop(),
        clock=clock,
    )
    return parts, line


def _server_source(config: RobotConfig, spec: PolicySpec, clock: Clock) -> tuple[ServerSource, str]:
    server = config.server
    client = PolicyClient(
        server.endpoint, spec, security=server.security, clock=clock.monotonic_ns, spin_s=server.spin_s
    )
    try:
        welcome = client.connect(server.timeout_s)
    except BaseException:
        client.close()
        raise
    mode = "stochastic" if welcome.stochastic else "deterministic"
    line = f"policy server {server.endpoint}, version {welcome.policy_version[:12]}, {mode}"
    return ServerSource(client, server.timeout_s, clock, patient=not config.loop.is_real_time), line
