import dataclasses
import json
import math

import numpy as np
import pytest

from mpo_robot.errors import ConfigError, SpecMismatchError
from mpo_robot.specs import PolicySpec, TermSpec

ARM = PolicySpec(
    observation=(
        TermSpec("joint_position", 2, "rad", (-3.1, -1.6), (3.1, 1.6)),
        TermSpec("joint_velocity", 2, "rad/s"),
    ),
    command=(TermSpec("shoulder", 1, "N m", (-2.0,), (6.0,)), TermSpec("elbow", 1, "N m", (0.1,), (0.3,))),
    control_dt=0.02,
)
GAME = PolicySpec((TermSpec("position", 2, "m"),), (TermSpec.discrete("push", 3),), 0.1)
# Changing this value breaks every policy and log that exists: raise SPEC_SCHEMA_VERSION and write a migration note.
ARM_HASH = "e1d3a9539adf1919de7ded47f5c9e68c6e1d4887f34faa46259132bd3ee88744"


def with_command(**changes):
    return dataclasses.replace(ARM, command=(dataclasses.replace(ARM.command[0], **changes), ARM.command[1]))


def test_hash_is_stable():
    assert ARM.spec_hash == ARM_HASH


def test_sizes_and_bounds():
    assert (ARM.observation_size, ARM.action_size) == (4, 2)
    np.testing.assert_array_equal(ARM.command_low, np.float32([-2.0, 0.1]))
    np.testing.assert_array_equal(ARM.command_high, np.float32([6.0, 0.3]))
    assert ARM.command_center.dtype == ARM.command_half_range.dtype == np.float32


def test_round_trip_through_json():
    copy = PolicySpec.from_dict(json.loads(json.dumps(ARM.to_dict())))
    assert copy == ARM
    assert copy.spec_hash == ARM.spec_hash


@pytest.mark.parametrize(
    "change",
    [
        {"name": "hip"},
        {"unit": "N"},
        {"low": (-2.0000000000000004,)},
        {"high": (6.5,)},
    ],
)
def test_every_field_of_a_term_is_in_the_hash(change):
    assert with_command(**change).spec_hash != ARM.spec_hash


def test_period_and_order_are_in_the_hash():
    hashes = {
        ARM.spec_hash,
        dataclasses.replace(ARM, control_dt=0.01).spec_hash,
        dataclasses.replace(ARM, observation=ARM.observation[::-1]).spec_hash,
        dataclasses.replace(ARM, command=ARM.command[::-1]).spec_hash,
    }
    assert len(hashes) == 4


def test_equal_specs_have_equal_hashes_however_their_numbers_are_written():
    written = [
        PolicySpec((TermSpec("x", 1),), (TermSpec("u", 1, low=low, high=(4,)),), control_dt=dt)
        for low, dt in (((0,), 1), ((0.0,), 1.0), ((-0.0,), np.float64(1.0)), ((np.float32(0.0),), 1))
    ]
    assert len(set(written)) == 1
    assert len({spec.spec_hash for spec in written}) == 1


def test_same_specs_pass():
    ARM.require_same(PolicySpec.from_dict(ARM.to_dict()))


@pytest.mark.parametrize(
    ("other", "where"),
    [
        (dataclasses.replace(ARM, control_dt=0.01), "control_dt: the robot has 0.02, the policy has 0.01."),
        (with_command(name="hip"), "command[0].name: the robot has 'shoulder', the policy has 'hip'."),
        (with_command(low=(-1.0,)), "command[0].low: the robot has [-2.0], the policy has [-1.0]."),
        (
            dataclasses.replace(ARM, observation=ARM.observation[:1]),
            "len(observation): the robot has 2, the policy has 1.",
        ),
        (
            dataclasses.replace(ARM, observation=(TermSpec("joint_position", 2, "deg"), TermSpec("other", 9))),
            "observation[0].unit: the robot has 'rad', the policy has 'deg'.",
        ),
        (
            dataclasses.replace(ARM, observation=(ARM.observation[0], TermSpec("joint_velocity", 2, "rad/s", (0, 0)))),
            "observation[1].low: the robot has None, the policy has [0.0, 0.0].",
        ),
    ],
)
def test_the_first_difference_is_named(other, where):
    with pytest.raises(SpecMismatchError) as caught:
        ARM.require_same(other, "the robot", "the policy")
    assert f"policy spec differs at {where}" in str(caught.value)


def test_actions_reach_both_bounds_exactly_and_no_further():
    np.testing.assert_array_equal(ARM.to_command([-1.0, -1.0]), ARM.command_low)
    np.testing.assert_array_equal(ARM.to_command([1.0, 1.0]), ARM.command_high)
    np.testing.assert_array_equal(ARM.to_command([-7.0, 1e9]), [ARM.command_low[0], ARM.command_high[1]])
    np.testing.assert_allclose(ARM.to_command([0.0, 0.5]), [2.0, 0.25], rtol=1e-6)
    assert ARM.to_command([0.0, 0.0]).dtype == np.float32


