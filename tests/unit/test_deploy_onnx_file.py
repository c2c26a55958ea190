"""The graph's hash from a file's bytes: what `onnx` gives for the model without metadata, and every change counts."""

import hashlib

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.onnx_file import graph_hash
from deploy.onnx_policy import OnnxPolicy
from deploy.registry import PolicyRegistry
from deploy.registry_import import import_policy
from mpo_robot.cli.main import main
from mpo_robot.errors import ConfigError
from tests.support.onnx_files import small_spec, write_linear_policy, write_mlp_policy

SPEC = small_spec()


def reference(path):
    model = onnx.load(path)
    del model.metadata_props[:]
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def tampered(path, factor=50.0):
    """The policy with its weights multiplied, and its metadata as it was."""
    model = onnx.load(path)
    for initializer in model.graph.initializer:
        if initializer.name.startswith("weight"):
            values = onnx.numpy_helper.to_array(initializer) * factor
            initializer.CopyFrom(onnx.numpy_helper.from_array(values.astype("float32"), initializer.name))
    target = path.with_name("tampered.onnx")
    onnx.save(model, target)
    return target


def test_it_is_the_hash_of_the_model_without_metadata(tmp_path):
    linear = write_linear_policy(tmp_path / "a.onnx", SPEC, metadata={"training": {"task": "walk"}})
    network = write_mlp_policy(tmp_path / "b.onnx", SPEC, (32, 32))
    for path in (linear, network):
        assert graph_hash(path.read_bytes()) == reference(path)
    assert graph_hash(linear.read_bytes()) != graph_hash(network.read_bytes())


def test_metadata_does_not_count_and_everything_else_does(tmp_path):
    path = write_linear_policy(tmp_path / "a.onnx", SPEC)
    before = graph_hash(path.read_bytes())
    for edit, same in (
        (lambda model: model.metadata_props.add(key="note", value="x" * 300), True),
        (lambda model: setattr(model.opset_import[0], "version", 18), False),
        (lambda model: setattr(model.graph.node[0], "op_type", "Gemm"), False),
        (lambda model: setattr(model, "doc_string", "x"), False),
        (lambda model: model.functions.add(name="f", domain="d"), False),
    ):
        model = onnx.load(path)
        edit(model)
        assert (graph_hash(model.SerializeToString(deterministic=True)) == before) is same


def test_a_second_graph_field_which_protobuf_would_merge_counts(tmp_path):
    path = write_linear_policy(tmp_path / "a.onnx", SPEC)
    extra = onnx.ModelProto()
    extra.graph.doc_string = "more"
    assert graph_hash(path.read_bytes() + extra.SerializeToString()) != graph_hash(path.read_bytes())


@given(st.binary(max_size=60))
def test_bytes_that_are_no_message_are_a_value_error_and_never_another(data):
    try:
        digest = graph_hash(data)
    except ValueError:
        return
    assert len(digest) == 64


@pytest.mark.parametrize(
    "data", [b"\x08", b"\x3a\x05abc", b"\x0b", b"\x09\x00", b"\xff" * 11, b"\x0d\x00\x00"], ids=range(6)
)
def test_cut_off_and_unknown_fields_are_refused(data):
    with pytest.raises(ValueError, match=r"byte|number"):
        graph_hash(data)


def test_changed_weights_are_refused_wherever_a_policy_is_used(tmp_path, capsys):
    path = write_linear_policy(tmp_path / "p.onnx", SPEC, weight=[[0.1, 0.2]] * 3)
    bad = tampered(path)
    with pytest.raises(ConfigError, match="export it again"):
        OnnxPolicy(bad)
    registry = PolicyRegistry(tmp_path / "registry")
    for put in (registry.publish, lambda file: import_policy(file, registry)):
        with pytest.raises(ConfigError, match="export it again"):
            put(bad)
    assert registry.signature() is None
    for command in (["serve", str(bad)], ["evaluate", str(bad), "--task", "dm_control:cartpole-swingup"]):
        assert main(command) == 2
        assert "it is not the one that passed the parity gate" in capsys.readouterr().err


def test_a_policy_without_a_graph_hash_is_refused(tmp_path):
    path = write_linear_policy(tmp_path / "p.onnx", SPEC, metadata={"graph_hash": None})
    with pytest.raises(ConfigError, match="claims graph_hash None"):
        OnnxPolicy(path)


def test_inspect_shows_the_change_and_voids_the_parity(tmp_path, capsys):
    path = write_linear_policy(
        tmp_path / "p.onnx", SPEC, weight=[[0.1, 0.2]] * 3, metadata={"parity": {"max_abs_error": 1e-7}}
    )
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    assert "as exported" in text
    assert "max_abs_error" in text
    assert main(["inspect", str(tampered(path))]) == 0
    text = capsys.readouterr().out
    assert f"CHANGED since its export, which had {graph_hash(path.read_bytes())}" in text
    assert "void: measured on the graph before the change" in text
    assert "max_abs_error" not in text
