"""The /joint_states topic."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from mcap.reader import make_reader

from deploy.log_config import LogConfig
from deploy.log_joints import JointStates, JointStatesConfig, joint_states_json_schema
from deploy.log_opener import log_opener
from deploy.log_reader import read_log
from deploy.log_writer import EpisodeLogWriter
from mpo_robot.errors import ConfigError
from mpo_robot.specs import PolicySpec, TermSpec
from tests.support.records import SPEC, make_records

LEG = PolicySpec(
    observation=(
        TermSpec("gravity", 3, "1"),
        TermSpec("joint_position", 2, "rad"),
        TermSpec("joint_velocity", 2, "rad/s"),
        TermSpec("load", 2, "N m"),
    ),
    command=(TermSpec("hip", 1, "rad", (-1.0,), (1.0,)), TermSpec("knee", 1, "rad", (-1.0,), (1.0,))),
    control_dt=0.02,
)


def on(**settings: object) -> JointStatesConfig:
    return JointStatesConfig(enabled=True, **settings)  # type: ignore[arg-type]


def record_with(observation: list[float]) -> object:
    return dataclasses.replace(make_records(1, LEG)[0], observation=np.float32(observation), wall_time_ns=3_000_000_007)


def test_states_are_taken_from_the_terms_with_the_names_of_the_commands() -> None:
    record = record_with([0, 0, 1, 0.5, -0.25, 2.0, math.nan, 8.0, 9.0])
    message = json.loads(JointStates(on(), LEG).encode(record))  # type: ignore[arg-type]
    assert message == {
        "timestamp": {"sec": 3, "nsec": 7},
        "joints": [{"name": "hip", "position": 0.5, "velocity": 2.0}, {"name": "knee", "position": -0.25}],
    }
    states = JointStates(on(effort="load", position="", names=("a", "b")), LEG)
    message = json.loads(states.encode(record))  # type: ignore[arg-type]
    assert message["joints"] == [{"name": "a", "velocity": 2.0, "effort": 8.0}, {"name": "b", "effort": 9.0}]


def test_degrees_become_radians_and_joints_without_names_are_numbered() -> None:
    spec = PolicySpec((TermSpec("angles", 3, "deg"),), SPEC.command, 0.02)
    states = JointStates(on(position="angles"), spec)
    assert states.names == ("joint_0", "joint_1", "joint_2")
    record = dataclasses.replace(make_records(1, spec)[0], observation=np.float32([180.0, 0.0, -90.0]))
    positions = [joint["position"] for joint in json.loads(states.encode(record))["joints"]]
    assert positions == pytest.approx([math.pi, 0.0, -math.pi / 2])


@pytest.mark.parametrize(
    ("config", "spec", "text"),
    [
        (on(), SPEC, "needs an observation term .* the observation has: state"),
        (on(position="posture"), LEG, "log.joint_states.position: no observation term 'posture'"),
        (on(names=("hip",)), LEG, "must be 2 different names"),
        (on(names=("hip", "hip")), LEG, "must be 2 different names"),
        (on(effort="gravity"), LEG, "differ in size"),
        (on(velocity="load"), LEG, "term 'load' is in 'N m', not in rad/s"),
    ],
)
def test_what_does_not_fit_the_robot_is_refused_before_it_moves(
    tmp_path: Path, config: JointStatesConfig, spec: PolicySpec, text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        log_opener(LogConfig(str(tmp_path / "logs"), joint_states=config), spec, "bench")
    assert not (tmp_path / "logs").exists()


def test_topic_bears_the_name_by_which_foxglove_knows_the_schema(tmp_path: Path) -> None:
    records = make_records(4, LEG)
    writer = EpisodeLogWriter(tmp_path, LEG, "test", config=LogConfig(joint_states=on(), signals=True))
    writer.append_invalid(records[0])
    for record in records[1:]:
        writer.append(record)
    writer.close()
    with writer.path.open("rb") as stream:
        found = list(make_reader(stream, validate_crcs=True).iter_messages("/joint_states"))
    assert {(schema.name, schema.encoding) for schema, _, _ in found if schema} == {
        ("foxglove.JointStates", "jsonschema")
    }
    assert {channel.message_encoding for _, channel, _ in found} == {"json"}
    assert [message.sequence for _, _, message in found] == [1, 2, 3], "unfit readings are not drawn"
    states = [json.loads(message.data) for _, _, message in found]
    np.testing.assert_array_equal(np.float32(states[1]["joints"][1]["position"]), records[2].observation[4])
    assert len(read_log(writer.path).records) == 3


def test_schema_names_the_fields_that_are_written() -> None:
    schema = json.loads(joint_states_json_schema())
    message = json.loads(JointStates(on(effort="load"), LEG).encode(make_records(1, LEG)[0]))
    assert schema["title"] == "foxglove.JointStates"
    assert set(schema["properties"]) == set(message)
    assert set(message["joints"][0]) <= set(schema["properties"]["joints"]["items"]["properties"])
