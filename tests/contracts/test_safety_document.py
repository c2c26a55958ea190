"""docs/safety.md states the robot's states; this holds the page and the code together."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploy.loop_parts import EndReason
from deploy.robot_state import OUTPUTS, TRANSITIONS, Event, State
from deploy.safety import SafetyConfig
from mpo_robot.config import build

TEXT = (Path(__file__).parents[2] / "docs" / "safety.md").read_text()


def tables() -> dict[tuple[str, ...], list[list[str]]]:
    """Tables of the page: header -> rows, cells without backticks."""
    result: dict[tuple[str, ...], list[list[str]]] = {}
    for block in re.findall(r"(?:^\|.*\n)+", TEXT, re.MULTILINE):
        rows = [[cell.strip().replace("`", "") for cell in line.strip("|\n").split("|")] for line in block.splitlines()]
        result[tuple(rows[0])] = rows[2:]
    return result


def test_transitions_are_those_of_the_code() -> None:
    header = ("state", *(event.value for event in Event))
    page = {
        State(row[0]): {Event(name): State(cell) for name, cell in zip(header[1:], row[1:], strict=True) if cell}
        for row in tables()[header]
    }
    assert page == {state: dict(row) for state, row in TRANSITIONS.items()}


def test_what_the_motors_receive_is_that_of_the_code() -> None:
    rows = tables()["state", "motors receive", "what it means"]
    assert {State(row[0]): row[1] for row in rows} == {state: output.value for state, output in OUTPUTS.items()}


def test_every_event_and_every_end_is_explained() -> None:
    assert [row[0] for row in tables()["event", "fired when"]] == [event.value for event in Event]
    rows = tables()["end_reason", "meaning", "state", "exit code"]
    states = {name: row[2] for row in rows for name in row[0].split(", ")}
    assert states == {
        **{reason.value: "FAULT" if reason.is_fault else "STOPPED" for reason in EndReason}, "error": "FAULT",
    }  # fmt: skip


@pytest.mark.parametrize("section", ["safety", "observation", "loop", "fallback"])
def test_settings_on_the_page_are_settings(section: str) -> None:
    import yaml

    from deploy.robot_config import RobotConfig

    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)]
    found = [block for block in blocks if section in block]
    assert found
    for block in found:
        if any(rung.get("do") == "local" for rung in block.get("fallback", {}).get("ladder", [])):
            block = {**block, "policy_path": "policy.onnx"}
        build(RobotConfig, {"robot": {"kind": "simulated"}, **block})


def test_limits_on_the_page_fit_a_robot_with_those_terms() -> None:
    import yaml

    from deploy.safety import compile_limits
    from deploy.watch import TermWatch
    from mpo_robot.specs import PolicySpec, TermSpec

    (text,) = (block for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL) if block.startswith("safety:"))
    config = build(SafetyConfig, yaml.safe_load(text)["safety"])
    spec = PolicySpec(
        tuple(
            TermSpec(name, size)
            for name, size in (("joint_velocity", 2), ("joint_torque", 2), ("hand_position", 3), ("gravity", 3))
        ),
        (TermSpec("knee", 1, "rad", (0.0,), (2.0,)), TermSpec("gripper", 1, "rad", (0.0,), (1.0,))),
        0.02,
    )
    compile_limits(config, spec)
    TermWatch(config.watch, spec)
