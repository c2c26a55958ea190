"""ONNX export with the normaliser and the command scaling inside, the spec in the metadata, and a parity gate.

The file has one input, `obs` [batch, O] (raw observations), and three outputs in physical command units: `actions`
[batch, A], the policy's mean clipped to the command bounds; `stddev` [batch, A]; and `mean` [batch, A], unclipped. For
discrete actions they are `actions` [batch, 1], the index of the most probable action as a float, and `logits`
[batch, K].

Whoever samples draws from N(mean, stddev^2) and clips the sample, as the training does: around the clipped mean it
would be another policy (docs/decisions/0024). The metadata's `distribution` says whether there is such a Gaussian
(`gaussian`) or not (`none`): then `stddev` is for information only, and `actions` must be sent as they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from mpo_robot.errors import ExportError, first_line
from mpo_robot.normalization import RunningNormalizer
from mpo_robot.specs import PolicySpec
from mpo_robot.types import FloatArray

METADATA_KEY = "mpo_robot"
METADATA_SCHEMA_VERSION = 1
PARITY_OBSERVATIONS = 1_000
PARITY_TOLERANCE = 1e-5


class ParityResult(NamedTuple):
    """Largest difference between torch and onnxruntime.

    In units of half the command range, of the unclipped mean relative to its distance from the centre where that is
    more; for discrete actions of the logits, relative to the largest of them where that is above 1.
    """

    max_abs_error: float
    observations: int


class ExportedPolicy(nn.Module):
    """Normaliser, policy and command scaling as one graph: obs [batch, O] -> actions, stddev, mean [batch, A]."""

    output_names: ClassVar[tuple[str, ...]] = ("actions", "stddev", "mean")
    offset: Tensor
    scale: Tensor
    command_center: Tensor
    command_half_range: Tensor

    def __init__(self, policy: nn.Module, normalizer: RunningNormalizer | None, spec: PolicySpec) -> None:
        super().__init__()
        self.policy = policy
        size = spec.observation_size
        offset = np.zeros(size, np.float32) if normalizer is None else normalizer.offset
        scale = np.ones(size, np.float32) if normalizer is None else normalizer.scale
        self.clip = float("inf") if normalizer is None else normalizer.clip
        for name, array in (
            ("offset", offset),
            ("scale", scale),
            ("command_center", spec.command_center),
            ("command_half_range", spec.command_half_range),
        ):
            self.register_buffer(name, torch.tensor(array))

    def forward(self, obs: Tensor) -> tuple[Tensor, ...]:
        """Mean command clipped to the bounds, its standard deviation, and the mean as it is, in physical units."""
        policy: Any = self.policy  # every policy of continuous actions has the method
        mean, stddev = policy.mean_and_stddev(self.normalized(obs))
        actions = self.command_center + self.command_half_range * mean.clamp(-1.0, 1.0)
        return actions, stddev * self.command_half_range, self.command_center + self.command_half_range * mean

    def normalized(self, obs: Tensor) -> Tensor:
        """What the policy network sees."""
        normalized = (obs - self.offset) * self.scale
        return normalized if self.clip == float("inf") else normalized.clamp(-self.clip, self.clip)

    def differences(self, actual: list[FloatArray], expected: list[FloatArray]) -> list[npt.NDArray[Any]]:
        """By how much each number differs, in the unit of `ParityResult`."""
        half_range: FloatArray = self.command_half_range.numpy()
        differences = [np.abs(got - want) / half_range for got, want in zip(actual, expected)]
        distance = np.abs(expected[2] - self.command_center.numpy()) / half_range  # of the mean, which has no bounds
        return [*differences[:2], differences[2] / np.maximum(distance, 1.0)]


class ExportedCategoricalPolicy(ExportedPolicy):
    """Normaliser and policy as one graph: obs [batch, O] -> actions [batch, 1], logits [batch, K]."""

    output_names: ClassVar[tuple[str, ...]] = ("actions", "logits")

    def forward(self, obs: Tensor) -> tuple[Tensor, ...]:
        """Index of the most probable action, and the logits of all."""
        logits = self.policy(self.normalized(obs))
        return logits.argmax(dim=-1, keepdim=True).to(logits.dtype), logits

    def differences(self, actual: list[FloatArray], expected: list[FloatArray]) -> list[npt.NDArray[Any]]:
        """Of the logits; and where the actions differ, the logits' gap between the two: it must be a tie."""
        logits = expected[1]
        unit = np.maximum(np.abs(logits).max(axis=1, keepdims=True), 1.0)
        chosen, wanted = (
            np.take_along_axis(logits, item.astype(np.int64), axis=1) for item in (actual[0], expected[0])
        )
        return [np.abs(wanted - chosen) / unit, np.abs(actual[1] - logits) / unit]


