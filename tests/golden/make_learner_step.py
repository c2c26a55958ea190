"""Regenerate tests/golden/learner_step.json: `python -m tests.golden.make_learner_step`.

Do so only after a change that is meant to change results, and explain the new numbers in the commit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.learning import make_batch, make_learner

FILE = Path(__file__).with_name("learner_step.json")
UPDATES = 3
NETWORKS = ("policy", "critic", "target_policy", "target_critic", "duals")


def compute() -> dict[str, Any]:
    """Metrics of each of three updates on a fixed batch, and some numbers about the parameters afterwards."""
    learner = make_learner(seed=0)
    batch = make_batch()
    metrics = [learner.update(batch, reward_scale=2.0, want_metrics=True) for _ in range(UPDATES)]
    state = learner.state_dict()
    parameters = {
        name: {
            "count": state[name].numel(),
            "norm": state[name].double().norm().item(),
            "sum": state[name].double().sum().item(),
            "last": state[name][-4:].tolist(),
        }
        for name in NETWORKS
    }
    return {"metrics": [item._asdict() for item in metrics if item is not None], "parameters": parameters}


if __name__ == "__main__":
    FILE.write_text(json.dumps(compute(), indent=1) + "\n")
    print(f"wrote {FILE}")
