import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from mpo_robot.config import apply_overrides, build, differences, dump_yaml, load_config, read_yaml, to_dict
from mpo_robot.errors import ConfigError


@dataclass(frozen=True)
class Optimizer:
    learning_rate: float = 3e-4
    clip: float | None = 40.0

    def __post_init__(self):
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")


@dataclass(frozen=True)
class Example:
    task: str
    steps: int = 1000
    resume: bool = False
    mode: Literal["hard", "soft"] = "hard"
    hidden_sizes: tuple[int, ...] = (256, 256)
    limits: tuple[float, float] = (-1.0, 1.0)
    optimizer: Optimizer = field(default_factory=Optimizer)
    target: int | Literal["auto"] = "auto"
    folder: Path | None = None
    scales: dict[str, float] = field(default_factory=dict)
    anything: Any = None
    stages: tuple[Optimizer, ...] = ()
    wait_s: float = 0.0


def load(overrides=(), **data):
    return load_config(Example, {"task": "walk", **data}, overrides)


def error(*overrides, **data):
    with pytest.raises(ConfigError) as caught:
        load(overrides, **data)
    return str(caught.value)


def test_defaults_and_given_values():
    assert load() == Example("walk")
    assert load(steps=5, hidden_sizes=[8, 4]) == Example("walk", steps=5, hidden_sizes=(8, 4))


def test_unknown_key_names_the_nearest_known_one():
    assert error(step=5) == "unknown key step: did you mean steps?"
    assert error(optimizer={"learing_rate": 1}) == (
        "unknown key optimizer.learing_rate: did you mean optimizer.learning_rate?"
    )


def test_unknown_key_without_a_near_one_lists_the_known_keys():
    assert error(optimizer={"zzz": 1}) == "unknown key optimizer.zzz: known keys: learning_rate, clip"


def test_missing_value_is_named():
    with pytest.raises(ConfigError, match="task is required: Example has no default"):
        load_config(Example, {})


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"steps": "many"}, "steps must be int, got 'many'"),
        ({"steps": 1.5}, "steps must be int, got 1.5"),
        ({"steps": True}, "steps must be int, got True"),
        ({"resume": 1}, "resume must be bool, got 1"),
        ({"task": 3}, "task must be str, got 3"),
        ({"mode": "medium"}, "mode must be one of hard, soft; got 'medium'"),
        ({"hidden_sizes": 8}, "hidden_sizes must be a list, got 8"),
        ({"hidden_sizes": [8, "x"]}, "hidden_sizes[1] must be int, got 'x'"),
        ({"limits": [1.0]}, "limits must have 2 entries, got 1"),
        ({"optimizer": None}, "optimizer must be a section (a mapping), got None"),
        ({"optimizer": {"learning_rate": "fast"}}, "optimizer.learning_rate must be float, got 'fast'"),
        ({"scales": [1]}, "scales must be a mapping, got [1]"),
        ({"scales": {"arm": "x"}}, "scales.arm must be float, got 'x'"),
        ({"stages": [{}, {"clipp": 1}]}, "unknown key stages[1].clipp: did you mean stages[1].clip?"),
    ],
)
def test_wrong_values_are_refused_with_their_path(data, text):
    assert error(**data) == text


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, "inf", "nan", 10**400], ids=str)
@pytest.mark.parametrize(
    ("data", "path"),
    [
        (lambda x: {"optimizer": {"clip": x}}, "optimizer.clip"),
        (lambda x: {"limits": [0.0, x]}, "limits[1]"),
        (lambda x: {"scales": {"arm": x}}, "scales.arm"),
        (lambda x: {"stages": [{"learning_rate": x}]}, "stages[0].learning_rate"),
    ],
)
def test_no_setting_is_infinite_or_nan_wherever_it_stands(data, path, number):
    assert error(**data(number)).startswith(f"{path} must be a finite number")


def test_a_time_must_fit_into_a_clock():
    assert error(wait_s=1e300) == "wait_s must be at most 1e+09 seconds, got 1e+300"
    assert load(wait_s=1e9).wait_s == 1e9


def test_a_refused_value_of_a_dataclass_names_its_section():
    assert error(optimizer={"learning_rate": -1}) == "optimizer: learning_rate must be positive, got -1.0"


