"""Write the result of a benchmark with what it depends on: date, commit, machine and its load."""

from __future__ import annotations

import json
import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mpo_robot.run_folder import git_state, processor_name


def write_record(output: Path, benchmark: str, **content: Any) -> None:
    """Write JSON to `output`; `content` is what the benchmark has to say."""
    record = {
        "benchmark": benchmark,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git": git_state(),
        "machine": {
            "cpu": processor_name(),
            "cores": os.cpu_count(),
            "load_average_1min": os.getloadavg()[0],
            "niceness": os.nice(0),
            "system": f"{platform.system()} {platform.release()}",
            "python": platform.python_version(),
        },
        **content,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=1) + "\n")
