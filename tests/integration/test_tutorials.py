"""The code on the tutorial pages runs as it stands."""

import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from deploy.log_reader import read_log
from mpo_robot.episode import Source
from mpo_robot.specs import PolicySpec
from sim.config import EnvironmentConfig
from sim.make import make_environment
from tests.support.onnx_files import write_linear_policy
from tests.support.serving import ServerThread

TUTORIALS = Path(__file__).parents[2] / "docs" / "tutorials"
TASK = "dm_control:pendulum-swingup"


def save_files(page: Path, directory: Path) -> None:
    """Write each block that follows "Save this as `NAME`" to that name."""
    blocks = re.findall(r"Save this as `([\w.]+)`:\n\n```\w+\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for name, text in blocks:
        (directory / name).write_text(text, encoding="utf-8")


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A directory with the files of own_robot.md, and nothing else, importable."""
    save_files(TUTORIALS / "own_robot.md", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"pendulum.py", "pendulum.yaml"}
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("pendulum", None)


def test_the_drivers_spec_is_that_of_the_simulated_task(workplace):
    import pendulum

    environment = make_environment(EnvironmentConfig(TASK))
    assert environment.spec == pendulum.SPEC
    environment.close()


def test_a_way_home_as_on_the_page_ends_when_it_is_stopped(workplace):
    page = (TUTORIALS / "own_robot.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"### Stopped on the way\n.*?```python\n(.*?)```", page, re.DOTALL)
    scope = vars(__import__("pendulum"))
    exec("class Homing(Pendulum):\n" + textwrap.indent(text, "    "), scope)
    robot, steps = scope["Homing"](), []
    robot.angle, robot.velocity, robot.time_ns = 0.0, 0.0, time.monotonic_ns()
    robot.is_home = lambda: len(steps) >= 5
    robot.step_home = lambda: (steps.append(1), robot.stop() if len(steps) == stop_at else None)
    robot.stop()  # of before: taken back
    stop_at = 0
    assert len(robot.start_episode().observation) == 3
    steps.clear()
    stop_at = 2
    with pytest.raises(RuntimeError, match="stopped on the way"):
        robot.start_episode()
    assert len(steps) == 2


def test_the_driver_runs_against_a_served_policy_and_its_log_is_complete(workplace):
    import pendulum

    spec: PolicySpec = pendulum.SPEC
    policy = write_linear_policy(workplace / "pendulum.onnx", spec, [[0.0], [0.5], [-0.1]])
    with ServerThread(policy) as server:
        # Without deadlines, so that a busy machine makes no difference.
        settings = ["--episodes", "2", "--endpoint", server.endpoint, "loop.max_steps=30", "loop.pace=fast"]
        command = [sys.executable, "-m", "mpo_robot.cli.main", "run-robot", "--config", "pendulum.yaml", *settings]
        done = subprocess.run(command, cwd=workplace, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    logs = [read_log(path) for path in sorted((workplace / "logs").glob("*.mcap"))]
    assert [len(log.records) for log in logs] == [30, 30]
    for record in logs[0].records:
        assert record.source is Source.POLICY
        assert record.reward in (0.0, 1.0)
        assert abs(record.applied_command[0]) <= 0.8 + 1e-6


def test_the_pendulum_falls_from_nearly_upright_and_is_at_rest_hanging(workplace, monkeypatch):
    import pendulum

    now = [0]
    monkeypatch.setattr("time.monotonic_ns", lambda: now[0])
    robot = pendulum.Pendulum(damping=0.5)
    robot.start_episode(seed=0)
    robot.angle, robot.velocity = 0.05, 0.0
    assert robot.read().reward == 1.0
    now[0] = 60_000_000_000
    last = robot.read()
    assert last.reward == 0.0
    assert last.monotonic_ns == now[0]
    assert last.observation.tolist() == pytest.approx([-1.0, 0.0, 0.0], abs=1e-3)


def test_the_reward_of_the_motor_bus_page_takes_the_robots_observations(tmp_path, monkeypatch):
    save_files(TUTORIALS / "motor_bus.md", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import ant_reward

    observation = make_environment(EnvironmentConfig("servo:ant-walk")).reset(seed=0)[0]
    fallen = observation.copy()
    fallen[16:20] = [0.0, 1.0, 0.0, 0.0]
    rewards = ant_reward.upright(None, None, np.stack([observation, fallen]), None)
    assert rewards.tolist() == pytest.approx([1.0, 0.0], abs=0.01)
    sys.modules.pop("ant_reward")
