"""Settings and counters of `PolicyServer`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from deploy.dashboard.config import DashboardConfig
from deploy.guard import GuardConfig
from deploy.real_time import RealTimeConfig
from deploy.security import ServerSecurity
from mpo_robot.errors import ConfigError


@dataclass(frozen=True)
class ServerConfig:
    """Settings of a policy server.

    Attributes:
        endpoint: `tcp://HOST:PORT` (port `*` picks a free one) or `ipc://PATH`.
        stochastic: Sample actions with the exported stddev, so that log-probs exist; otherwise send the mean.
        seed: Makes the noise of every episode repeat; null takes it from the system.
        max_sessions: Clients served at a time; more are refused.
        session_idle_s: A client silent for this long loses its session and has to handshake again.
        registry_poll_s: How often the registry is looked at while no episode begins.
        realtime_priority: 1 to 99 asks the operating system for this real-time priority (SCHED_FIFO), so that other
            programs do not delay answers; policies load at one less. 0 runs as a normal program.
        spin_s: Behind each action, busy-wait this long for the next message before sleeping until one comes: the answer
            is there sooner, and a core is busy while a robot asks that often. For real-time priority or a spare core.
        keep_cpus_awake: While the server lives, idle CPUs of the machine wait busily instead of going to sleep: answers
            are there a third sooner. Costs power and heat.
        max_rate_hz: Messages per second that one robot may send in the long run; a large one counts as several, and
            what is no action request as 25 or more. Further ones are dropped. 0 does not limit.
        rate_burst: Messages that it may send at once.
        approved_policies: File with the SHA-256 of every version that may be served, as `sha256sum` prints it. Unset,
            whatever is in force in the registry is served.
        guard: When a new version is taken back automatically.
        curve_secret_key: The server's secret key file; required off loopback.
        curve_allow: Directory with the public keys of the clients that may connect; required off loopback. Followed
            while the server runs; see `mpo-robot keys`.
        sessions_per_key: Of `max_sessions`, how many one key may have; one silent for 2 s makes room for the next.
        dashboard: The operator's page, if `--dashboard` opens it.
    """

    endpoint: str = "tcp://127.0.0.1:5555"
    stochastic: bool = True
    seed: int | None = None
    max_sessions: int = 64
    session_idle_s: float = 60.0
    registry_poll_s: float = 0.5
    realtime_priority: int = 0
    spin_s: float = 0.0
    keep_cpus_awake: bool = False
    max_rate_hz: float = 10_000.0
    rate_burst: int = 2_000
    approved_policies: Path | None = None
    guard: GuardConfig = field(default_factory=GuardConfig)
    curve_secret_key: Path | None = None
    curve_allow: Path | None = None
    sessions_per_key: int = 8
    dashboard: DashboardConfig = field(default_factory=DashboardConfig)

    def __post_init__(self) -> None:
        if self.seed is not None and self.seed < 0:
            raise ConfigError(f"seed must not be negative, got {self.seed}")
        for name in ("max_sessions", "sessions_per_key", "rate_burst"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0.0 <= self.spin_s <= 1.0:
            raise ConfigError(f"spin_s must be 0 to 1, got {self.spin_s}")
        if not self.max_rate_hz >= 0:
            raise ConfigError(f"max_rate_hz must not be negative, got {self.max_rate_hz}; 0 does not limit")
        for name in ("session_idle_s", "registry_poll_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.realtime_priority <= 99:
            raise ConfigError(f"realtime_priority must be 0 to 99, got {self.realtime_priority}")
        if (self.curve_secret_key is None) != (self.curve_allow is None):
            raise ConfigError("curve_secret_key and curve_allow belong together: give both or neither")

    @property
    def operating_system(self) -> RealTimeConfig:
        """`realtime_priority` and `keep_cpus_awake`, as `use_real_time` takes them."""
        return RealTimeConfig(self.realtime_priority, keep_cpus_awake=self.keep_cpus_awake)

    @property
    def security(self) -> ServerSecurity | None:
        """CURVE settings, None without keys."""
        if self.curve_secret_key is None or self.curve_allow is None:
            return None
        return ServerSecurity(self.curve_secret_key, self.curve_allow)


@dataclass
class ServerStatistics:
    """Counters since the server started.

    Attributes:
        frames: Messages received, of any kind.
        actions: Actions sent.
        episodes: Episodes begun or resumed.
        outcomes: Episodes whose end was reported.
        malformed: Frames that were not a message, too large or of another protocol version.
        refused: Error replies, those to malformed frames included.
        limited: Frames dropped because their sender was over the rate limit.
        forbidden: Frames from revoked keys, and operations asked for by others than operators.
        superseded: Action requests skipped because the same client had already sent something newer.
        internal_errors: Unexpected exceptions in handling one message; each is a bug.
    """

    frames: int = 0
    actions: int = 0
    episodes: int = 0
    outcomes: int = 0
    malformed: int = 0
    refused: int = 0
    limited: int = 0
    forbidden: int = 0
    superseded: int = 0
    internal_errors: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{item.name} {getattr(self, item.name)}" for item in fields(self))
