"""`Randomizer`: draws the configured values, puts them in the model, the state and the sensors, and records them.

Every draw starts from the values the model was compiled with (or that the task itself sets at reset), so nothing
accumulates. Order at a reset: defaults back, the task's own reset, draws, model, derived constants, pose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mpo_robot.errors import ConfigError
from mpo_robot.types import FloatArray
from sim.actuation import Actuation
from sim.backend import Backend
from sim.bound_term import BoundTerm
from sim.model_terms import MODEL_BINDERS
from sim.randomization_config import PUSHES, RandomizationConfig, RandomizationTerm
from sim.sensing import Sensing, bind_observation
from sim.state import DerivedConstants, ModelFields
from sim.state_terms import STATE_BINDERS

_ENGINE = ("action_delay", "observation_delay", "push_force")
_SINGLE = ("action_delay", "observation_delay", "dropped_observations")
# Constants that `DerivedConstants` derives from masses, inertias, centers of mass and armatures.
_DERIVED = (
    "body_subtreemass", "body_invweight0", "body_sameframe", "dof_invweight0", "dof_M0", "tendon_invweight0",
    "actuator_acc0", "cam_pos0", "cam_poscom0", "light_pos0", "light_poscom0",
    "stat.meaninertia",
)  # fmt: skip


class Randomizer:
    """Randomisation of one environment.

    Attributes:
        values: JSON-able record of all present draws; a new dictionary after each draw.
        actuation: Delayed stepping, in use if `uses_engine`.
    """

    def __init__(
        self,
        backend: Backend,
        fields: ModelFields,
        config: RandomizationConfig,
        startup_seed: int,
        stepwise: bool = False,
    ):
        self._backend, self._fields = backend, fields
        self.sensing = Sensing(sum(term.size for term in backend.observation_terms))
        self.actuation = Actuation(backend, self._capture)
        self._terms = [self._bind(term, index) for index, term in enumerate(config.terms)]
        self._check_single(config.terms)
        self._model_terms = [term for term in self._terms if term.term.parameter in MODEL_BINDERS]
        self._pose_terms = [term for term in self._terms if term.term.parameter == "initial_pose"]
        self._timed = [term for term in self._terms if term.term.interval_s is not None]
        self._touched = tuple({name for term in self._model_terms for name in term.fields})
        self._derived = any(term.derived for term in self._model_terms)
        self._constants = DerivedConstants(backend.model) if self._derived else None
        self._base: dict[str, npt.NDArray[Any]] = {}
        self.values: dict[str, Any] = {}
        self._generator = np.random.default_rng()
        parameters = {term.term.parameter for term in self._terms}
        self.uses_engine = stepwise or not parameters.isdisjoint(_ENGINE)
        if self.uses_engine:
            backend.advance = self.actuation.advance_period
        self._captures = "observation_delay" in parameters
        backend.wants_observation = not self._captures
        self.sensing.may_drop = "dropped_observations" in parameters
        if not (self._timed or self.uses_engine or self.sensing.may_drop):
            # Nothing depends on the time: the shortest way at every step.
            self.after_period = self.sensing.disturb
        self.actuation.capture_all = stepwise
        startup = np.random.default_rng([startup_seed, 1])
        for term in self._terms:
            if term.term.resolved_mode == "startup":
                term.draw(startup)

    def _bind(self, term: RandomizationTerm, index: int) -> BoundTerm:
        model, data = self._backend.model, self._backend.data
        if term.parameter in MODEL_BINDERS:
            return MODEL_BINDERS[term.parameter](model, term)
        if term.parameter in STATE_BINDERS:
            bound = STATE_BINDERS[term.parameter](model, data, term)
            if term.parameter == "push_force":
                self.actuation.register_force(index, self._force_clearer(bound))
            return bound
        if term.parameter in ("observation_bias", "observation_noise"):
            bound, places = bind_observation(self._backend.observation_terms, term)
            (self.sensing.add_bias if term.parameter == "observation_bias" else self.sensing.add_noise)(bound, places)
            return bound
        return BoundTerm(term)

    @staticmethod
    def _force_clearer(bound: BoundTerm) -> Callable[[], None]:
        def clear() -> None:
            assert bound.apply is not None
            bound.apply(np.zeros((len(bound.labels), bound.width)))

        return clear

    @staticmethod
    def _check_single(terms: Iterable[RandomizationTerm]) -> None:
        names = [term.parameter for term in terms]
        for name in _SINGLE:
            if names.count(name) > 1:
                raise ConfigError(f"randomization of {name} is given {names.count(name)} times; once is enough")

    def seed(self, seed: int) -> None:
        """Make all draws after this repeatable (those of mode `startup` always are)."""
        self._generator = np.random.default_rng([seed, 0])
        self.sensing.seed(seed)

    def before_reset(self) -> None:
        """Give the task its nominal model back."""
        if self._touched:
            self._fields.restore_only((*self._touched, *(_DERIVED if self._derived else ())))

    def start_episode(self, observation: FloatArray) -> FloatArray:
        """Randomise after the task's reset; the first reading [O]."""
        self._base = self._fields.copies(self._touched)
        for term in self._terms:
            mode, parameter = term.term.resolved_mode, term.term.parameter
            timed = term.term.interval_s is not None
            if mode == "reset" or (timed and parameter not in PUSHES):
                term.draw(self._generator)
            elif parameter in PUSHES:
                term.draws = None
            if timed:
                term.schedule(self._generator, 0, self._backend.physics_dt)
        if self._model_terms or self._pose_terms:
            self._apply_model()
            for term in self._pose_terms:
                assert term.apply is not None
                term.apply(term.spread())
            self._backend.refresh_start()
            observation = self._backend.observe()
        self._use_draws()
        self.actuation.start()
        return self.sensing.start(observation)

    @property
    def has_timed_terms(self) -> bool:
        """Whether `before_period` has anything to do."""
        return bool(self._timed)

    def before_period(self) -> None:
        """Do what mode `interval` asks for at this moment."""
        now, model_changed, state_changed, fired = self.actuation.now, False, False, False
        for term in self._timed:
            if now < term.next_step:
                continue
            fired = True
            term.draw(self._generator)
            term.schedule(self._generator, now, self._backend.physics_dt)
            if term.term.parameter in PUSHES:
                assert term.apply is not None
                term.apply(term.spread())
                state_changed = True
                if term.term.duration_steps is not None:
                    self.actuation.start_force(self._terms.index(term), term.term.duration_steps)
            elif term.term.parameter in MODEL_BINDERS:
                model_changed = True
        if not fired:
            return
        if model_changed:
            self._fields.write(self._base)
            self._apply_model()
        if model_changed or state_changed:
            self._backend.refresh_running()
        self._use_draws()

    def after_period(self, observation: FloatArray) -> FloatArray:
        """The reading [O] that the policy gets at the end of a period, of the true observation or an older one."""
        if not self.uses_engine:
            self.actuation.now += self._backend.physics_steps
        if self._captures:
            return self.sensing.read(self.actuation.now, self._generator)
        return self.sensing.pass_on(observation, self.actuation.now, self._generator)

    def reading(self) -> FloatArray:
        """What the sensors show now, within a period [O]."""
        if not self._captures:
            self._capture(self.actuation.now)
        return self.sensing.read(self.actuation.now, self._generator)

    def _capture(self, step: int) -> None:
        self.sensing.capture(self._backend.observe(), step)

    def _apply_model(self) -> None:
        for term in self._model_terms:
            assert term.apply is not None
            term.apply(term.spread())
        if self._constants is not None:
            self._constants.update()

    def _use_draws(self) -> None:
        """Hand the present draws to the sensors and actuators, and record them."""
        values: dict[str, Any] = {}
        for term in self._terms:
            name = term.term.parameter
            if term.draws is None or name == "observation_noise":
                continue
            number = sum(key.partition("#")[0] == name for key in values) + 1
            values[name if number == 1 else f"{name}#{number}"] = term.as_info()
            if name == "action_delay":
                self.actuation.delay = int(term.draws.item())
            elif name == "observation_delay":
                self.sensing.delay = self.actuation.observation_delay = int(term.draws.item())
            elif name == "dropped_observations":
                self.sensing.drop_probability = float(term.draws.item())
        self.values = values
        self.sensing.use_biases()

    def state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """What `set_state` needs: JSON-able values and arrays."""
        arrays = {f"base/{name}": array for name, array in self._base.items()}
        for index, term in enumerate(self._terms):
            if term.draws is not None:
                arrays[f"draws/{index}"] = term.draws
        values: dict[str, Any] = {
            "random": self._generator.bit_generator.state,
            "next_steps": [term.next_step for term in self._terms],
            "record": self.values,
        }
        for name, part in (("actuation", self.actuation), ("sensing", self.sensing)):
            values[name], own = part.state()
            arrays |= {f"{name}/{key}": array for key, array in own.items()}
        return values, arrays

    def set_state(self, values: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Inverse of `state`; the model fields themselves are restored by the environment."""
        self._generator.bit_generator.state = values["random"]
        self.values = values["record"]
        self._base = {name[5:]: array.copy() for name, array in arrays.items() if name.startswith("base/")}
        for index, (term, step) in enumerate(zip(self._terms, values["next_steps"])):
            draws = arrays.get(f"draws/{index}")
            term.draws, term.next_step = None if draws is None else draws.copy(), step
        for name, part in (("actuation", self.actuation), ("sensing", self.sensing)):
            own = {key.partition("/")[2]: array for key, array in arrays.items() if key.startswith(f"{name}/")}
            part.set_state(values[name], own)