def export_policy(
    policy: nn.Module,
    normalizer: RunningNormalizer | None,
    spec: PolicySpec,
    path: Path,
    training: dict[str, Any],
) -> ParityResult:
    """Write `path` if the exported graph agrees with torch on 1,000 observations, extremes included.

    Args:
        policy: Gives mean and standard deviation of normalised observations as `mean_and_stddev`, or logits. An
            attribute `distribution` other than `gaussian` goes into the metadata: there is nothing to sample from.
        training: Anything that tells where the policy comes from (run folder, steps, task); goes into the metadata.

    Raises:
        ExportError: parity fails, or the file cannot be written; an existing file at `path` is then left as it was.
    """
    kind = ExportedPolicy if spec.num_actions is None else ExportedCategoricalPolicy
    module = kind(policy, normalizer, spec).eval()
    model = _to_onnx(module, spec.observation_size)
    graph_hash = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    observations = parity_observations(spec, normalizer)
    parity = check_parity(module, model.SerializeToString(), observations)
    if not parity.max_abs_error <= PARITY_TOLERANCE:
        raise ExportError(
            f"torch and onnxruntime differ by {parity.max_abs_error:.3g} (allowed {PARITY_TOLERANCE:g}) on "
            f"{parity.observations} observations; {path} was not written"
        )
    record = {
        "schema_version": METADATA_SCHEMA_VERSION,
        "spec": spec.to_dict(),
        "spec_hash": spec.spec_hash,
        "graph_hash": graph_hash,
        "parity": {"max_abs_error": parity.max_abs_error, "observations": parity.observations},
        "training": training,
    }
    if spec.num_actions is None:
        record["distribution"] = getattr(policy, "distribution", "gaussian")
    _set_metadata(model, {METADATA_KEY: json.dumps(record)} | _mjlab_keys(spec, training))
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(model.SerializeToString(deterministic=True))
        os.replace(temporary, path)
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror}") from error
    return parity


def parity_observations(spec: PolicySpec, normalizer: RunningNormalizer | None) -> FloatArray:
    """[1000, O]: typical observations, and extremes far outside what was seen, at which clipping acts."""
    rng = np.random.default_rng(0)
    offset = 0.0 if normalizer is None else normalizer.offset
    spread = 1.0 if normalizer is None else 1.0 / normalizer.scale
    noise = rng.standard_normal((PARITY_OBSERVATIONS, spec.observation_size))
    magnitude = np.ones((PARITY_OBSERVATIONS, 1))
    magnitude[::10] = 10.0
    magnitude[5::50] = 1e4
    observations = offset + spread * magnitude * noise
    observations[0] = 0.0
    return observations.astype(np.float32)


def check_parity(module: ExportedPolicy, model_bytes: bytes, observations: FloatArray) -> ParityResult:
    """Compare the outputs of torch and onnxruntime on raw observations [K, O]."""
    with torch.inference_mode():
        expected = [output.numpy() for output in module(torch.from_numpy(observations))]
    session = onnxruntime.InferenceSession(model_bytes, providers=["CPUExecutionProvider"])
    actual = [np.asarray(output) for output in session.run(module.output_names, {"obs": observations})]
    errors = [item.max() for item in module.differences(actual, expected)]
    error = float(np.max(errors))  # NaN in either output stays NaN, which Python's max would lose
    return ParityResult(error if np.isfinite(error) else float("inf"), len(observations))


def _to_onnx(module: ExportedPolicy, observation_size: int) -> onnx.ModelProto:
    example = torch.zeros(2, observation_size)
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                (example,),
                input_names=["obs"],
                output_names=list(module.output_names),
                dynamic_shapes={"obs": {0: torch.export.Dim("batch", min=1, max=65536)}},
                dynamo=True,
                opset_version=18,
                verbose=False,
            )
    except Exception as error:  # the exporter's stages raise types of their own
        raise ExportError(
            f"torch could not turn the policy into ONNX: {type(error).__name__}: {first_line(error)}"
        ) from error
    if program is None:
        raise ExportError("torch.onnx.export returned nothing")
    model = program.model_proto
    for graph_node in model.graph.node:  # file names and stack traces of the exporting machine
        del graph_node.metadata_props[:]
        graph_node.doc_string = ""
    onnx.checker.check_model(model)
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints progress and warns about its own internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)


def _set_metadata(model: onnx.ModelProto, entries: dict[str, str]) -> None:
    del model.metadata_props[:]
    for key, value in entries.items():
        model.metadata_props.add(key=key, value=value)


def _mjlab_keys(spec: PolicySpec, training: dict[str, Any]) -> dict[str, str]:
    """The keys that mjlab writes, as far as they apply, as comma-separated text at full precision."""
    names = [
        term.name if term.size == 1 else f"{term.name}_{index}" for term in spec.command for index in range(term.size)
    ]
    keys = {
        "observation_names": ",".join(term.name for term in spec.observation),
        "run_path": str(training.get("run", "")),
    }
    if spec.num_actions is not None:
        return keys
    scale = ",".join(repr(float(value)) for value in spec.command_half_range)
    return keys | {"joint_names": ",".join(names), "action_scale": scale}
