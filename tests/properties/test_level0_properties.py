"""Properties of the contracts that every part of the program relies on."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mpo_robot.config import apply_overrides, parse_scalar
from mpo_robot.episode import episodes_from_records
from mpo_robot.errors import EpisodeError, SpecMismatchError
from mpo_robot.specs import PolicySpec, TermSpec
from tests.support.records import SPEC, make_records

numbers = st.floats(-1e6, 1e6)
names = st.sampled_from(("arm", "leg", "hip", "a b", "é", "_", "x.y", "[0]"))


@st.composite
def terms(draw, name, bounded):
    size = draw(st.integers(1, 4))
    if not bounded and draw(st.booleans()):
        return TermSpec(name, size, draw(st.sampled_from(("1", "rad", "N m"))))
    low = draw(st.lists(numbers, min_size=size, max_size=size))
    width = draw(st.lists(st.floats(0.25, 1e6), min_size=size, max_size=size))
    return TermSpec(name, size, "1", tuple(low), tuple(x + w for x, w in zip(low, width)))


@st.composite
def specs(draw):
    vectors = [
        tuple(draw(terms(name, bounded)) for name in draw(st.lists(names, min_size=1, max_size=4, unique=True)))
        for bounded in (False, True)
    ]
    return PolicySpec(vectors[0], vectors[1], draw(st.floats(1e-4, 10.0)))


@settings(max_examples=40)
@given(specs())
def test_a_spec_survives_json_with_its_hash(spec):
    copy = PolicySpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert copy == spec
    assert copy.spec_hash == spec.spec_hash
    spec.require_same(copy)


@settings(max_examples=40)
@given(specs(), specs())
def test_specs_that_differ_are_refused_and_have_different_hashes(one, other):
    assume(one != other)
    assert one.spec_hash != other.spec_hash
    with pytest.raises(SpecMismatchError, match="policy spec differs at"):
        one.require_same(other)


@settings(max_examples=40)
@given(specs(), st.data())
def test_commands_stay_within_the_bounds_and_come_back_as_the_clipped_action(spec, data):
    action = np.array(data.draw(st.lists(st.floats(-3, 3), min_size=spec.action_size, max_size=spec.action_size)))
    command = spec.to_command(action)
    assert (command >= spec.command_low).all()
    assert (command <= spec.command_high).all()
    # One float32 rounding of the command, seen in units of the half range.
    largest = np.maximum(np.abs(spec.command_low), np.abs(spec.command_high))
    tolerance = 1e-6 + 4 * np.finfo(np.float32).eps * largest / spec.command_half_range
    assert (np.abs(spec.to_action(command) - np.clip(action, -1, 1)) <= tolerance).all()


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_any_gaps_give_parts_that_hold_exactly_the_consecutive_transitions(keep):
    records = [record for record, kept in zip(make_records(len(keep)), keep) if kept]
    episodes = episodes_from_records(records, SPEC)
    assert sum(len(episode) for episode in episodes) == len(records)
    jumps = sum(b.step_index != a.step_index + 1 for a, b in itertools.pairwise(records))
    assert len(episodes) == (jumps + 1 if records else 0)
    transitions = [
        (episode.observations[t].tobytes(), episode.actions[t].tobytes(), episode.observations[t + 1].tobytes())
        for episode in episodes
        for t in range(len(episode))
    ]
    assert transitions == [
        (r.observation.tobytes(), r.policy_action.tobytes(), r.next_observation.tobytes()) for r in records
    ]


@given(st.permutations(range(5)))
def test_every_order_but_the_right_one_is_refused(order):
    records = make_records(5)
    shuffled = [records[index] for index in order]
    if list(order) == sorted(order):
        assert len(episodes_from_records(shuffled, SPEC)) == 1
    else:
        with pytest.raises(EpisodeError, match="out of order"):
            episodes_from_records([dataclasses.replace(record, truncated=False) for record in shuffled], SPEC)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_number_survives_an_override(value):
    assert apply_overrides({}, [f"section.rate={value!r}"]) == {"section": {"rate": value}}
    assert float(parse_scalar(f"{value:.17e}")) == value
