"""Each model parameter changes as computed by hand, the same as a model compiled with the values, and never adds up."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from mpo_robot.errors import ConfigError
from sim.config import EnvironmentConfig
from sim.make import make_environment
from sim.model_terms import MODEL_BINDERS, bind_com, bind_friction, bind_gain, bind_mass
from sim.randomization_config import RandomizationConfig, RandomizationTerm
from sim.state import DerivedConstants, ModelFields
from sim.tasks import make_backend

WALKER, FISH = "dm_control:walker-walk", "dm_control:fish-swim"
XML = """
<mujoco>
  <option timestep="0.002" gravity="0 0 {gravity}"/>
  <worldbody>
    <geom name="floor" type="plane" size="5 5 .1"/>
    <body name="base" pos="0 0 .5">
      <freejoint name="root"/>
      <inertial pos="{com} 0 0" mass="{mass}" diaginertia="{inertia} {inertia} {inertia}"/>
      <geom name="ball" size=".1" mass="0" friction="{friction} .005 .0001"/>
      <body name="link" pos="0 0 .2">
        <joint name="hinge" axis="0 1 0" damping="{damping}" armature="{armature}" frictionloss="{frictionloss}"/>
        <inertial pos="0 0 .1" mass=".5" diaginertia=".01 .01 .01"/>
        <geom name="rod" type="capsule" fromto="0 0 0 0 0 .3" size=".03" mass="0"/>
      </body>
    </body>
    <body name="puck" pos="1 0 .5">
      <freejoint/>
      <inertial pos="0 0 0" mass="1" diaginertia=".01 .01 .01"/>
      <geom size=".1" mass="0"/>
    </body>
  </worldbody>
  <actuator>
    <position name="servo" joint="hinge" kp="{kp}"/>
    <motor name="motor" joint="hinge"/>
    <muscle name="muscle" joint="hinge" lengthrange="0 1"/>
  </actuator>