def test_commands_outside_the_bounds_stay_visible_as_actions():
    np.testing.assert_allclose(ARM.to_action([10.0, 0.0]), [2.0, -2.0], rtol=1e-6)


def test_nan_is_passed_on_and_not_hidden():
    assert np.isnan(ARM.to_command([math.nan, 0.0]))[0]
    assert np.isnan(ARM.to_action([math.nan, 0.0]))[0]


def test_a_discrete_spec_says_how_many_actions_there_are():
    assert ARM.num_actions is None
    assert (GAME.num_actions, GAME.action_size) == (3, 1)
    assert "choices" not in ARM.to_dict()["command"][0]
    assert GAME.to_dict()["command"][0]["choices"] == 3
    copy = PolicySpec.from_dict(json.loads(json.dumps(GAME.to_dict())))
    assert copy == GAME
    assert copy.spec_hash == GAME.spec_hash


def test_actions_and_commands_of_a_discrete_spec_are_indices():
    np.testing.assert_array_equal(
        GAME.to_command([[-4.0], [0.4], [1.0], [1.6], [2.0], [9.0]]).ravel(), [0, 0, 1, 2, 2, 2]
    )
    assert GAME.to_command([1]).dtype == GAME.to_action([1]).dtype == np.float32
    np.testing.assert_array_equal(GAME.to_action([2.0]), [2.0])
    assert np.isnan(GAME.to_command([math.nan]))[0]


@pytest.mark.parametrize("flip", [False, True])
def test_an_index_is_not_a_continuous_command_of_the_same_range(flip):
    term = TermSpec("push", 1, "index", (0.0,), (2.0,))
    pair = GAME, dataclasses.replace(GAME, command=(term,))
    assert pair[0].spec_hash != pair[1].spec_hash
    with pytest.raises(SpecMismatchError, match=r"command\[0\]\.choices"):
        pair[flip].require_same(pair[not flip])


def test_batches_keep_their_shape():
    actions = np.linspace(-1, 1, 12).reshape(3, 2, 2)
    commands = ARM.to_command(actions)
    assert commands.shape == (3, 2, 2)
    np.testing.assert_array_equal(commands[1, 1], ARM.to_command(actions[1, 1]))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: TermSpec("", 1), "a term needs a name"),
        (lambda: TermSpec("x", 0), "size must be at least 1"),
        (lambda: TermSpec("x", 2, low=(0.0,)), "low has 1 entries, size is 2"),
        (lambda: TermSpec("x", 1, low=(1.0,), high=(1.0,)), "every low must be below its high"),
        (lambda: TermSpec("x", 1, low=(-math.inf,)), "low must be finite"),
        (lambda: TermSpec("x", 1, high=(math.nan,)), "high must be finite"),
        (lambda: TermSpec.discrete("x", 1), "every low must be below its high"),
        (lambda: TermSpec("x", 1, low=(0.0,), high=(3.0,), choices=3), "need size 1, low 0 and high 2"),
        (lambda: dataclasses.replace(GAME, command=(*GAME.command, *ARM.command)), "of a single term can have choices"),
        (lambda: dataclasses.replace(GAME, observation=GAME.command), "of a single term can have choices"),
        (lambda: with_command(low=None), "needs finite low and high"),
        (lambda: with_command(low=(1.0,), high=(1.0 + 1e-12,)), "too close or too large for float32"),
        (lambda: with_command(low=(-1e300,)), "too close or too large for float32"),
        (lambda: with_command(low=(-3e38,), high=(3e38,)), "too close or too large for float32"),
        (lambda: with_command(name="elbow"), "term names must be unique"),
        (lambda: dataclasses.replace(ARM, control_dt=0.0), "control_dt must be a positive number"),
        (lambda: dataclasses.replace(ARM, control_dt=math.nan), "control_dt must be a positive number"),
        (lambda: dataclasses.replace(ARM, observation=()), "at least one observation term"),
        (lambda: PolicySpec.from_dict(ARM.to_dict() | {"schema_version": 99}), "schema_version 99"),
        (lambda: PolicySpec.from_dict({"schema_version": 1}), "malformed policy spec"),
        (lambda: PolicySpec.from_dict(ARM.to_dict() | {"command": ["a"]}), "malformed policy spec"),
        (lambda: PolicySpec.from_dict(ARM.to_dict() | {"control_dt": "fast"}), "malformed policy spec"),
        (lambda: PolicySpec.from_dict(ARM.to_dict() | {"control_dt": 10**400}), "malformed policy spec"),
    ],
)
def test_impossible_specs_are_refused(make, text):
    with pytest.raises(ConfigError) as caught:
        make()
    assert text in str(caught.value)
