"""`OnnxPolicy`: a policy file, checked when loaded, that acts in process through onnxruntime.

File contract: one input `obs` [batch, O] float32; outputs, all in physical units, `actions` [batch, A] (mean command,
clipped to the command bounds), `stddev` [batch, A] and `mean` [batch, A] (before clipping; files without it have the
Gaussian around `actions`); metadata key `mpo_robot` holds JSON with the spec and the hash of the exported graph.
Shapes: O observation size, A action size.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime

from deploy.numeric import all_finite
from deploy.policy_file import PolicyFile
from mpo_robot.errors import ConfigError, MpoRobotError
from mpo_robot.specs import PolicySpec

INPUT_NAME = "obs"
OUTPUT_NAMES = ("actions", "stddev")
MEAN_NAME = "mean"  # not in files of before 0.2
_LOG_TWO_PI = math.log(2.0 * math.pi)
_BOUND_TOLERANCE = 1e-4  # of the command half range: float32 rounding of clip bounds, never a wrong unit


class PolicyError(MpoRobotError):
    """A policy was given, or produced, a value that must not reach a robot (NaN, infinity, negative stddev)."""


class PolicyAction(NamedTuple):
    """One action in normalised action space.

    Attributes:
        action: float32 [A] as sampled, not clipped. Equal to `mean` when deterministic.
        log_prob: Log density of `action` in nats; NaN where no density exists (deterministic, or a stddev of zero).
        gaussian: float32 [2, A], its mean and its stddev.
    """

    action: npt.NDArray[np.float32]
    log_prob: float
    gaussian: npt.NDArray[np.float32]

    @property
    def mean(self) -> npt.NDArray[np.float32]:
        """float32 [A] of the Gaussian."""
        return self.gaussian[0]

    @property
    def stddev(self) -> npt.NDArray[np.float32]:
        """float32 [A] of the Gaussian."""
        return self.gaussian[1]


def gaussian_log_prob(action: npt.ArrayLike, mean: npt.ArrayLike, stddev: npt.ArrayLike) -> float:
    """Log density in nats of `action` [A] under a diagonal Gaussian, in float64.

    sum_i -((a_i - m_i) / s_i)^2 / 2 - log s_i - log(2 pi) / 2; NaN if any s_i is zero.
    """
    return _log_prob(np.asarray(action).tolist(), np.asarray(mean).tolist(), np.asarray(stddev).tolist())


def _log_prob(action: list[float], mean: list[float], stddev: list[float]) -> float:
    total = 0.0
    for a, m, s in zip(action, mean, stddev):
        if s == 0.0:
            return math.nan
        z = (a - m) / s
        total -= 0.5 * (z * z + _LOG_TWO_PI) + math.log(s)
    return total


class OnnxPolicy:
    """A loaded and checked policy. Used by one thread at a time; `act` does not block on anything but the CPU.

    Attributes:
        path: File it was read from.
        spec: Interface of the policy.
        policy_version: SHA-256 (64 hex digits) of the file's bytes.
        graph_hash: SHA-256 of the file without its metadata, as it is now.
        metadata: The parsed `mpo_robot` metadata; its `graph_hash` is the one at export.
        has_density: Whether mean and stddev are a Gaussian to sample from (metadata `distribution`; files without are).
    """

    path: Path
    spec: PolicySpec
    policy_version: str
    graph_hash: str
    metadata: dict[str, Any]
    has_density: bool

    def __init__(self, source: str | Path | PolicyFile, verify_graph: bool = True) -> None:
        """Read, check and warm up a policy.

        Args:
            source: Path of the file, or the file if it was read already.
            verify_graph: Refuse a graph that was changed since its export. False is for looking at one.

        Raises:
            ConfigError: unreadable, not ONNX, foreign metadata, wrong names or shapes, a graph that is not the
                exported one, or outputs that break the file contract on test observations.
            SpecMismatchError: the spec inside does not have the hash the file claims.
        """
        file = source if isinstance(source, PolicyFile) else PolicyFile.read(source)
        self.path, self._session, self.metadata, self.spec = file.path, file.session, file.metadata, file.spec
        self.policy_version, self.graph_hash = file.policy_version, file.graph_hash
        if self.spec.num_actions is not None:
            raise ConfigError(
                f"{self.path} chooses one of {self.spec.num_actions} discrete actions, robots take continuous "
                "commands: `mpo-robot evaluate` and `inspect` work with it, serving and driving a robot do not"
            )
        self.has_density = self.metadata.get("distribution", "gaussian") == "gaussian"
        self._has_mean = MEAN_NAME in {item.name for item in self._session.get_outputs()}
        _check_interface(self._session, self.spec, self.path, self._output_names)
        if verify_graph:
            file.require_exported_graph()
        # Fixed buffers bound once halve the cost of a call. Row 0 takes the mean, row 1 the stddev.
        self._input = np.zeros((1, self.spec.observation_size), np.float32)
        self._output = np.zeros((2, self.spec.action_size), np.float32)
        self._row = self._input[0]
        self._offset = np.stack([self.spec.command_center, np.zeros_like(self.spec.command_center)])
        self._half_range = np.stack([self.spec.command_half_range] * 2)
        self._check_outputs()
        self._binding = self._bind()

    def act(
        self, observation: npt.NDArray[np.float32], stochastic: bool, rng: np.random.Generator | None = None
    ) -> PolicyAction:
        """Action for one observation [O].

        Args:
            observation: float32 [O] in the spec's order and units.
            stochastic: Sample with the exported stddev; otherwise return the mean.
            rng: Source of the sample; required if stochastic.

        Raises:
            ValueError: wrong observation shape, or stochastic without `rng`.
            PolicyError: NaN or infinity in the observation or in what the policy made of it; stochastic, and the
                policy has no density.
        """
        if stochastic and not self.has_density:
            self.require_mode(stochastic)
        if observation.shape != self._row.shape:
            raise ValueError(f"observation has shape {observation.shape}, expected ({self.spec.observation_size},)")
        self._row[:] = observation
        if not all_finite(self._row):
            raise PolicyError("observation holds NaN or infinity: check the sensors before asking for an action")
        self._session.run_with_iobinding(self._binding)
        # The network has emptied the processor's caches: what follows is paid by the operation. Plain floats, for the
        # few dimensions of a robot, take half the time of arrays.
        gaussian = (self._output - self._offset) / self._half_range
        means, stddevs = gaussian.tolist()
        if not (math.isfinite(sum(means) + sum(stddevs)) and min(stddevs) >= 0.0):
            raise PolicyError(f"policy {self.policy_version[:12]} gave NaN, infinity or a negative stddev")
        if not stochastic:
            return PolicyAction(gaussian[0].copy(), math.nan, gaussian)
        if rng is None:
            raise ValueError("a stochastic action needs a random generator")
        noise = rng.standard_normal(len(means)).tolist()
        # The density is of the float32 action that is returned: rounding first keeps logged ratios exact.
        action = np.array([m + s * z for m, s, z in zip(means, stddevs, noise)], np.float32)
        actions = action.tolist()
        if not math.isfinite(sum(actions)):
            raise PolicyError(f"policy {self.policy_version[:12]} sampled NaN or infinity")
        return PolicyAction(action, _log_prob(actions, means, stddevs), gaussian)

    def require_mode(self, stochastic: bool) -> None:
        """Check that the policy can act so: sampled actions need a density that can be logged.

        Raises:
            PolicyError: it cannot.
        """
        if stochastic and not self.has_density:
            raise PolicyError(
                f"policy {self.policy_version[:12]} has no density to sample from and to log (its samples were "
                "squashed, as SAC does): use it deterministically, with serve --deterministic or stochastic: false"
            )

    @property
    def _output_names(self) -> tuple[str, ...]:
        return (*OUTPUT_NAMES, MEAN_NAME) if self._has_mean else OUTPUT_NAMES

    def _bind(self) -> onnxruntime.IOBinding:
        """Tie input and outputs of the session to our buffers."""
        binding = self._session.io_binding()
        size = self.spec.action_size
        binding.bind_input(INPUT_NAME, "cpu", 0, np.float32, self._input.shape, self._input.ctypes.data)
        for name, row in zip((MEAN_NAME if self._has_mean else "actions", "stddev"), self._output):
            binding.bind_output(name, "cpu", 0, np.float32, (1, size), row.ctypes.data)
        return binding

    def _check_outputs(self) -> None:
        """Run on a few observations, so that the first real call is fast and a broken file fails here."""
        size = self.spec.observation_size
        spread = np.random.default_rng(0).standard_normal((4, size)).astype(np.float32)
        probes = [np.zeros(size, np.float32), np.ones(size, np.float32), *spread, 100.0 * spread[0]]
        low, high = self.spec.command_low, self.spec.command_high
        tolerance = _BOUND_TOLERANCE * self.spec.command_half_range
        for probe in probes:
            self._input[0] = probe
            results = [np.asarray(item) for item in self._session.run(self._output_names, {INPUT_NAME: self._input})]
            command, stddev = results[:2]
            for name, value in zip(self._output_names, results):
                if value.shape != (1, self.spec.action_size):
                    raise ConfigError(
                        f"policy {self.path}: output {name!r} has shape {value.shape}, "
                        f"the spec asks for (1, {self.spec.action_size})"
                    )
                if not np.isfinite(value).all():
                    raise ConfigError(f"policy {self.path}: output {name!r} is not finite on a test observation")
            if (stddev < 0).any():
                raise ConfigError(f"policy {self.path}: output 'stddev' is negative on a test observation")
            if (command[0] < low - tolerance).any() or (command[0] > high + tolerance).any():
                raise ConfigError(
                    f"policy {self.path}: output 'actions' leaves the command bounds of its own spec; "
                    "it must be in physical units and clipped"
                )
            if self._has_mean and (np.abs(command - np.clip(results[2], low, high)) > tolerance).any():
                raise ConfigError(f"policy {self.path}: output 'actions' is not its output 'mean', clipped")


def _check_interface(
    session: onnxruntime.InferenceSession, spec: PolicySpec, path: Path, output_names: tuple[str, ...]
) -> None:
    inputs, outputs = session.get_inputs(), {item.name: item for item in session.get_outputs()}
    if [item.name for item in inputs] != [INPUT_NAME]:
        raise ConfigError(f"{path}: inputs are {[item.name for item in inputs]}, expected [{INPUT_NAME!r}]")
    missing = [name for name in OUTPUT_NAMES if name not in outputs]
    if missing:
        raise ConfigError(f"{path}: has outputs {sorted(outputs)}, lacks {missing}")
    expected = [(inputs[0], spec.observation_size)] + [(outputs[name], spec.action_size) for name in output_names]
    for item, size in expected:
        if item.type != "tensor(float)":
            raise ConfigError(f"{path}: {item.name!r} has type {item.type}, expected float32")
        # A symbolic dimension is a string or None; the warm-up checks what it becomes.
        batch_ok = len(item.shape) == 2 and (not isinstance(item.shape[0], int) or item.shape[0] == 1)
        if not batch_ok or (isinstance(item.shape[1], int) and item.shape[1] != size):
            raise ConfigError(f"{path}: {item.name!r} has shape {item.shape}, the spec asks for [batch, {size}]")
