"""A robot computer has neither torch nor a simulator: importing what runs there must not need them."""

import pkgutil
import subprocess
import sys

import pytest

import deploy

FORBIDDEN = ("torch", "mujoco", "gymnasium", "dm_control", "onnx", "tensorboard", "matplotlib", "sim")
MODULES = sorted(f"deploy.{module.name}" for module in pkgutil.iter_modules(deploy.__path__))
PROGRAM = """
import importlib, sys
for name in sys.argv[2:]:
    importlib.import_module(name)
print(sorted(set(sys.argv[1].split()) & {name.partition(".")[0] for name in sys.modules}))
"""


def loaded_forbidden(*modules):
    command = [sys.executable, "-c", PROGRAM, " ".join(FORBIDDEN), *modules]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    "modules",
    [MODULES, ["mpo_robot.cli.serve", "mpo_robot.cli.keys", "mpo_robot.cli.policies"], ["mpo_robot.cli.run_robot"]],
    ids=["deploy", "serve, keys, policies", "run-robot"],
)
def test_robot_side_loads_no_learner_and_no_simulator(modules):
    assert modules
    assert loaded_forbidden(*modules) == "[]"


def test_the_check_can_fail():
    assert loaded_forbidden("onnx", "deploy.server") == "['onnx']"
