import hashlib
import math

import numpy as np
import onnx
import pytest
from onnx import helper

from deploy.onnx_policy import OnnxPolicy, PolicyError, gaussian_log_prob
from mpo_robot.errors import ConfigError, SpecMismatchError
from tests.support.onnx_files import small_spec, write_linear_policy, write_mlp_policy, write_model

SPEC = small_spec()
WEIGHT = np.array([[0.1, -0.2], [0.3, 0.4], [-0.5, 0.6]])
BIAS = np.array([0.05, -0.1])


@pytest.fixture
def policy(tmp_path):
    return OnnxPolicy(write_linear_policy(tmp_path / "p.onnx", SPEC, WEIGHT, BIAS, stddev=[0.2, 0.5]))


def test_version_is_hash_of_file_and_spec_is_read(tmp_path):
    path = write_linear_policy(tmp_path / "p.onnx", SPEC)
    policy = OnnxPolicy(path)
    assert policy.policy_version == hashlib.sha256(path.read_bytes()).hexdigest()
    assert policy.spec == SPEC
    assert policy.path == path
    assert policy.metadata["spec_hash"] == SPEC.spec_hash


def test_deterministic_action_is_the_normalized_mean_without_density(policy):
    observation = np.array([0.3, -0.1, 0.2], np.float32)
    result = policy.act(observation, stochastic=False)
    np.testing.assert_allclose(result.action, observation @ WEIGHT + BIAS, atol=1e-6)
    np.testing.assert_array_equal(result.action, result.mean)
    np.testing.assert_allclose(result.stddev, [0.2, 0.5], rtol=1e-6)
    assert math.isnan(result.log_prob)
    assert result.action.dtype == result.mean.dtype == result.stddev.dtype == np.float32


def test_the_mean_is_that_of_the_gaussian_and_only_the_command_is_clipped(policy):
    result = policy.act(np.array([100.0, 0.0, 0.0], np.float32), stochastic=False)
    assert (np.abs(result.mean) > 1.5).all()
    np.testing.assert_array_equal(result.action, result.mean)
    command = policy.spec.to_command(result.action)
    np.testing.assert_allclose(command, [policy.spec.command_high[0], policy.spec.command_low[1]], rtol=1e-6)


def test_a_file_of_before_the_output_mean_has_its_gaussian_around_the_clipped_one(tmp_path):
    nodes = [("MatMul", ["obs", "zero"], "m"), ("Add", ["m", "high"], "actions")]
    spread = [("MatMul", ["obs", "zero"], "n"), ("Add", ["n", "row"], "stddev")]
    policy = OnnxPolicy(make(tmp_path, nodes, spread, zero=ZERO, high=SPEC.command_high, row=0.1))
    result = policy.act(np.zeros(3, np.float32), True, np.random.default_rng(0))
    np.testing.assert_allclose(result.mean, [1.0, 1.0], atol=1e-6)
    assert result.log_prob == pytest.approx(gaussian_log_prob(result.action, result.mean, result.stddev))


def test_actions_that_are_not_the_clipped_mean_are_found_at_load(tmp_path):
    nodes = [("MatMul", ["obs", "zero"], "actions"), ("Add", ["actions", "shift"], "mean")]
    spread = [("Add", ["actions", "row"], "stddev")]
    path = make(tmp_path, nodes, spread, zero=ZERO, shift=0.5 * SPEC.command_half_range, row=0.1)
    with pytest.raises(ConfigError, match="not its output 'mean', clipped"):
        OnnxPolicy(path)


def test_log_prob_is_the_density_of_the_returned_action(policy):
    rng = np.random.default_rng(3)
    for _ in range(20):
        observation = rng.standard_normal(3).astype(np.float32)
        result = policy.act(observation, True, rng)
        expected = 0.0
        for action, mean, stddev in zip(result.action, result.mean, result.stddev):
            a, m, s = float(action), float(mean), float(stddev)
            expected += math.log(1.0 / (s * math.sqrt(2.0 * math.pi)) * math.exp(-((a - m) ** 2) / (2.0 * s * s)))
        assert result.log_prob == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_log_prob_is_in_normalized_space_whatever_the_command_range(tmp_path):
    densities = []
    for index, (low, high) in enumerate([(-1.0, 1.0), (-50.0, 50.0), (0.0, 0.002)]):
        spec = small_spec(low=low, high=high)
        policy = OnnxPolicy(write_linear_policy(tmp_path / f"{index}.onnx", spec, stddev=0.3))
        densities.append(policy.act(np.zeros(3, np.float32), True, np.random.default_rng(0)).log_prob)
    np.testing.assert_allclose(densities, densities[0], rtol=1e-5)