</mujoco>
"""
DEFAULTS = {
    "gravity": -9.81, "com": 0.0, "mass": 1.0, "inertia": 0.01, "friction": 1.0, "damping": 0.1, "armature": 0.01,
    "frictionloss": 0.05, "kp": 5.0,
}  # fmt: skip


def compile_model(**values: float) -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(XML.format(**{**DEFAULTS, **values}))


def fall(model: mujoco.MjModel) -> np.ndarray:
    """Pose after 0.6 s of falling, hitting the floor and being driven."""
    data = mujoco.MjData(model)
    data.qvel[:], data.ctrl[0] = 0.3, 0.5
    mujoco.mj_step(model, data, 300)
    return data.qpos.copy()


@pytest.mark.parametrize(
    ("settings", "compiled"),
    [
        ({"parameter": "body_mass", "operation": "scale", "select": ("base",), "low": 2}, {"mass": 2, "inertia": 0.02}),
        ({"parameter": "body_mass", "operation": "add", "select": ("base",), "low": 1}, {"mass": 2, "inertia": 0.02}),
        ({"parameter": "body_mass", "operation": "abs", "select": ("base",), "low": 3}, {"mass": 3, "inertia": 0.03}),
        ({"parameter": "body_inertia", "select": ("base",), "low": 3}, {"inertia": 0.03}),
        ({"parameter": "body_com", "select": ("base",), "components": (0,), "low": 0.05}, {"com": 0.05}),
        ({"parameter": "geom_friction", "select": ("ball",), "operation": "abs", "low": 0.3}, {"friction": 0.3}),
        ({"parameter": "joint_damping", "operation": "scale", "low": 4}, {"damping": 0.4}),
        ({"parameter": "joint_armature", "operation": "add", "low": 0.1}, {"armature": 0.11}),
        ({"parameter": "joint_frictionloss", "operation": "abs", "low": 0.4}, {"frictionloss": 0.4}),
        ({"parameter": "actuator_gain", "select": ("servo",), "low": 0.5}, {"kp": 2.5}),
        ({"parameter": "actuator_gain", "select": ("servo",), "operation": "abs", "low": 2}, {"kp": 2}),
        ({"parameter": "actuator_gain", "select": ("servo",), "operation": "add", "low": 1}, {"kp": 6}),
        ({"parameter": "gravity", "operation": "scale", "low": 0.5}, {"gravity": -4.905}),
        ({"parameter": "gravity", "operation": "abs", "low": -5}, {"gravity": -5}),
        ({"parameter": "gravity", "operation": "add", "components": (2,), "low": 1}, {"gravity": -8.81}),
    ],
)
def test_the_changed_model_moves_like_a_compiled_one(settings, compiled):
    model = compile_model()
    term = RandomizationTerm(**{"operation": None, **settings, "high": settings["low"]})
    constants = DerivedConstants(model)
    bound = MODEL_BINDERS[term.parameter](model, term)
    bound.draw(np.random.default_rng(0))
    bound.apply(bound.spread())
    if bound.derived:
        constants.update()
    expected = compile_model(**compiled)
    for name, array in ModelFields(expected)._compiled.items():
        present = ModelFields(model)._compiled[name]
        np.testing.assert_allclose(present, array, rtol=1e-9, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(fall(model), fall(expected), atol=1e-9)
    if "friction" not in compiled:  # the floor's coefficient, which is larger, decides
        assert np.abs(fall(model) - fall(compile_model())).max() > 1e-4


def test_each_element_has_its_own_draw_unless_shared():
    model = compile_model()
    own = bind_mass(model, RandomizationTerm("body_mass", low=0.5, high=2))
    own.draw(np.random.default_rng(0))
    assert own.labels == ("base", "link", "puck")
    assert len(set(own.draws.ravel().tolist())) == 3
    assert own.as_info()["values"] == dict(zip(own.labels, own.draws[:, 0].tolist()))
    shared = bind_mass(model, RandomizationTerm("body_mass", low=0.5, high=2, shared=True))
    shared.draw(np.random.default_rng(0))
    assert shared.draws.shape == (1, 1)
    assert shared.as_info() == {"operation": "scale", "values": {"shared": shared.draws.item()}}
    before = model.body_mass.copy()
    shared.apply(shared.spread())
    np.testing.assert_allclose(model.body_mass[1:], before[1:] * shared.draws.item())


def test_components_of_friction_are_chosen():
    model = compile_model()
    bound = bind_friction(model, RandomizationTerm("geom_friction", select=("ball",), components=(1, 2), low=2, high=3))
    bound.draw(np.random.default_rng(0))
    bound.apply(bound.spread())
    row = model.geom("ball").friction
    assert row[0] == 1.0
    np.testing.assert_allclose(row[1:], np.array([0.005, 0.0001]) * bound.draws[0])


def test_what_mujoco_cannot_change_is_refused():
    model = compile_model()
    with pytest.raises(ConfigError, match="puck as a simple body"):
        bind_com(model, RandomizationTerm("body_com", select=("puck",), low=0, high=1))
    assert bind_com(model, RandomizationTerm("body_com", low=0, high=1)).labels == ("base", "link")
    with pytest.raises(ConfigError, match="muscle is a muscle"):
        bind_gain(model, RandomizationTerm("actuator_gain", low=1, high=1))


def test_unnamed_elements_have_names():
    model = compile_model()
    assert bind_friction(model, RandomizationTerm("geom_friction", low=1, high=1)).labels[-1] == "geom_3"


def environment_with(task: str, *terms: RandomizationTerm, startup_seed: int = 0):
    return make_environment(EnvironmentConfig(task, RandomizationConfig(terms), startup_seed=startup_seed))


def everything(mode: str) -> tuple[RandomizationTerm, ...]:
    timing = {"mode": mode, "interval_s": (0.05, 0.05) if mode == "interval" else None}
    return (
        RandomizationTerm("body_mass", low=0.5, high=2, **timing),
        RandomizationTerm("body_mass", operation="add", select=("torso",), low=1, high=2, **timing),
        RandomizationTerm("body_inertia", low=0.5, high=2, **timing),
        RandomizationTerm("body_com", select=("torso",), low=-0.1, high=0.1, **timing),
        RandomizationTerm("geom_friction", low=0.5, high=2, **timing),
        RandomizationTerm("joint_damping", operation="add", low=0, high=2, **timing),
        RandomizationTerm("joint_armature", low=0.5, high=2, **timing),
        RandomizationTerm("joint_frictionloss", operation="abs", low=0.5, high=2, **timing),
        RandomizationTerm("actuator_gain", low=0.5, high=2, **timing),
        RandomizationTerm("gravity", low=0.5, high=2, **timing),
    )


def expected_walker(record: dict) -> dict[str, np.ndarray]:
    """Walker's fields computed from the compiled ones and the recorded draws, written out by hand."""
    model = make_backend(WALKER).model
    body = lambda name: model.body(name).id  # noqa: E731
    fields = {name: getattr(model, name).copy() for name in (
        "body_mass", "body_inertia", "body_ipos", "geom_friction", "dof_damping", "dof_armature", "dof_frictionloss",
        "actuator_gainprm",
    )}  # fmt: skip
    for name, factor in record["body_mass"]["values"].items():
        fields["body_mass"][body(name)] *= factor
        fields["body_inertia"][body(name)] *= factor
    mass = fields["body_mass"][body("torso")]
    added = record["body_mass#2"]["values"]["torso"]
    fields["body_mass"][body("torso")] = mass + added
    fields["body_inertia"][body("torso")] *= (mass + added) / mass
    for name, factor in record["body_inertia"]["values"].items():
        fields["body_inertia"][body(name)] *= factor
    fields["body_ipos"][body("torso")] += record["body_com"]["values"]["torso"]
    for name, factor in record["geom_friction"]["values"].items():
        fields["geom_friction"][model.geom(name).id, 0] *= factor
    for name, value in record["joint_damping"]["values"].items():
        fields["dof_damping"][model.joint(name).dofadr[0]] += value
    for name, factor in record["joint_armature"]["values"].items():
        fields["dof_armature"][model.joint(name).dofadr[0]] *= factor
    for name, value in record["joint_frictionloss"]["values"].items():
        fields["dof_frictionloss"][model.joint(name).dofadr[0]] = value
    for name, factor in record["actuator_gain"]["values"].items():
        fields["actuator_gainprm"][model.actuator(name).id] *= factor
    fields["gravity"] = model.opt.gravity * record["gravity"]["values"]
    return fields


