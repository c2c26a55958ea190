"""Objects that a configuration names as `package.module:name`."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from deploy.robot import RobotError


def load_name(path: str, setting: str) -> Any:
    """What `path` names; modules in the working directory are found.

    Raises:
        RobotError: it cannot be imported; the text names `setting`.
    """
    module_name, _, name = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RobotError(f"{setting} {path!r} cannot be imported: {error}") from error
