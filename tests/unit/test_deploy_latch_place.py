from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deploy.fault_latch import FaultLatch, RobotFaultError
from deploy.latch_place import hardware_of, named_latch, robot_latch, state_directory
from deploy.robot_config import RobotConfig, RobotSection, fault_latch
from mpo_robot.config import build
from mpo_robot.errors import ConfigError

PORT = {"port": "/dev/ttyUSB0", "joints": [{"id": 1}]}


def latch(name: str = "arm", module: str = "a:B", options: dict[str, Any] | None = None, logs: str = "x") -> FaultLatch:
    return robot_latch(name, module, PORT if options is None else options, logs)


@pytest.mark.parametrize(
    "other",
    [
        {"logs": ""},
        {"logs": "logs/today"},
        {"name": "other"},
        {"module": "c:D"},
        {"options": {**PORT, "speed": 3}},
        {"options": {"port": "/dev/ttyUSB1"}},  # the plug was put elsewhere
    ],
)
def test_no_other_option_gets_a_robot_in_fault_to_move(
    other: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latch().set("estop", "key")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RobotFaultError, match="FAULT since"):
        latch(**other).require_clear("arm")
    latch(**other).clear()
    latch().require_clear("arm")


def test_another_robot_is_another_robot() -> None:
    latch().set("estop", "key")
    latch(name="leg", options={"port": "/dev/ttyUSB1"}).require_clear("leg")
    latch(name="arm2", options={"port": "/dev/ttyUSB1"}).require_clear("arm2")


def test_driver_without_a_device_has_one_robot() -> None:
    assert hardware_of("a:B", {"gain": 3, "port": None, "bus": True}) == "a:B"
    latch(options={"gain": 3}).set("estop", "key")
    with pytest.raises(RobotFaultError):
        latch(name="other", options={"gain": 4}).require_clear("other")


def test_device_is_found_at_any_depth_the_nearest_first() -> None:
    nested = {"robot": "x", "config": {"port": "/dev/ttyACM0", "cameras": {"front": {"device": 2}}}}
    assert hardware_of("a:B", nested) == "port=/dev/ttyACM0"
    assert hardware_of("a:B", {"host": "10.0.0.7", "port": 502}) == "port=502 host=10.0.0.7"


def test_odd_device_names_make_plain_file_names() -> None:
    path = latch(options={"url": "tcp://../../" + "x" * 500 + "/ä\0"}).path
    assert path is not None
    assert path.parent == state_directory()
    assert len(path.name) < 120
    assert latch(options={"url": "tcp:/a"}).path != latch(options={"url": "tcp:-a"}).path


def test_place_is_absolute_and_does_not_depend_on_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "relative")  # to be ignored, says the standard
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_directory() == tmp_path / ".local" / "state" / "mpo_robot"
    monkeypatch.setenv("HOME", "relative")
    monkeypatch.delenv("XDG_STATE_HOME")
    with pytest.raises(RobotFaultError, match=r"estop\.latch"):
        state_directory()


def test_files_of_earlier_versions_are_honored_and_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "arm.fault"
    FaultLatch(old).set("safety", "tilt")
    ours = latch(logs=str(tmp_path))
    with pytest.raises(RobotFaultError, match="tilt"):
        ours.require_clear("arm")
    ours.clear()
    assert not old.exists()
    monkeypatch.chdir(tmp_path)
    FaultLatch(old).set("safety", "tilt")  # a relative estop.latch counted from the working directory
    named = named_latch("arm.fault")
    assert named.read() is not None
    named.clear()
    assert named.set("estop", "key") == ""
    assert not old.exists()
    assert (state_directory() / "arm.fault").exists()


def test_latch_of_a_configuration() -> None:
    def of(**settings: Any) -> Path | None:
        return fault_latch(build(RobotConfig, settings)).path

    simulated = {"kind": "simulated", "name": "sim"}
    real = {"kind": "module", "name": "arm", "module": "a:B", "options": PORT}
    assert of(robot=simulated) is None
    assert of(robot=real, estop={"latch": ""}) is None
    assert of(robot=simulated, estop={"latch": "/somewhere/sim.fault"}) == Path("/somewhere/sim.fault")
    assert of(robot=real) == latch().path


@pytest.mark.parametrize("name", ["", "../evil", "a/b", ".hidden", "-x", "a b", "a@b", "x" * 65, "a\n", "a*"])
def test_names_that_must_not_become_file_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"robot\.name"):
        RobotSection("simulated", name)


def test_module_of_a_simulated_robot_is_an_error() -> None:
    with pytest.raises(ConfigError, match="kind: module"):
        RobotSection("simulated", "arm", "a:B")