def test_no_member_of_a_union_fits():
    assert error(target=1.5) == (
        "target: no allowed type fits 1.5 (target must be int, got 1.5; target must be one of auto; got 1.5)"
    )


def test_members_of_a_union():
    assert load(target=7).target == 7
    assert load(target="auto").target == "auto"
    assert load(optimizer={"clip": None}).optimizer.clip is None
    assert load(folder="runs/a").folder == Path("runs/a")


def test_integers_become_floats_and_whole_floats_integers():
    config = load(limits=[0, 2], steps=1e6)
    assert (config.limits, config.steps) == ((0.0, 2.0), 1_000_000)
    assert all(type(value) is float for value in config.limits)
    assert type(config.steps) is int


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "0.001", "1E-3"])
def test_every_way_to_write_a_small_number(tmp_path, text):
    file = tmp_path / "config.yaml"
    file.write_text(f"task: walk\noptimizer:\n  learning_rate: {text}\n")
    assert load_config(Example, file).optimizer.learning_rate == 0.001
    assert load([f"optimizer.learning_rate={text}"]).optimizer.learning_rate == 0.001


def test_overrides():
    config = load(
        ["steps=5", "optimizer.clip=null", "hidden_sizes=[4, 4]", "resume=true", "scales.arm=2", "task=a=b"], steps=1
    )
    assert config == Example(
        "a=b",
        steps=5,
        optimizer=Optimizer(clip=None),
        hidden_sizes=(4, 4),
        resume=True,
        scales={"arm": 2.0},
    )


def test_a_later_override_wins_and_the_source_is_untouched():
    data = {"optimizer": {"clip": 1.0}}
    assert apply_overrides(data, ["optimizer.clip=2", "optimizer.clip=3"]) == {"optimizer": {"clip": 3}}
    assert data == {"optimizer": {"clip": 1.0}}


def test_an_override_opens_an_empty_section():
    assert load(["optimizer.clip=2"], optimizer=None).optimizer.clip == 2.0


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("steps", "override 'steps' must look like key=value or section.key=value"),
        ("=3", "override '=3' must look like key=value or section.key=value"),
        ("optimizer.=3", "override 'optimizer.=3' must look like key=value or section.key=value"),
        ("task.name=x", "override 'task.name=x': 'task' is a value, not a section"),
        ("steps=[1", "override 'steps=[1': '[1' is not valid YAML"),
        ("optimizer.lr=1", "unknown key optimizer.lr: known keys: learning_rate, clip"),
    ],
)
def test_bad_overrides(override, text):
    assert error(override) == text


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"task: walk\nsteps: 1\nsteps: 2\n", "line 3: key 'steps' repeats"),
        (b"task: walk\noptimizer:\n  clip: 1\n  clip: 2\n", "line 4: key 'clip' repeats"),
        (b"- a\n- b\n", "must hold a mapping at its top level, found list"),
        (b"task: [\n", "is not valid YAML"),
        (b"? [a, b]\n: 1\n", "is not valid YAML"),
        (b"task: \xff\xfe\n", "is not valid YAML"),
        (b"task: !!python/object/apply:os.getcwd []\n", "is not valid YAML"),
    ],
)
def test_bad_files(tmp_path, content, text):
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(file)
    assert text in str(caught.value)
    assert str(file) in str(caught.value)


def test_missing_file_and_empty_file(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "empty.yaml") == {}


def test_the_same_key_in_two_sections_is_no_repetition(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("a: {x: 1}\nb: {x: 2}\n")
    assert read_yaml(file) == {"a": {"x": 1}, "b": {"x": 2}}


def test_dump_and_load_give_the_same_config(tmp_path):
    config = Example(
        "walk",
        mode="soft",
        optimizer=Optimizer(1e-5, None),
        folder=Path("runs/x"),
        scales={"arm": 1e-7, "leg": 1e300},
        stages=(Optimizer(), Optimizer(0.5)),
    )
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(config))
    assert load_config(Example, file) == config
    assert build(Example, to_dict(config)) == config


def test_differences_name_each_setting_with_both_values():
    before = {"a": {"b": 1, "c": [1, 2]}, "d": None}
    after = {"a": {"b": 2, "c": [1, 2]}, "d": {"e": 1}}
    assert differences(before, after) == {"a.b": [1, 2], "d": [None, {"e": 1}]}
    assert differences(before, before) == {}