@pytest.mark.parametrize("mode", ["startup", "reset", "interval"])
def test_values_follow_from_the_defaults_however_often_they_are_drawn(mode):
    environment = environment_with(WALKER, *everything(mode))
    model = environment.backend.model
    records = []
    for seed in range(4):
        _, info = environment.reset(seed=seed)
        records.append(info["randomization"])
        if mode == "interval":
            for _ in range(5):
                info = environment.step(np.zeros(6)).info
            assert info["randomization"] != records[-1]
        for name, array in expected_walker(info["randomization"]).items():
            present = model.opt.gravity if name == "gravity" else getattr(model, name)
            np.testing.assert_allclose(present, array, rtol=1e-12, err_msg=name)
        assert model.body_subtreemass[0] == pytest.approx(model.body_mass.sum())
    assert (records[0] == records[1]) == (mode == "startup")


def test_equal_draws_give_equal_models_after_any_history():
    old, new = (environment_with(WALKER, *everything("reset")) for _ in range(2))
    compiled = ModelFields(make_backend(WALKER).model)
    for seed in range(3):
        old.reset(seed=seed)
    old.reset(seed=9)
    new.reset(seed=9)
    fields = ModelFields(old.backend.model)._compiled
    for name, array in ModelFields(new.backend.model)._compiled.items():
        np.testing.assert_array_equal(fields[name], array, err_msg=name)
    assert sum(not np.array_equal(fields[name], array) for name, array in compiled._compiled.items()) > 10


def test_startup_draws_depend_on_the_startup_seed_alone():
    term = RandomizationTerm("body_mass", low=0.5, high=2, mode="startup")
    first, second, other = (environment_with(WALKER, term, startup_seed=seed) for seed in (0, 0, 1))
    records = [env.reset(seed=seed)[1]["randomization"] for seed, env in enumerate((first, second, other))]
    assert records[0] == records[1]
    assert records[0] != records[2]


def test_a_servo_keeps_its_set_point():
    environment = environment_with(FISH, RandomizationTerm("actuator_gain", low=0.5, high=0.5))
    environment.reset(seed=0)
    nominal, model = make_backend(FISH).model, environment.backend.model
    assert (nominal.actuator_biasprm[:, 1] != 0).any()
    np.testing.assert_allclose(model.actuator_gainprm, nominal.actuator_gainprm * 0.5)
    np.testing.assert_allclose(model.actuator_biasprm, nominal.actuator_biasprm * 0.5)


def test_what_a_task_writes_into_the_model_at_reset_is_the_default():
    term = RandomizationTerm("joint_damping", select=("hinge",), low=2, high=2)
    environment = environment_with("dm_control:finger-spin", term)
    environment.reset(seed=0)
    environment.reset(seed=1)
    assert environment.backend.model.joint("hinge").damping == pytest.approx(0.06)  # the task sets 0.03


def test_the_nominal_model_is_untouched_without_model_terms():
    environment = environment_with(WALKER, RandomizationTerm("action_delay", low=1, high=1))
    nominal = make_environment(EnvironmentConfig(WALKER))
    observation, _ = environment.reset(seed=4)
    np.testing.assert_array_equal(observation, nominal.reset(seed=4)[0])
    assert ModelFields(make_backend(WALKER).model).changed() == {}


def test_factors_of_one_change_nothing_in_the_motion():
    terms = [RandomizationTerm(name, operation="scale", low=1, high=1) for name in (
        "body_mass", "body_inertia", "geom_friction", "joint_damping", "joint_armature", "actuator_gain", "gravity"
    )]  # fmt: skip
    actions = np.random.default_rng(0).uniform(-1, 1, (10, 6))
    for task in (WALKER, "gymnasium:HalfCheetah-v4"):
        environment, nominal = environment_with(task, *terms), make_environment(EnvironmentConfig(task))
        np.testing.assert_array_equal(environment.reset(seed=0)[0], nominal.reset(seed=0)[0])
        for action in actions:
            mine, raw = environment.step(action), nominal.step(action)
            np.testing.assert_allclose(mine.observation, raw.observation, atol=1e-6)
            assert mine.reward == pytest.approx(raw.reward, abs=1e-8)
