"""What an install brings, whether the pins hold on every supported Python, and who may import whom."""

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
LEVEL_0 = ("config", "episode", "errors", "specs", "types")


def pins(python):
    """Pinned version by package on a Python version; refuses a line that is not an exact pin."""
    found = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        (specifier,) = requirement.specifier
        assert specifier.operator == "=="
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{name} is pinned twice on {python}"
            found[name] = Version(specifier.version)
    return found


def declared(python):
    """Every requirement of the project and its extras that applies on a Python version."""
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    requirements = [Requirement(text) for group in groups for text in group]
    return [
        requirement
        for requirement in requirements
        if requirement.name != PROJECT["name"]
        and (requirement.marker is None or requirement.marker.evaluate({"python_version": python}))
    ]


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_is_pinned_to_a_version_it_allows(python):
    pinned = pins(python)
    for requirement in declared(python):
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, str(requirement)


@pytest.mark.parametrize("python", PYTHONS)
def test_mujoco_stays_below_4_because_dm_control_breaks_on_it(python):
    assert pins(python)["mujoco"] < Version("4")


def test_a_robot_computer_installs_neither_torch_nor_a_simulator():
    base = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    assert base == {"mcap", "msgspec", "numpy", "onnxruntime", "pyyaml", "pyzmq"}
    assert PROJECT["optional-dependencies"]["robot"] == []


def test_pre_commit_uses_the_pinned_tool_versions():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    revisions = {repo["repo"].rpartition("/")[2]: repo.get("rev") for repo in config["repos"]}
    pinned = pins("3.11")
    assert revisions["ruff-pre-commit"] == f"v{pinned['ruff']}"
    assert revisions["codespell"] == f"v{pinned['codespell']}"


def test_check_only_reads():
    text = (ROOT / "Makefile").read_text()
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", text, re.MULTILINE)
    assert recipe is not None
    assert "ruff format --check" in recipe[1]
    assert not re.search(r"--fix|--write|exit-zero|\|\| true", recipe[1])


def test_the_wheel_holds_all_packages_and_the_command(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    packaged = {
        str(path.relative_to(ROOT)) for top in ("mpo_robot", "sim", "deploy") for path in (ROOT / top).rglob("*.py")
    }
    assert packaged <= names
    assert "mpo_robot/report/style.css" in names
    assert not [name for name in names if name.startswith(("tests", "configs", "benchmarks"))]
    assert "mpo-robot = mpo_robot.cli.main:main" in entry_points


@pytest.mark.parametrize("module", LEVEL_0)
def test_level_0_imports_numpy_and_yaml_only(module):
    allowed = {"numpy", "yaml", *sys.stdlib_module_names, *(f"mpo_robot.{name}" for name in LEVEL_0)}
    for node in ast.walk(ast.parse((ROOT / "mpo_robot" / f"{module}.py").read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names = [node.module]
        for name in names:
            assert name in allowed or name.partition(".")[0] in allowed - {"mpo_robot"}, name


@pytest.mark.parametrize("modules", ["mpo_robot.cli.main", "mpo_robot.cli.inspect", "mpo_robot.cli.report"])
def test_reading_results_loads_neither_torch_nor_a_simulator(modules):
    program = f"import sys, {modules}; print({{'torch', 'mujoco', 'matplotlib', 'sim'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
