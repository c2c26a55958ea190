"""Exact saving of a simulation: MuJoCo state, changed model fields and plain values, as bytes without pickle.

MuJoCo's integration state alone is not enough for a bit-exact continuation: tasks read quantities that lag behind it
(body positions of the last physics step, for example), so every fixed-size array of `mjData` is saved. Arrays of
contacts and constraints vary in size and are recomputed.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt

from mpo_robot.errors import MpoRobotError

Arrays = dict[str, npt.NDArray[Any]]

_INTEGRATION = int(mujoco.mjtState.mjSTATE_INTEGRATION)
_FLAGS = ("flg_energypos", "flg_energyvel", "flg_subtreevel", "flg_rnepost")
_UNCHANGING = ("mesh_", "tex_", "skin_", "bvh_", "oct_", "name", "paths", "text_", "mat_", "B_", "D_", "M_", "map")
_STATISTICS = ("stat.meaninertia",)  # the others matter to rendering only


def pack(arrays: Mapping[str, npt.NDArray[Any]], values: Mapping[str, Any]) -> bytes:
    """Arrays and JSON-able values in one byte string (an uncompressed .npz)."""
    text = np.frombuffer(json.dumps(values, allow_nan=True).encode(), np.uint8)
    stream = io.BytesIO()
    np.savez(stream, json=text, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def unpack(state: bytes) -> tuple[Arrays, dict[str, Any]]:
    """Inverse of `pack`.

    Raises:
        MpoRobotError: not such a byte string.
    """
    try:
        with np.load(io.BytesIO(state), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return arrays, json.loads(arrays.pop("json").tobytes().decode())
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise MpoRobotError(f"not the state of a simulated environment: {error}") from error


class ModelFields:
    """The numeric fields of a model, remembered as compiled, so that only what changed is saved."""

    def __init__(self, model: mujoco.MjModel):
        self._model = model
        self._compiled = {name: array.copy() for name, array in self._fields().items()}

    def _field(self, name: str) -> npt.NDArray[Any]:
        owner, _, attribute = name.rpartition(".")
        return np.asarray(getattr(getattr(self._model, owner) if owner else self._model, attribute))

    def _fields(self) -> Arrays:
        model = self._model
        fields = {}
        for name in dir(model):
            if name.startswith(("_", *_UNCHANGING)):
                continue
            value = getattr(model, name)
            if isinstance(value, np.ndarray) and value.size and value.dtype.kind in "biuf":
                fields[name] = value
        return fields | {name: self._field(name) for name in ("opt.gravity", *_STATISTICS)}

    def changed(self) -> Arrays:
        """Copies of the fields that differ from the compiled model."""
        return {
            name: array.copy()
            for name, array in self._fields().items()
            if not np.array_equal(array, self._compiled[name])
        }

    def restore(self, changed: Mapping[str, npt.NDArray[Any]]) -> None:
        """Compiled values everywhere but in `changed`."""
        self.write({**self._compiled, **changed})

    def restore_only(self, names: Iterable[str]) -> None:
        """Compiled values in those of the named fields that the model has."""
        self.write({name: self._compiled[name] for name in names if name in self._compiled})

    def copies(self, names: Iterable[str]) -> Arrays:
        """Present values of the named fields."""
        return {name: self._field(name).copy() for name in names}

    def write(self, values: Mapping[str, npt.NDArray[Any]]) -> None:
        """Put values into fields."""
        for name, value in values.items():
            if name.startswith("stat."):
                setattr(self._model.stat, name[5:], float(value))
            else:
                self._field(name)[...] = value


class DerivedConstants:
    """Recomputes what MuJoCo's compiler derives from masses, inertias, centers of mass and armatures."""

    def __init__(self, model: mujoco.MjModel):
        self._model = model
        self._scratch = mujoco.MjData(model)  # mj_setConst overwrites the pose it is given
        # mj_setConst leaves this one alone; the solver's tolerance is relative to it. A model file may also fix it.
        self._mean_inertia = model.nv > 0 and math.isclose(model.stat.meaninertia, model.dof_M0.mean(), rel_tol=1e-6)

    def update(self) -> None:
        """Bring the constants in line with the present model fields."""
        mujoco.mj_setConst(self._model, self._scratch)
        if self._mean_inertia:
            self._model.stat.meaninertia = float(self._model.dof_M0.mean())


def fixed_size_names(model: mujoco.MjModel) -> tuple[str, ...]:
    """Names of the arrays of `mjData` that do not depend on the number of contacts."""
    fresh = mujoco.MjData(model)
    names = []
    for name in dir(fresh):
        value = None if name.startswith("_") else getattr(fresh, name)
        if isinstance(value, np.ndarray) and value.size and value.dtype.kind in "biuf":
            names.append(name)
    return tuple(names)


def capture_data(model: mujoco.MjModel, data: mujoco.MjData, names: tuple[str, ...]) -> tuple[Arrays, dict[str, Any]]:
    """Everything of `data` that the next step, or a task's reading of it, can depend on."""
    integration = np.empty(mujoco.mj_stateSize(model, _INTEGRATION), np.float64)
    mujoco.mj_getState(model, data, integration, _INTEGRATION)
    arrays: Arrays = {name: getattr(data, name).copy() for name in names}
    arrays["integration"] = integration
    arrays["warnings"] = data.warning.number.copy()
    return arrays, {name: bool(getattr(data, name)) for name in _FLAGS if hasattr(data, name)}


def restore_integration(model: mujoco.MjModel, data: mujoco.MjData, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """First part of the restoration; derived quantities must be recomputed after it."""
    mujoco.mj_resetData(model, data)
    mujoco.mj_setState(model, data, arrays["integration"], _INTEGRATION)


def restore_arrays(data: mujoco.MjData, arrays: Mapping[str, npt.NDArray[Any]], flags: Mapping[str, bool]) -> None:
    """Last part of the restoration: the saved arrays over the recomputed ones."""
    for name, array in arrays.items():
        if name == "warnings":
            data.warning.number[:] = array
        elif name != "integration":
            getattr(data, name)[...] = array
    for name, value in flags.items():
        setattr(data, name, value)
