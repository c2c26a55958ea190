"""The state machine under any sequence of events; each rule of docs/safety.md is an invariant here."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from deploy.fallback import Mode
from deploy.robot_state import (
    KEPT_TRANSITIONS,
    OUTPUTS,
    TRANSITIONS,
    Event,
    Output,
    State,
    StateError,
    StateMachine,
    may_send,
    transition,
)

MOTORS_OFF = {Output.NOTHING, Output.OFF}


class AnyEvents(RuleBasedStateMachine):
    """Fires anything at any time and keeps a shadow of what a bystander would expect."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 0
        self.machine = StateMachine(self.tick)
        self.homed_since_off = False
        self.armed = True

    def tick(self) -> int:
        self.time += 1
        return self.time

    @rule(event=st.sampled_from(list(Event)))
    def fire(self, event: Event) -> None:
        before = self.machine.state
        try:
            after = self.machine.fire(event)
        except StateError:
            assert self.machine.state is before, "a refused event changed the state"
            assert event not in (Event.ESTOP, Event.FAULT, Event.STOP), "halting must always be possible"
            return
        moving = (State.HOMING, State.READY, State.RUN, State.FALLBACK)
        if event in (Event.ESTOP, Event.FAULT) or (event is Event.DISCONNECTED and before in moving):
            self.armed = False
        elif event is Event.REARM:
            assert before is State.FAULT
            self.armed = True
        if OUTPUTS[after] in MOTORS_OFF:
            self.homed_since_off = False
        elif event is Event.HOMED:
            self.homed_since_off = True

    @invariant()
    def fault_is_left_only_by_a_human(self) -> None:
        assert (self.machine.state is State.FAULT) == (not self.armed)

    @invariant()
    def policy_commands_only_in_run(self) -> None:
        assert may_send(self.machine.state, Mode.POLICY) == (self.machine.state is State.RUN)
        assert may_send(self.machine.state, Mode.LOCAL) == (self.machine.state is State.FALLBACK)
        assert not may_send(self.machine.state, Mode.STOP)

    @invariant()
    def no_command_before_homing(self) -> None:
        if any(may_send(self.machine.state, mode) for mode in Mode):
            assert self.homed_since_off
            assert OUTPUTS[self.machine.state] in (Output.POLICY, Output.LADDER)

    @invariant()
    def history_is_connected_and_bounded(self) -> None:
        changes = list(self.machine.changes)
        assert len(changes) <= KEPT_TRANSITIONS
        for left, right in itertools.pairwise(changes):
            assert left.after is right.before
            assert left.monotonic_ns < right.monotonic_ns
        if changes:
            assert changes[-1].after is self.machine.state


TestAnyEvents = AnyEvents.TestCase
TestAnyEvents.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("state", list(State))
def test_one_event_stops_any_state(state: State) -> None:
    assert transition(state, Event.ESTOP) == (State.FAULT, True)
    assert transition(state, Event.FAULT) == (State.FAULT, True)
    stopped, accepted = transition(state, Event.STOP)
    assert accepted
    assert OUTPUTS[stopped] in MOTORS_OFF


def test_fault_has_one_way_out_and_it_leads_to_no_command() -> None:
    ways = {event: state for event, state in TRANSITIONS[State.FAULT].items() if state is not State.FAULT}
    assert ways == {Event.REARM: State.STOPPED}
    assert not any(may_send(State.STOPPED, mode) for mode in Mode)
    others = [state for state in State if Event.REARM in TRANSITIONS[state]]
    assert others == [State.FAULT]


@given(state=st.sampled_from(list(State)), event=st.sampled_from(list(Event)))
def test_transition_is_total(state: State, event: Event) -> None:
    after, accepted = transition(state, event)
    assert after in State
    assert accepted or after is state
    assert accepted == (event in TRANSITIONS[state])


@given(events=st.lists(st.sampled_from([event for event in Event if event is not Event.REARM]), max_size=30))
def test_after_an_estop_nothing_but_a_rearm_helps(events: list[Event]) -> None:
    state = transition(State.RUN, Event.ESTOP).state
    for event in events:
        state = transition(state, event).state
        assert state is State.FAULT
        assert not any(may_send(state, mode) for mode in Mode)


def test_every_state_can_be_reached_and_every_state_can_reach_run() -> None:
    def reachable(start: State) -> set[State]:
        found, todo = {start}, [start]
        while todo:
            for state in TRANSITIONS[todo.pop()].values():
                if state not in found:
                    found.add(state)
                    todo.append(state)
        return found

    for state in State:
        assert reachable(state) == set(State), f"from {state}"
