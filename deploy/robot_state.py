"""States of a robot under the control loop, as one pure table: who may command the motors, and what leads where.

docs/safety.md prints this table; a test compares the two. Nothing here touches a robot: `deploy.control_loop` fires the
events, and `deploy.command_sender` asks `may_send` before every command.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple

from deploy.fallback import Mode

KEPT_TRANSITIONS = 64  # of a machine's history; enough for an episode, and it cannot grow


class State(str, Enum):
    """Where a robot stands."""

    INIT = "INIT"  # not connected
    STOPPED = "STOPPED"  # connected, motors off or damped
    HOMING = "HOMING"  # the driver moves to the start pose
    READY = "READY"  # in the start pose, no command yet
    RUN = "RUN"  # the policy acts
    FALLBACK = "FALLBACK"  # the ladder acts
    FAULT = "FAULT"  # motors off or damped, until a human re-arms


class Event(str, Enum):
    """What happens to a robot."""

    CONNECTED = "connected"
    HOME = "home"
    HOMED = "homed"
    START = "start"
    NO_ACTION = "no_action"
    ACTION_BACK = "action_back"
    STOP = "stop"
    FAULT = "fault"
    ESTOP = "estop"
    REARM = "rearm"
    DISCONNECTED = "disconnected"


class Output(str, Enum):
    """What the motors receive."""

    NOTHING = "nothing"  # the loop sends nothing and has nothing to send to
    DRIVER = "driver"  # what `Robot.start_episode` does by itself
    START_POSE = "start pose"  # the driver holds it; no command from the loop
    POLICY = "policy"  # the policy's command, through all limits
    LADDER = "ladder"  # the command of the rung in charge, through all limits
    OFF = "off"  # `Robot.stop` was called: off or damped


_HALTS = {Event.STOP: State.STOPPED, Event.FAULT: State.FAULT, Event.ESTOP: State.FAULT}
# A driver that lets go of a robot that moves has left it without control.
_MOVING = {**_HALTS, Event.DISCONNECTED: State.FAULT}

TRANSITIONS: MappingProxyType[State, MappingProxyType[Event, State]] = MappingProxyType(
    {
        state: MappingProxyType(row)
        for state, row in {
            State.INIT: {
                **_HALTS, Event.STOP: State.INIT, Event.CONNECTED: State.STOPPED, Event.DISCONNECTED: State.INIT,
            },
            State.STOPPED: {
                **_HALTS, Event.CONNECTED: State.STOPPED, Event.HOME: State.HOMING, Event.DISCONNECTED: State.INIT,
            },
            State.HOMING: {**_MOVING, Event.HOMED: State.READY},
            State.READY: {**_MOVING, Event.START: State.RUN},
            State.RUN: {**_MOVING, Event.NO_ACTION: State.FALLBACK},
            State.FALLBACK: {**_MOVING, Event.ACTION_BACK: State.RUN},
            State.FAULT: {
                Event.STOP: State.FAULT, Event.FAULT: State.FAULT, Event.ESTOP: State.FAULT,
                Event.DISCONNECTED: State.FAULT, Event.REARM: State.STOPPED,
            },
        }.items()
    }
)  # fmt: skip

OUTPUTS: MappingProxyType[State, Output] = MappingProxyType(
    {
        State.INIT: Output.NOTHING,
        State.STOPPED: Output.OFF,
        State.HOMING: Output.DRIVER,
        State.READY: Output.START_POSE,
        State.RUN: Output.POLICY,
        State.FALLBACK: Output.LADDER,
        State.FAULT: Output.OFF,
    }
)

_SENDERS: dict[State, frozenset[Mode]] = {
    State.RUN: frozenset({Mode.POLICY}),
    State.FALLBACK: frozenset({Mode.HOLD, Mode.LOCAL, Mode.SAFE_POSE}),
}
_NOBODY: frozenset[Mode] = frozenset()


class Step(NamedTuple):
    """Result of `transition`: the state afterwards, and whether the event had a place in the table."""

    state: State
    accepted: bool


class StateError(RuntimeError):
    """The program fired an event, or was about to send a command, that the robot's state does not allow."""


def transition(state: State, event: Event) -> Step:
    """State after an event. Total: an event without an entry in the table is refused, and the state stays."""
    target = TRANSITIONS[state].get(event)
    return Step(state, False) if target is None else Step(target, True)


def may_send(state: State, mode: Mode) -> bool:
    """Whether a command of the policy (`Mode.POLICY`) or of a rung of the ladder may go to the motors."""
    return mode in _SENDERS.get(state, _NOBODY)


class Change(NamedTuple):
    """One change of state of a machine."""

    monotonic_ns: int
    before: State
    event: Event
    after: State


class StateMachine:
    """The state of one robot. One thread fires events; any thread may read `state`.

    Attributes:
        state: Where the robot stands.
        changes: The last changes of state, oldest first; bounded.
        entered: How often each state was entered.
    """

    def __init__(self, clock: Callable[[], int], state: State = State.INIT) -> None:
        """Start in `state`: `State.FAULT` if an earlier process left a fault that nobody has re-armed since."""
        self._clock = clock
        self.state = state
        self.changes: deque[Change] = deque(maxlen=KEPT_TRANSITIONS)
        self.entered: Counter[State] = Counter()

    def fire(self, event: Event) -> State:
        """Take an event; returns the state afterwards.

        Raises:
            StateError: the table has no entry for it here. The state stays.
        """
        before = self.state
        after, accepted = transition(before, event)
        if not accepted:
            raise StateError(f"the robot is in state {before.value}: {event.value!r} is not possible there")
        if after is not before:
            self.state = after
            self.entered[after] += 1
            self.changes.append(Change(self._clock(), before, event, after))
        return after

    def require(self, mode: Mode) -> None:
        """Check, before a command is sent, that its sender is in charge.

        Raises:
            StateError: it is not.
        """
        if not may_send(self.state, mode):
            raise StateError(f"the robot is in state {self.state.value}: no command of {mode.value!r} may be sent")