def test_gaussian_log_prob_of_the_mean_and_normalization():
    assert gaussian_log_prob([0.0], [0.0], [1.0]) == pytest.approx(-0.9189385332046727, rel=1e-15)
    assert gaussian_log_prob([1.0, 2.0], [1.0, 2.0], [0.5, 2.0]) == pytest.approx(-math.log(2 * math.pi), rel=1e-15)
    grid = np.linspace(-4.0, 5.0, 9001)
    density = np.array([math.exp(gaussian_log_prob([x], [0.4], [0.3])) for x in grid])
    assert density.sum() * (grid[1] - grid[0]) == pytest.approx(1.0, abs=1e-9)


def test_samples_have_the_mean_and_stddev_and_are_not_clipped(tmp_path):
    policy = OnnxPolicy(write_linear_policy(tmp_path / "p.onnx", SPEC, bias=[0.9, -0.2], stddev=[0.5, 0.1]))
    rng = np.random.default_rng(0)
    samples = np.array([policy.act(np.zeros(3, np.float32), True, rng).action for _ in range(4000)])
    np.testing.assert_allclose(samples.mean(0), [0.9, -0.2], atol=4 * 0.5 / math.sqrt(4000))
    np.testing.assert_allclose(samples.std(0), [0.5, 0.1], rtol=0.06)
    assert abs(np.corrcoef(samples.T)[0, 1]) < 0.07
    assert (samples[:, 0] > 1.0).mean() > 0.3


def test_same_generator_state_gives_the_same_action(policy):
    observation = np.ones(3, np.float32)
    first = policy.act(observation, True, np.random.default_rng(5))
    again = policy.act(observation, True, np.random.default_rng(5))
    other = policy.act(observation, True, np.random.default_rng(6))
    np.testing.assert_array_equal(first.action, again.action)
    assert first.log_prob == again.log_prob
    assert not np.array_equal(first.action, other.action)


def test_zero_stddev_has_no_density(tmp_path):
    policy = OnnxPolicy(write_linear_policy(tmp_path / "p.onnx", SPEC, stddev=[0.3, 0.0]))
    result = policy.act(np.zeros(3, np.float32), True, np.random.default_rng(0))
    assert math.isnan(result.log_prob)
    assert result.action[1] == result.mean[1]


def test_results_are_not_overwritten_by_the_next_call(policy):
    first = policy.act(np.zeros(3, np.float32), False)
    kept = first.mean.copy()
    policy.act(np.ones(3, np.float32), False)
    np.testing.assert_array_equal(first.mean, kept)
    first.action[:] = 9.0
    np.testing.assert_array_equal(first.mean, kept)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_observation_that_is_not_finite_is_refused(policy, bad):
    with pytest.raises(PolicyError, match="observation"):
        policy.act(np.array([0.0, bad, 0.0], np.float32), False)


@pytest.mark.parametrize("shape", [(2,), (1, 3), ()])
def test_wrong_observation_shape_is_refused(policy, shape):
    with pytest.raises(ValueError, match="shape"):
        policy.act(np.zeros(shape, np.float32), False)


def test_stochastic_needs_a_generator(policy):
    with pytest.raises(ValueError, match="generator"):
        policy.act(np.zeros(3, np.float32), True)


def make(tmp_path, actions, stddev, **initializers):
    """File whose outputs are the given nodes' results (each a list of (op, inputs, output))."""
    nodes = [helper.make_node(op, inputs, [output]) for op, inputs, output in [*actions, *stddev]]
    arrays = {name: np.asarray(value, np.float32) for name, value in initializers.items()}
    return write_model(tmp_path / "p.onnx", SPEC, nodes, arrays)


MEAN = [("MatMul", ["obs", "zero"], "actions")]
ZERO = np.zeros((3, 2))


