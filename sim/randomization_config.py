"""Domain randomisation as data. Nothing here imports a simulator; names are checked against the model later."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from mpo_robot.errors import ConfigError

Operation = Literal["abs", "scale", "add"]
Distribution = Literal["uniform", "log_uniform", "gaussian"]
Mode = Literal["startup", "reset", "interval"]


class ParameterInfo(NamedTuple):
    """What may be said about one randomisable parameter.

    Attributes:
        element: What `select` names: `body`, `geom`, `joint`, `actuator`, `observation` (a term) or `` (nothing).
        operations: Operations that make sense.
        modes: Modes that make sense.
        default_mode: Mode when none is given.
        integer: Values are whole physics steps; both bounds can be drawn.
        minimum: No value, factor or absolute, may lie below.
        maximum: No absolute value may lie above.
        positive: The minimum itself is not allowed either.
    """

    element: str
    operations: tuple[str, ...] = ("scale", "abs", "add")
    modes: tuple[str, ...] = ("startup", "reset", "interval")
    default_mode: str = "reset"
    integer: bool = False
    minimum: float | None = None
    maximum: float | None = None
    positive: bool = False


PARAMETERS: dict[str, ParameterInfo] = {
    "body_mass": ParameterInfo("body", minimum=0.0, positive=True),
    "body_inertia": ParameterInfo("body", operations=("scale",), minimum=0.0, positive=True),
    "body_com": ParameterInfo("body", operations=("add", "abs")),
    "geom_friction": ParameterInfo("geom", minimum=0.0),
    "joint_damping": ParameterInfo("joint", minimum=0.0),
    "joint_armature": ParameterInfo("joint", minimum=0.0),
    "joint_frictionloss": ParameterInfo("joint", minimum=0.0),
    "actuator_gain": ParameterInfo("actuator", minimum=0.0),
    "gravity": ParameterInfo(""),
    "initial_pose": ParameterInfo("joint", operations=("add", "abs"), modes=("reset",)),
    "push_velocity": ParameterInfo("joint", operations=("add",), modes=("interval",), default_mode="interval"),
    "push_force": ParameterInfo("body", operations=("add",), modes=("interval",), default_mode="interval"),
    "observation_noise": ParameterInfo(
        "observation", operations=("add", "scale"), modes=("interval",), default_mode="interval"
    ),
    "observation_bias": ParameterInfo("observation", operations=("add", "scale")),
    "action_delay": ParameterInfo("", operations=("abs",), integer=True, minimum=0.0),
    "observation_delay": ParameterInfo("", operations=("abs",), integer=True, minimum=0.0),
    "dropped_observations": ParameterInfo("", operations=("abs",), minimum=0.0, maximum=1.0),
}
PUSHES = ("push_velocity", "push_force")


@dataclass(frozen=True)
class RandomizationTerm:
    """One randomised parameter.

    A value is always computed from the compile-time default of the model: `abs` replaces it, `scale` multiplies it,
    `add` is added to it. Terms on the same element combine in the order of the file.

    Attributes:
        parameter: One of `PARAMETERS`.
        select: Names or regular expressions (whole name) of the elements; empty selects all that the parameter has.
        operation: How a draw changes the default; null takes the first that the parameter allows.
        distribution: `uniform` and `log_uniform` between `low` and `high`; `gaussian` with `mean` and `stddev`,
            clipped to `low` and `high` where given.
        low: Smallest draw. Delays: whole physics steps.
        high: Largest draw, inclusive for delays.
        mean: Of a gaussian.
        stddev: Of a gaussian.
        mode: `startup` once per environment, `reset` once per episode, `interval` again and again in an episode;
            null takes the parameter's usual mode.
        interval_s: Shortest and longest simulated time between two draws of mode `interval`; noise, which is drawn
            for every observation, has none.
        components: Which components of a vector parameter change (friction: 0 sliding, 1 torsional, 2 rolling);
            null means the usual ones.
        shared: One draw for all selected elements instead of one for each.
        duration_steps: Physics steps for which a `push_force` lasts.
    """

    parameter: str
    select: tuple[str, ...] = ()
    operation: Operation | None = None
    distribution: Distribution = "uniform"
    low: float | None = None
    high: float | None = None
    mean: float | None = None
    stddev: float | None = None
    mode: Mode | None = None
    interval_s: tuple[float, float] | None = None
    components: tuple[int, ...] | None = None
    shared: bool = False
    duration_steps: int | None = None

    def __post_init__(self) -> None:
        if self.parameter not in PARAMETERS:
            near = difflib.get_close_matches(self.parameter, PARAMETERS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(PARAMETERS)}"
            raise ConfigError(f"unknown randomization parameter {self.parameter!r}: {hint}")
        self._check_words()
        self._check_distribution()
        self._check_values()

    @property
    def info(self) -> ParameterInfo:
        """The parameter's rules."""
        return PARAMETERS[self.parameter]

    @property
    def resolved_operation(self) -> str:
        """`operation`, or the parameter's first allowed one."""
        return self.operation or self.info.operations[0]

    @property
    def resolved_mode(self) -> str:
        """`mode`, or the parameter's usual one."""
        return self.mode or self.info.default_mode

    def _fail(self, text: str) -> ConfigError:
        return ConfigError(f"randomization of {self.parameter}: {text}")

    def _check_words(self) -> None:
        info = self.info
        if self.resolved_operation not in info.operations:
            raise self._fail(f"operation must be {' or '.join(info.operations)}, got {self.operation!r}")
        if self.resolved_mode not in info.modes:
            raise self._fail(f"mode must be {' or '.join(info.modes)}, got {self.mode!r}")
        if self.select and not info.element:
            raise self._fail("there is nothing to select; remove `select`")
        needs_interval = self.resolved_mode == "interval" and self.parameter != "observation_noise"
        if needs_interval != (self.interval_s is not None):
            wanted = "needs" if needs_interval else "has no"
            raise self._fail(f"mode {self.resolved_mode} {wanted} interval_s: [shortest, longest]")
        if self.interval_s is not None and not 0 < self.interval_s[0] <= self.interval_s[1] < math.inf:
            raise self._fail(f"interval_s must be two positive, ordered numbers of seconds, got {self.interval_s}")
        if (self.parameter == "push_force") != (self.duration_steps is not None):
            raise self._fail("duration_steps is for push_force, which needs it")
        if self.duration_steps is not None and self.duration_steps < 1:
            raise self._fail(f"duration_steps must be at least 1, got {self.duration_steps}")
        if self.components is not None and (not self.components or min(self.components) < 0):
            raise self._fail(f"components must be indices from 0, got {self.components}")

    def _check_distribution(self) -> None:
        for name in ("low", "high", "mean", "stddev"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise self._fail(f"{name} must be finite, got {value}")
        if self.distribution == "gaussian":
            if self.mean is None or self.stddev is None or self.stddev < 0:
                raise self._fail("a gaussian needs mean and a stddev of at least 0")
            if self.info.integer:
                raise self._fail("delays are whole physics steps: use distribution uniform")
            if self.info.minimum is not None and self.low is None:
                raise self._fail("a gaussian of this parameter needs `low`, at which it is clipped")
            if self.info.maximum is not None and self.high is None:
                raise self._fail("a gaussian of this parameter needs `high`, at which it is clipped")
        else:
            if self.low is None or self.high is None:
                raise self._fail(f"{self.distribution} needs low and high")
            if self.mean is not None or self.stddev is not None:
                raise self._fail(f"mean and stddev are for a gaussian, not for {self.distribution}")
            if self.distribution == "log_uniform" and (self.low <= 0 or self.info.integer):
                raise self._fail("log_uniform needs low > 0 and is not for whole numbers")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise self._fail(f"low must not exceed high, got {self.low} and {self.high}")

    def _check_values(self) -> None:
        minimum, maximum = self.info.minimum, self.info.maximum
        if self.resolved_operation != "add":
            if minimum is not None and self.low is not None and self.low < minimum:
                raise self._fail(f"low must be at least {minimum:g}, got {self.low:g}")
            if self.info.positive and self.low == minimum:
                raise self._fail(f"low must be above {minimum:g}")
            if maximum is not None and self.high is not None and self.high > maximum:
                raise self._fail(f"high must be at most {maximum:g}, got {self.high:g}")
        if self.info.integer and not all(float(x or 0).is_integer() for x in (self.low, self.high)):
            raise self._fail(f"low and high must be whole physics steps, got {self.low} and {self.high}")


@dataclass(frozen=True)
class RandomizationConfig:
    """All randomised parameters of an environment.

    Attributes:
        terms: Applied in this order.
    """

    terms: tuple[RandomizationTerm, ...] = ()
