"""The exported graph of a discrete policy: parity, the normaliser inside, and who runs it and who refuses it."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import mpo_robot.export as export_module
from deploy.categorical_policy import OnnxCategoricalPolicy, open_policy
from deploy.onnx_policy import OnnxPolicy
from deploy.registry import PolicyRegistry
from mpo_robot.categorical_acting import CategoricalActor
from mpo_robot.categorical_config import CategoricalConfig
from mpo_robot.categorical_networks import CategoricalPolicy, Interface
from mpo_robot.cli.inspect_policy import describe
from mpo_robot.errors import ConfigError, ExportError
from mpo_robot.export import export_policy
from mpo_robot.networks import PolicyConfig
from mpo_robot.normalization import RunningNormalizer
from mpo_robot.specs import PolicySpec, TermSpec
from tests.support.discrete_point import SPEC

IMAGE = PolicySpec(tuple(TermSpec(f"frame_{index}", 36 * 36) for index in range(2)), SPEC.command, 0.1)


def make_policy(spec, torso="mlp", scale=1.0):
    torch.manual_seed(0)
    config = CategoricalConfig(torso=torso, observation_scale=scale)
    policy = CategoricalPolicy(Interface.of(spec), config, PolicyConfig(hidden_sizes=(16, 16)))
    with torch.no_grad():
        policy.head.weight.mul_(300.0)
    return policy


@pytest.fixture(scope="module")
def normalizer():
    normalizer = RunningNormalizer(SPEC.observation_size)
    observations = np.random.default_rng(0).standard_normal((200, 3)) * [5, 0.1, 1] + [3, 0, -7]
    normalizer.update(observations.astype(np.float32))
    return normalizer


@pytest.fixture(scope="module")
def exported(normalizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "policy.onnx"
    return path, export_policy(make_policy(SPEC), normalizer, SPEC, path, {"run": "runs/x", "task": "t"})


def run(path, observations):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["actions", "logits"], {"obs": observations})


def test_outputs_are_the_actors_with_the_normaliser_folded_in(exported, normalizer):
    actor = CategoricalActor(make_policy(SPEC))
    observations = (np.random.default_rng(1).standard_normal((64, 3)) * 5).astype(np.float32)
    actions, logits = run(exported[0], observations)
    assert actions.dtype == np.float32
    assert actions.shape == (64, 1)
    assert logits.shape == (64, 4)
    assert len(np.unique(actions)) > 2
    for observation, action, row in zip(observations, actions, logits):
        expected, log_probs = actor.distribution(normalizer(observation))
        assert action.tolist() == expected.tolist()
        shifted = row.astype(np.float64) - row.max()
        np.testing.assert_allclose(shifted - np.log(np.exp(shifted).sum()), log_probs, atol=1e-4)


def test_metadata(exported):
    path, parity = exported
    entries = {item.key: item.value for item in onnx.load(path).metadata_props}
    record = json.loads(entries["mpo_robot"])
    assert PolicySpec.from_dict(record["spec"]) == SPEC
    assert record["spec"]["command"][0]["choices"] == 4
    assert record["parity"] == {"max_abs_error": parity.max_abs_error, "observations": 1000}
    assert 0 < parity.max_abs_error <= 1e-5
    assert "action_scale" not in entries


def test_convolutions_export_too(tmp_path):
    policy = make_policy(IMAGE, "dqn", scale=255.0)
    export_policy(policy, None, IMAGE, tmp_path / "p.onnx", {})
    observations = np.random.default_rng(1).integers(256, size=(3, IMAGE.observation_size)).astype(np.float32)
    actions, logits = run(tmp_path / "p.onnx", observations)
    with torch.no_grad():
        expected = policy(torch.from_numpy(observations)).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert actions.ravel().tolist() == expected.argmax(1).tolist()


@pytest.mark.parametrize("fault", [1e-3, np.nan])
def test_a_graph_that_disagrees_is_refused(normalizer, tmp_path, monkeypatch, fault):
    original = export_module._to_onnx

    def broken(module, size):
        model = original(module, size)
        tensor = next(item for item in model.graph.initializer if sorted(item.dims) == [4, 16])  # the head
        values = onnx.numpy_helper.to_array(tensor).copy()
        values.flat[1] += fault
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return model

    monkeypatch.setattr(export_module, "_to_onnx", broken)
    with pytest.raises(ExportError, match="was not written"):
        export_policy(make_policy(SPEC), normalizer, SPEC, tmp_path / "policy.onnx", {})
    assert list(tmp_path.iterdir()) == []


def test_another_action_is_a_difference_unless_it_is_a_tie(normalizer):
    module = export_module.ExportedCategoricalPolicy(make_policy(SPEC), normalizer, SPEC)
    logits = np.array([[1.0, 4.0, 2.0], [3.0, 3.0, 0.0]], np.float32)
    expected = [np.array([[1.0], [0.0]], np.float32), logits]
    same = module.differences([np.array([[1.0], [1.0]], np.float32), logits], expected)
    assert max(item.max() for item in same) == 0.0
    other = module.differences([np.array([[2.0], [0.0]], np.float32), logits], expected)
    assert max(item.max() for item in other) == pytest.approx(0.5)


def test_evaluation_opens_it_and_the_robot_side_refuses_it(exported):
    path, _ = exported
    policy = open_policy(path)
    assert isinstance(policy, OnnxCategoricalPolicy)
    assert policy.spec == SPEC
    observation = np.array([1.0, 0.3, -6.0], np.float32)
    assert policy.best_action(observation).tolist() == run(path, observation[None])[0][0].tolist()
    with pytest.raises(ConfigError, match="one of 4 discrete actions"):
        OnnxPolicy(path)
    with pytest.raises(ConfigError, match="one of 4 discrete actions"):
        PolicyRegistry(path.parent / "registry").publish(path)
    facts = describe(path)
    assert facts["command"][0]["choices"] == 4
    assert facts["graph"] == "as exported"
