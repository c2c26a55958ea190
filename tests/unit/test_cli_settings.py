"""`--settings` lists everything that may be set, with default and explanation; impossible values are refused."""

import dataclasses
import subprocess
import sys

import pytest
import yaml

from deploy.robot_config import RobotConfig
from deploy.server_config import ServerConfig
from mpo_robot.cli.main import main
from mpo_robot.cli.settings import RunConfig, load_run_config
from mpo_robot.cli.settings_list import Setting, attribute_texts, list_settings, render_settings
from mpo_robot.config import build, to_dict
from mpo_robot.errors import ConfigError
from sim.robot import SimulatedRobotConfig

TASK = {"environment": {"task": "dm_control:cartpole-swingup"}}


@dataclasses.dataclass(frozen=True)
class Wheel:
    """Settings of a wheel.

    Attributes:
        radius: Distance from the axle
            to the rim.
    """

    radius: float


@dataclasses.dataclass(frozen=True)
class Cart:
    """A cart.

    Attributes:
        wheels: One entry each.
        name: For people.
    """

    wheels: tuple[Wheel, ...] = ()
    name: str | None = None
    front: Wheel = dataclasses.field(default_factory=lambda: Wheel(0.5))


def test_keys_defaults_and_texts_are_read_off_the_classes():
    assert list(list_settings(Cart)) == [
        Setting("wheels", "[]", (), "One entry each."),
        Setting("wheels[].radius", None, (), "Distance from the axle to the rim."),
        Setting("name", "null", (), "For people."),
        Setting("front.radius", None, (), "Distance from the axle to the rim."),
    ]
    text = render_settings(list_settings(Cart))
    assert "front.radius    (required)\n    Distance from the axle to the rim." in text
    assert "wheels[].radius\n    Distance" in text


def flat(data, path=""):
    if not isinstance(data, dict) or not data:
        return {path: data}
    return {k: v for key, item in data.items() for k, v in flat(item, f"{path}.{key}" if path else key).items()}


@pytest.mark.parametrize("cls", [RunConfig, RobotConfig, ServerConfig, SimulatedRobotConfig])
def test_every_setting_is_listed_and_explained(cls):
    settings = list(list_settings(cls))
    assert [item.key for item in settings if not item.explanation] == []
    required = {"environment": {"task": "t"}} if cls is RunConfig else {"task": "t"}
    required = {"robot": {"kind": "simulated"}} if cls is RobotConfig else {} if cls is ServerConfig else required
    config = flat(to_dict(build(cls, required)))
    listed = {item.key: item for item in settings if "[]" not in item.key}
    assert set(listed) == set(config)
    for key, item in listed.items():
        if item.default is not None:
            assert yaml.safe_load(item.default) == config[key], key


def test_a_class_without_a_section_of_attributes_explains_them_all_together():
    @dataclasses.dataclass
    class Pair:
        """Both ends of
        a range."""

        low: float = 0.0
        high: float = 1.0

    assert attribute_texts(Pair) == {"low": "Both ends of a range.", "high": "Both ends of a range."}


@pytest.mark.parametrize(
    ("command", "keys"),
    [
        ("train", ("learner.mpo.num_samples=6", "environment.task    (required)")),
        ("learn", ("real_fraction=0.75",)),
        ("serve", ("session_idle_s=60.0",)),
        ("run-robot", ("loop.deadline=0.5", "robot.options.action_repeat=1", "safety.watch[].max_abs")),
    ],
)
def test_the_command_line_lists_them_whatever_else_is_missing(command, keys, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--settings"])
    assert caught.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(key in lines for key in keys)


def test_listing_settings_loads_no_torch_on_a_robot():
    program = (
        "import sys\nfrom mpo_robot.cli.main import main\ntry:\n    main(['serve', '--settings'])\n"
        "except SystemExit:\n    print('torch' in sys.modules, 'sim' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("total_steps=4000", "did you mean training.total_steps?"),
        ("num_samples=4", "did you mean learner.mpo.num_samples"),
        ("learner.hidden_sizes=[8]", "did you mean learner.policy.hidden_sizes or learner.critic.hidden_sizes?"),
        ("learner.discont=0.9", "did you mean learner.discount?"),
        ("seeed=1", "did you mean seed?"),
    ],
)
def test_a_key_at_the_wrong_level_is_looked_for_below(override, hint):
    with pytest.raises(ConfigError) as caught:
        load_run_config(TASK, [override])
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("cls", "data", "text"),
    [
        (RunConfig, TASK | {"seed": -1}, "seed must not be negative, got -1"),
        (RunConfig, TASK | {"seed": 1e30}, r"seed must be below 2\*\*63, got"),
        (RunConfig, TASK | {"training": {"updates_per_step": 1e308}}, "more updates than can be counted"),
        (RunConfig, TASK | {"training": {"threads": 1e11}}, "threads must be at most 4096"),
        (RobotConfig, {"robot": {"kind": "simulated"}, "seed": -1}, "seed must not be negative"),
        (RobotConfig, {"robot": {"kind": "simulated"}, "episodes": -2}, "episodes must not be negative, got -2"),
        (ServerConfig, {"seed": -3}, "seed must not be negative"),
        (SimulatedRobotConfig, {"task": "t", "seed": -1}, "seed must not be negative"),
        (RunConfig, TASK | {"training": {"evaluation_episodes": 0}}, "evaluation_episodes must be at least 1"),
    ],
)
def test_impossible_counts_and_seeds_are_refused(cls, data, text):
    with pytest.raises(ConfigError, match=text):
        build(cls, data)


@pytest.mark.parametrize("arguments", [["evaluate", "x.onnx", "--seed", "-1"], ["demo", "--seed", "-1"]])
def test_negative_seeds_of_commands_are_refused(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert "--seed must not be negative, got -1" in capsys.readouterr().err
