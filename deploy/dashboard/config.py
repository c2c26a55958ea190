"""Settings of the operator's page."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from deploy.security import LAST_PORT, ClientSecurity, require_safe
from mpo_robot.errors import ConfigError


@dataclass(frozen=True)
class DashboardConfig:
    """The operator's page (docs/dashboard.md), opened by `serve --dashboard`.

    Attributes:
        port: On loopback; 0 takes any free one.
        robots: Robots to show and to stop, by name: the `estop.endpoint` of each. Without any, the page has no e-stop.
        robot_keys: Their public key files, by name; needed off loopback.
        operator_key: Secret key file of an operator whom those robots allow.
    """

    port: int = 8765
    robots: dict[str, str] = field(default_factory=dict)
    robot_keys: dict[str, Path] = field(default_factory=dict)
    operator_key: Path | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= LAST_PORT:
            raise ConfigError(f"dashboard.port must be 0 to {LAST_PORT}, got {self.port}")
        for name in self.robot_keys:
            if name not in self.robots:
                raise ConfigError(f"dashboard.robot_keys has {name!r}, which dashboard.robots does not")
        if self.robot_keys and self.operator_key is None:
            raise ConfigError("dashboard.robot_keys needs dashboard.operator_key, an operator's NAME.key_secret")
        for name, endpoint in self.robots.items():
            try:
                require_safe(endpoint, self.security(name))
            except ConfigError as error:
                raise ConfigError(f"dashboard.robots.{name}: {error}") from error

    def security(self, robot: str) -> ClientSecurity | None:
        """Keys for a robot; None without."""
        key = self.robot_keys.get(robot)
        return None if key is None or self.operator_key is None else ClientSecurity(self.operator_key, key)
