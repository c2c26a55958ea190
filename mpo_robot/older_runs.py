"""What a run did whose record is older than a setting.

A run folder's config.yaml names every setting there was when it was written. Those that came later mostly began as
their default; here are the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

TRAINING = {"noise_color": 0.0}
LEARNER = {"policy_average_updates": None, "policy_update_period": 1}
MPO = {"center_weights": False}
BEFORE_FALLING_RATES = {"learning_rate_decay_steps": None}
BEFORE_THE_CRITICS_OWN_RATE = {"learning_rate_end_critic": 0.1}


def completed(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a run folder's config.yaml, with what was in force where it is silent.

    What is no section is left as it is, to be refused by whoever builds a configuration of it.
    """
    learner = _filled(recorded.get("learner", {}), LEARNER)
    if isinstance(learner, dict):
        has_falling_rates = "learning_rate_decay_steps" in learner
        learner = _filled(learner, BEFORE_THE_CRITICS_OWN_RATE if has_falling_rates else BEFORE_FALLING_RATES)
        learner["mpo"] = _filled(learner.get("mpo", {}), MPO)
    return {**recorded, "training": _filled(recorded.get("training", {}), TRAINING), "learner": learner}


def _filled(section: Any, values: Mapping[str, Any]) -> Any:
    return {**values, **cast("Mapping[str, Any]", section)} if isinstance(section, Mapping) else section
