"""The exported graph: parity, everything folded in, a gate that refuses, deterministic bytes."""

import json
import math

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import mpo_robot.export as export_module
from deploy.action_source import LocalSource
from deploy.onnx_policy import OnnxPolicy, PolicyError, gaussian_log_prob
from mpo_robot.acting import NumpyActor
from mpo_robot.errors import ExportError
from mpo_robot.export import export_policy
from mpo_robot.learners import make_learner
from mpo_robot.networks import GaussianPolicy, PolicyConfig
from mpo_robot.normalization import RunningNormalizer
from mpo_robot.specs import PolicySpec, TermSpec
from tests.support.learning import CONFIG, change
from tests.support.tiny_run import SPEC


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    policy = GaussianPolicy(SPEC.observation_size, SPEC.action_size, PolicyConfig(hidden_sizes=(16, 16)))
    with torch.no_grad():
        policy.head.weight.mul_(300.0)  # means inside and outside the bounds
    return policy


@pytest.fixture(scope="module")
def normalizer():
    normalizer = RunningNormalizer(SPEC.observation_size)
    observations = np.random.default_rng(0).standard_normal((200, 3)) * [5, 0.1, 1] + [3, 0, -7]
    normalizer.update(observations.astype(np.float32))
    return normalizer


@pytest.fixture(scope="module")
def exported(policy, normalizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "policy.onnx"
    parity = export_policy(policy, normalizer, SPEC, path, {"run": "runs/x", "task": "t"})
    return path, parity


def test_outputs_are_physical_commands_with_normaliser_and_scaling_folded_in(exported, policy, normalizer):
    session = onnxruntime.InferenceSession(str(exported[0]), providers=["CPUExecutionProvider"])
    observations = (np.random.default_rng(1).standard_normal((64, 3)) * 10).astype(np.float32)
    actions, stddev, exact = session.run(["actions", "stddev", "mean"], {"obs": observations})
    with torch.no_grad():
        mean, spread = policy(torch.from_numpy(normalizer(observations)))
    assert (np.abs(mean.numpy()) > 1).any()  # so that clipping is tested
    np.testing.assert_allclose(actions, SPEC.to_command(mean.numpy()), atol=2e-5)
    np.testing.assert_allclose(
        exact, SPEC.command_center + SPEC.command_half_range * mean.numpy(), rtol=1e-4, atol=2e-5
    )
    np.testing.assert_allclose(stddev, spread.numpy() * SPEC.command_half_range, rtol=1e-5)
    assert (actions >= SPEC.command_low).all()
    assert (actions <= SPEC.command_high).all()


def test_any_batch_size_works(exported):
    session = onnxruntime.InferenceSession(str(exported[0]), providers=["CPUExecutionProvider"])
    for size in (1, 2, 7, 1000):
        results = session.run(["actions", "stddev", "mean"], {"obs": np.zeros((size, 3), np.float32)})
        assert {result.shape for result in results} == {(size, 2)}


def test_the_robot_side_sees_the_same_policy_as_the_trainer(exported, policy, normalizer):
    loaded, actor = OnnxPolicy(exported[0]), NumpyActor(policy)
    assert loaded.spec == SPEC
    for seed in range(20):
        observation = np.random.default_rng(seed).standard_normal(3).astype(np.float32)
        action = loaded.act(observation, stochastic=False, rng=np.random.default_rng(0))
        mean, stddev = actor.distribution(normalizer(observation))
        np.testing.assert_allclose(action.action, mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(action.stddev, stddev, rtol=1e-4)


def test_the_robot_samples_the_policy_that_was_trained_where_its_mean_is_outside_the_bounds_too(
    exported, policy, normalizer
):
    loaded, actor = OnnxPolicy(exported[0]), NumpyActor(policy)
    outside = 0
    for seed in range(50):
        observation = normalizer((10 * np.random.default_rng(seed).standard_normal(3)).astype(np.float32))
        raw = observation / normalizer.scale + normalizer.offset
        served = loaded.act(raw.astype(np.float32), True, np.random.default_rng(seed))
        trained = actor.sample(observation, np.random.default_rng(seed).standard_normal(2).astype(np.float32))
        np.testing.assert_allclose(served.action, trained.action, rtol=1e-3, atol=1e-4)
        assert served.log_prob == pytest.approx(trained.log_prob, abs=1e-2)
        outside += bool((np.abs(actor.distribution(observation)[0]) > 1.5).any())
    assert outside > 10


def test_metadata_is_complete_and_at_full_precision(exported):
    path, parity = exported
    entries = {item.key: item.value for item in onnx.load(path).metadata_props}
    record = json.loads(entries["mpo_robot"])
    assert record["spec"] == SPEC.to_dict()
    assert record["spec_hash"] == SPEC.spec_hash
    assert record["parity"] == {"max_abs_error": parity.max_abs_error, "observations": 1000}
    assert record["training"] == {"run": "runs/x", "task": "t"}
    assert 0 < parity.max_abs_error <= 1e-5
    assert entries["observation_names"] == "position,velocity"
    assert entries["joint_names"] == "motor_0,motor_1"
    assert [float(text) for text in entries["action_scale"].split(",")] == [2.0, 2.0]


def test_the_same_policy_gives_the_same_bytes_and_so_the_same_version(policy, normalizer, tmp_path):
    files = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for file in files:
        export_policy(policy, normalizer, SPEC, file, {})
    assert files[0].read_bytes() == files[1].read_bytes()


def test_nothing_of_the_exporting_machine_is_in_the_graph(exported):
    assert b"mpo_robot/export.py" not in exported[0].read_bytes()


def test_without_a_normaliser_raw_observations_go_in(policy, tmp_path):
    export_policy(policy, None, SPEC, tmp_path / "p.onnx", {})
    observation = np.array([0.5, -1.0, 20.0], np.float32)
    mean, _ = NumpyActor(policy).distribution(observation.copy())
    action = OnnxPolicy(tmp_path / "p.onnx").act(observation, stochastic=False, rng=np.random.default_rng(0)).action
    np.testing.assert_allclose(action, np.clip(mean, -1, 1), atol=1e-5)


@pytest.mark.parametrize("fault", ["weights", "nan", "nan in the stddev only"])
def test_a_graph_that_disagrees_is_refused_and_the_old_file_stays(policy, normalizer, tmp_path, monkeypatch, fault):
    path = tmp_path / "policy.onnx"
    path.write_bytes(b"the policy in use")
    original = export_module._to_onnx

    def broken(module, size):
        model = original(module, size)
        tensor = next(item for item in model.graph.initializer if "head.bias" in item.name)
        values = onnx.numpy_helper.to_array(tensor).copy()
        first = SPEC.action_size if "stddev" in fault else 0  # the second half of the head is the stddev
        values[first:] += 1e-3 if fault == "weights" else np.nan
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return model

    monkeypatch.setattr(export_module, "_to_onnx", broken)
    with pytest.raises(ExportError, match="was not written"):
        export_policy(policy, normalizer, SPEC, path, {})
    assert path.read_bytes() == b"the policy in use"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_a_clear_error(policy, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot write"):
        export_policy(policy, None, SPEC, tmp_path / "file" / "policy.onnx", {})


def test_the_graph_hash_is_the_one_that_the_robot_side_finds_in_the_bytes(exported):
    policy = OnnxPolicy(exported[0])
    assert policy.graph_hash == policy.metadata["graph_hash"]


@pytest.mark.parametrize("algorithm", ["sac", "ddpg", "epg"])
def test_baselines_export_what_their_evaluations_do(algorithm, normalizer, tmp_path):
    learner = make_learner(SPEC, change(CONFIG, algorithm=algorithm), 0)
    with torch.no_grad():
        learner.flat["policy"].add_(0.5 * torch.randn(learner.flat["policy"].shape, generator=learner.generator))
    path, actor = tmp_path / "policy.onnx", learner.averaged_actor()
    export_policy(learner.exported_policy(), normalizer, SPEC, path, {})
    loaded = OnnxPolicy(path)
    assert loaded.has_density == (algorithm != "sac")
    rng = np.random.default_rng(0)
    for _ in range(10):
        observation = rng.standard_normal(3).astype(np.float32)
        action = loaded.act(observation, stochastic=False)
        mean, stddev = actor.distribution(normalizer(observation))
        np.testing.assert_allclose(action.action, mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(action.stddev, stddev, rtol=1e-3)
        if loaded.has_density:
            sampled = loaded.act(observation, stochastic=True, rng=rng)
            assert sampled.log_prob == pytest.approx(gaussian_log_prob(sampled.action, action.mean, action.stddev))
        else:
            with pytest.raises(PolicyError, match="no density"):
                loaded.act(observation, stochastic=True, rng=rng)
            with pytest.raises(PolicyError, match="no density"):
                LocalSource(loaded, stochastic=True)
            assert math.isnan(LocalSource(loaded, stochastic=False).act(observation, 0, 0).log_prob)


@pytest.mark.parametrize("size", [1, 3])
def test_a_full_covariance_exports_its_marginal_stddevs(size, tmp_path):
    bounds = {"low": (-1.0,) * size, "high": (1.0,) * size}
    spec = PolicySpec((TermSpec("state", 4),), (TermSpec("motor", size, **bounds),), 0.02)
    policy = GaussianPolicy(4, size, PolicyConfig(hidden_sizes=(8,), covariance="full"))
    with torch.no_grad():
        policy.head.weight.mul_(100.0)
    parity = export_policy(policy, None, spec, tmp_path / "full.onnx", {})
    assert parity.max_abs_error <= 1e-5
    observation = np.linspace(-1.0, 1.0, 4, dtype=np.float32)
    with torch.no_grad():
        scale_tril = policy(torch.from_numpy(observation)[None]).scale_tril[0]
    action = OnnxPolicy(tmp_path / "full.onnx").act(observation, stochastic=False)
    np.testing.assert_allclose(action.stddev, scale_tril.square().sum(dim=1).sqrt(), rtol=1e-4)
