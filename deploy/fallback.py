"""The fallback ladder: what the robot does in a period without an action from its policy. One pure state machine.

The first period without an action enters the first rung; a rung that has had its ticks hands over to the next. A good
action leads back to the policy unless the rung forbids it. `stop` is final. A rung that cannot act (the local policy
without a usable observation) is passed over.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal, NamedTuple

from mpo_robot.errors import ConfigError


class Mode(str, Enum):
    """Who acts in a period."""

    POLICY = "policy"
    HOLD = "hold"
    LOCAL = "local"
    SAFE_POSE = "safe_pose"
    STOP = "stop"


@dataclass(frozen=True)
class Rung:
    """One step of the ladder.

    Attributes:
        do: `hold` sends the last applied command again; `local` acts with the policy file in this process;
            `safe_pose` sends the robot's safe pose (through the rate limit); `stop` ends the episode with the motors
            off or damped.
        ticks: Control periods on this rung before the next one; 0 stays until an action comes.
        recover: Whether a good action leads back to the policy from here.
    """

    do: Literal["hold", "local", "safe_pose", "stop"]
    ticks: int = 0
    recover: bool = True


@dataclass(frozen=True)
class FallbackConfig:
    """The ladder, top rung first.

    Attributes:
        ladder: Must end in `stop`, and each rung before it may appear once.
        recover_after: Consecutive good actions wanted before the policy is in charge again. Until then the ladder goes
            on, so a server that answers now and then does not make the robot twitch.
    """

    ladder: tuple[Rung, ...] = (
        Rung("hold", ticks=5),
        Rung("safe_pose", ticks=100, recover=False),
        Rung("stop"),
    )
    recover_after: int = 1

    def __post_init__(self) -> None:
        names = [rung.do for rung in self.ladder]
        if not names or names[-1] != "stop":
            raise ConfigError("fallback.ladder must end with {do: stop}")
        if len(set(names)) != len(names):
            raise ConfigError(f"fallback.ladder names a rung twice: {', '.join(names)}")
        if any(rung.ticks < 0 for rung in self.ladder) or self.recover_after < 1:
            raise ConfigError("fallback: ticks must not be negative and recover_after must be at least 1")

    @property
    def needs_local_policy(self) -> bool:
        """Whether a policy file is needed in this process."""
        return any(rung.do == "local" for rung in self.ladder)


class LadderState(NamedTuple):
    """Position on the ladder. `rung` -1: the policy acts.

    Attributes:
        rung: Index of the rung in charge.
        ticks: Periods this rung has had, the current one included.
        good: Consecutive good actions seen while on the ladder.
    """

    rung: int = -1
    ticks: int = 0
    good: int = 0


def mode_of(state: LadderState, config: FallbackConfig) -> Mode:
    """Who acts in this state."""
    return Mode.POLICY if state.rung < 0 else Mode(config.ladder[state.rung].do)


def advance(state: LadderState, config: FallbackConfig, has_action: bool, local_usable: bool) -> LadderState:
    """State for this period, given the state of the previous one.

    Args:
        state: Previous period's state; `LadderState()` at the start.
        config: The ladder.
        has_action: The policy gave a valid action for this period.
        local_usable: The local policy could act in this period.
    """
    if state.rung >= 0:
        rung = config.ladder[state.rung]
        if rung.do == "stop":
            return state
        good = state.good + 1 if has_action else 0
        if rung.recover and good >= config.recover_after:
            return LadderState()
        expired = rung.ticks > 0 and state.ticks >= rung.ticks
        index, ticks = (state.rung + 1, 1) if expired else (state.rung, state.ticks + 1)
    elif has_action:
        return state
    else:
        index, ticks, good = 0, 1, 0
    if config.ladder[index].do == "local" and not local_usable:
        index, ticks = index + 1, 1
    return LadderState(index, ticks, good)


def pass_over(state: LadderState, config: FallbackConfig) -> LadderState:
    """State after the rung in charge turned out unable to act in this period (the local policy failed)."""
    return LadderState(min(state.rung + 1, len(config.ladder) - 1), 1, state.good)
