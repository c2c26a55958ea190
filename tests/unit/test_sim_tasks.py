from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mpo_robot.config import build, to_dict
from mpo_robot.errors import ConfigError
from sim.config import EnvironmentConfig
from sim.make import make_environment
from sim.randomization_config import RandomizationConfig, RandomizationTerm
from sim.tasks import find, make_backend, task_names


@pytest.mark.parametrize("name", ["ball_in_cup-catch", "ball-in-cup-catch", "Ball_In_Cup-Catch", "ball_in_cup_catch"])
def test_dashes_underscores_and_case_do_not_matter(name):
    spec = make_environment(EnvironmentConfig(f"dm_control:{name}")).spec
    assert [term.name for term in spec.command] == ["x", "z"]


def test_tasks_of_both_simulators_are_known():
    names = task_names()
    assert {"dm_control:walker-walk", "dm_control:humanoid_CMU-run", "gymnasium:HalfCheetah-v4"} <= set(names)
    assert not any(name.endswith("-v2") for name in names)  # these only raise an error


@pytest.mark.parametrize(
    ("task", "hint"),
    [
        ("dm_control:waker-walk", "did you mean dm_control:walker-walk"),
        ("gymnasium:HalfCheeta-v4", "did you mean gymnasium:HalfCheetah-v4"),
        ("walker-walk", "gymnasium:, parkour:, servo: or ale:, for example dm_control:walker-walk"),
        ("dmc:foo", "must start with dm_control:, gymnasium:, parkour:, servo: or ale:"),
        ("parkour:walker-gap", "did you mean parkour:walker-gaps"),
        ("dm_control:zzzzzzzz", "no name is similar"),
        ("gymnasium:Pusher-v4", "cannot be used here"),
    ],
)
def test_an_unknown_task_names_the_nearest(task, hint):
    with pytest.raises(ConfigError, match=hint):
        make_backend(task)


def test_find_returns_the_entry():
    assert find("A-b", {"a_b": 3}, "x:") == 3


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"action_repeat": 0}, "action_repeat must be at least 1"),
        ({"time_limit_s": 0.0}, "time_limit_s must be a positive"),
        ({"time_limit_s": float("nan")}, "time_limit_s must be a positive"),
        ({"startup_seed": -1}, "startup_seed must be"),
        ({"randomization": "no/such/file.yaml"}, "cannot read no/such/file.yaml"),
    ],
)
def test_bad_settings_are_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        make_environment(EnvironmentConfig("dm_control:cartpole-swingup", **settings))


def test_the_configuration_survives_yaml_and_resolves_files(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("terms:\n  - {parameter: gravity, operation: scale, low: 0.5, high: 1}\n")
    config = build(EnvironmentConfig, {"task": "dm_control:cartpole-swingup", "randomization": str(path)})
    resolved = config.resolved()
    assert resolved.randomization == RandomizationConfig(
        (RandomizationTerm("gravity", operation="scale", low=0.5, high=1.0),)
    )
    assert build(EnvironmentConfig, to_dict(resolved)) == resolved
    path.write_text("terms:\n  - {parameter: gravity, operation: scale, lo: 0.5, high: 1}\n")
    with pytest.raises(ConfigError, match=r"unknown key terms\[0\].lo"):
        config.resolved()


def test_importing_dm_control_tasks_needs_no_renderer_and_sets_nothing():
    code = (
        "import os, warnings; warnings.simplefilter('error')\n"
        "from sim.tasks import make_backend\n"
        "make_backend('dm_control:cartpole-swingup').reset()\n"
        "import sys; assert 'MUJOCO_GL' not in os.environ and 'PYOPENGL_PLATFORM' not in os.environ\n"
        "assert 'OpenGL' not in sys.modules and 'torch' not in sys.modules and 'deploy' not in sys.modules\n"
        "make_backend('dm_control:quadruped-escape').reset()\n"  # asks for a rendering context
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