def test_output_that_turns_nan_later_never_leaves(tmp_path):
    stddev = [("MatMul", ["obs", "ones"], "sum"), ("Sub", ["limit", "sum"], "room"), ("Sqrt", ["room"], "stddev")]
    policy = OnnxPolicy(make(tmp_path, MEAN, stddev, zero=ZERO, ones=np.ones((3, 2)), limit=1e5))
    assert np.isfinite(policy.act(np.zeros(3, np.float32), True, np.random.default_rng(0)).action).all()
    for stochastic in (False, True):
        with pytest.raises(PolicyError, match="NaN"):
            policy.act(np.full(3, 1e6, np.float32), stochastic, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("stddev", "bias", "text"),
    [(-0.1, 0.0, "negative"), (math.nan, 0.0, "not finite"), (0.1, 5.0, "bounds"), (0.1, math.nan, "not finite")],
)
def test_outputs_that_break_the_contract_are_found_at_load(tmp_path, stddev, bias, text):
    nodes = [("MatMul", ["obs", "zero"], "m"), ("Add", ["m", "bias"], "actions")]
    spread = [("MatMul", ["obs", "zero"], "n"), ("Add", ["n", "row"], "stddev")]
    path = make(tmp_path, nodes, spread, zero=ZERO, bias=bias, row=np.full(2, stddev))
    with pytest.raises(ConfigError, match=text):
        OnnxPolicy(path)


def test_missing_file_and_garbage_are_config_errors(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        OnnxPolicy(tmp_path / "absent.onnx")
    for data in (b"", b"not a model", bytes(range(256)) * 40):
        (tmp_path / "bad.onnx").write_bytes(data)
        with pytest.raises(ConfigError):
            OnnxPolicy(tmp_path / "bad.onnx")


def test_truncated_file_is_refused(tmp_path):
    data = write_mlp_policy(tmp_path / "p.onnx", SPEC, (32, 32)).read_bytes()
    for size in (len(data) // 3, len(data) - 200):
        (tmp_path / "cut.onnx").write_bytes(data[:size])
        with pytest.raises(ConfigError):
            OnnxPolicy(tmp_path / "cut.onnx")


@pytest.mark.parametrize(
    ("entries", "error", "text"),
    [
        ({"schema_version": 2}, ConfigError, "schema_version 2"),
        ({"schema_version": None}, ConfigError, "schema_version None"),
        ({"spec": None}, ConfigError, "no policy spec"),
        ({"spec": {"schema_version": 1}}, ConfigError, "malformed policy spec"),
        ({"spec_hash": None}, SpecMismatchError, "spec_hash"),
        ({"spec_hash": "0" * 64}, SpecMismatchError, "edited or damaged"),
        ({"spec": {**SPEC.to_dict(), "control_dt": 0.05}}, SpecMismatchError, "edited or damaged"),
        ({"spec": small_spec(4).to_dict(), "spec_hash": small_spec(4).spec_hash}, ConfigError, "batch, 4"),
        ({"spec": small_spec(3, 3).to_dict(), "spec_hash": small_spec(3, 3).spec_hash}, ConfigError, "batch, 3"),
    ],
)
def test_faulty_metadata_is_refused(tmp_path, entries, error, text):
    path = write_linear_policy(tmp_path / "p.onnx", SPEC, metadata=entries)
    with pytest.raises(error, match=text):
        OnnxPolicy(path)


@pytest.mark.parametrize("value", [None, "{", "[1]"])
def test_metadata_that_is_missing_or_not_an_object_is_refused(tmp_path, value):
    path = write_linear_policy(tmp_path / "p.onnx", SPEC)
    model = onnx.load(path)
    helper.set_model_props(model, {} if value is None else {"mpo_robot": value})
    onnx.save(model, path)
    with pytest.raises(ConfigError, match="metadata"):
        OnnxPolicy(path)


def test_wrong_names_and_shapes_are_refused(tmp_path):
    path = write_linear_policy(tmp_path / "p.onnx", SPEC)

    def spoil(edit):
        model = onnx.load(path)
        edit(model.graph)
        onnx.save(model, tmp_path / "bad.onnx")
        return tmp_path / "bad.onnx"

    def rename_input(graph):
        graph.input[0].name = "x"
        for node in graph.node:
            node.input[:] = ["x" if name == "obs" else name for name in node.input]

    def drop_stddev(graph):
        del graph.output[1]

    def fix_batch(graph):
        graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8

    for edit, text in ((rename_input, "inputs"), (drop_stddev, "lacks"), (fix_batch, "batch")):
        with pytest.raises(ConfigError, match=text):
            OnnxPolicy(spoil(edit))
