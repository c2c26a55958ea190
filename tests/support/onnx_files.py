"""Tiny valid policy files, made without torch."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from mpo_robot.specs import PolicySpec, TermSpec

ArrayLike = npt.ArrayLike


def small_spec(
    observation_size: int = 3,
    action_size: int = 2,
    control_dt: float = 0.02,
    low: float = -2.0,
    high: float = 4.0,
) -> PolicySpec:
    """Spec with one observation term and one command term whose range is neither symmetric nor of width 2."""
    return PolicySpec(
        observation=(TermSpec("state", observation_size, "rad"),),
        command=(TermSpec("motor", action_size, "N m", (low,) * action_size, (high,) * action_size),),
        control_dt=control_dt,
    )


def write_linear_policy(
    path: str | Path,
    spec: PolicySpec,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    stddev: ArrayLike = 0.3,
    metadata: dict[str, Any] | None = None,
) -> Path:
    """Write a linear Gaussian policy and return its path.

    Args:
        path: File to write.
        spec: Interface; goes into the metadata.
        weight: [O, A], default zeros. Normalised mean = obs @ weight + bias, clipped to [-1, 1].
        bias: [A] or scalar, default zeros; normalised.
        stddev: [A] or scalar, normalised (the file holds it in physical units).
        metadata: Entries that replace those of the `mpo_robot` metadata, to make faulty files; None removes one.
    """
    size_in, size_out = spec.observation_size, spec.action_size
    half, center = spec.command_half_range, spec.command_center
    matrix = np.zeros((size_in, size_out)) if weight is None else np.asarray(weight, np.float64)
    offset = np.broadcast_to(0.0 if bias is None else np.asarray(bias, np.float64), (size_out,))
    initializers = {
        "weight": (matrix * half).astype(np.float32),
        "bias": (center + offset * half).astype(np.float32),
        "low": spec.command_low,
        "high": spec.command_high,
        "stddev_row": (np.broadcast_to(np.asarray(stddev, np.float64), (1, size_out)) * half).astype(np.float32),
        "first": np.array([0], np.int64),
        "width": np.array([size_out], np.int64),
    }
    nodes = [
        helper.make_node("MatMul", ["obs", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["mean"]),
        helper.make_node("Min", ["mean", "high"], ["below"]),
        helper.make_node("Max", ["below", "low"], ["actions"]),
        helper.make_node("Shape", ["obs"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["batch_size"]),
        helper.make_node("Concat", ["batch_size", "width"], ["stddev_shape"], axis=0),
        helper.make_node("Expand", ["stddev_row", "stddev_shape"], ["stddev"]),
    ]
    return write_model(path, spec, nodes, initializers, metadata)


def write_mlp_policy(
    path: str | Path, spec: PolicySpec, hidden: tuple[int, ...] = (256, 256), stddev: float = 0.3, seed: int = 0
) -> Path:
    """Write a random ReLU network of the size of a real policy: normaliser, hidden layers, clipped mean, stddev."""
    rng = np.random.default_rng(seed)
    size_out, half = spec.action_size, spec.command_half_range
    initializers: dict[str, npt.NDArray[Any]] = {
        "obs_mean": rng.standard_normal(spec.observation_size).astype(np.float32),
        "obs_stddev": np.ones(spec.observation_size, np.float32),
        "half": half,
        "center": spec.command_center,
        "low": spec.command_low,
        "high": spec.command_high,
        "stddev_scale": (stddev / np.log(2.0) * half).astype(np.float32),
    }
    nodes = [
        helper.make_node("Sub", ["obs", "obs_mean"], ["centered"]),
        helper.make_node("Div", ["centered", "obs_stddev"], ["layer_0"]),
    ]
    sizes = (spec.observation_size, *hidden)
    for index, (size_in, size) in enumerate(itertools.pairwise(sizes)):
        weight = rng.standard_normal((size_in, size)) / np.sqrt(size_in)
        initializers[f"weight_{index}"] = weight.astype(np.float32)
        initializers[f"bias_{index}"] = np.zeros(size, np.float32)
        gemm = [f"layer_{index}", f"weight_{index}", f"bias_{index}"]
        nodes.append(helper.make_node("Gemm", gemm, [f"linear_{index}"]))
        nodes.append(helper.make_node("Relu", [f"linear_{index}"], [f"layer_{index + 1}"]))
    for name in ("mean", "stddev"):
        initializers[f"{name}_weight"] = (0.1 * rng.standard_normal((sizes[-1], size_out)) / np.sqrt(sizes[-1])).astype(
            np.float32
        )
        initializers[f"{name}_bias"] = np.zeros(size_out, np.float32)
        head = [f"layer_{len(hidden)}", f"{name}_weight", f"{name}_bias"]
        nodes.append(helper.make_node("Gemm", head, [f"{name}_raw"]))
    nodes += [
        helper.make_node("Mul", ["mean_raw", "half"], ["scaled"]),
        helper.make_node("Add", ["scaled", "center"], ["mean"]),
        helper.make_node("Min", ["mean", "high"], ["below"]),
        helper.make_node("Max", ["below", "low"], ["actions"]),
        helper.make_node("Softplus", ["stddev_raw"], ["positive"]),
        helper.make_node("Mul", ["positive", "stddev_scale"], ["stddev"]),
    ]
    return write_model(path, spec, nodes, initializers)


def write_model(
    path: str | Path,
    spec: PolicySpec,
    nodes: list[onnx.NodeProto],
    initializers: dict[str, npt.NDArray[Any]],
    metadata: dict[str, Any] | None = None,
    edit: Callable[[onnx.ModelProto], None] | None = None,
) -> Path:
    """Assemble nodes that make the outputs from `obs` into a policy file; `edit` may spoil it at the end.

    Without a node that makes `mean` it is a file of before that output.
    """
    made = {name for node in nodes for name in node.output}
    graph = helper.make_graph(
        nodes,
        "policy",
        [helper.make_tensor_value_info("obs", TensorProto.FLOAT, ["batch", spec.observation_size])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", spec.action_size])
            for name in ("actions", "stddev", "mean")
            if name in made or name != "mean"
        ],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    entries: dict[str, Any] = {
        "schema_version": 1,
        "spec": spec.to_dict(),
        "spec_hash": spec.spec_hash,
        "graph_hash": hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest(),
        "parity": {},
        "training": {},
    }
    entries.update(metadata or {})
    helper.set_model_props(model, {"mpo_robot": json.dumps({k: v for k, v in entries.items() if v is not None})})
    if edit is not None:
        edit(model)
    target = Path(path)
    target.write_bytes(model.SerializeToString(deterministic=True))
    return target
