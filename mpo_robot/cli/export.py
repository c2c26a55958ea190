"""`mpo-robot export`: write a run's policy as ONNX."""

from __future__ import annotations

import argparse
from pathlib import Path

from mpo_robot.cli.settings import load_recorded_config, training_record
from mpo_robot.export import PARITY_TOLERANCE, export_policy
from mpo_robot.policy_io import LoadedPolicy, load_policy
from mpo_robot.run_folder import RunFolder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "run_folder", type=Path, metavar="RUN", help="run folder; what `learn` made of it in RUN/learn comes first"
    )
    parser.add_argument("--best", action="store_true", help="the policy of the training's best evaluation instead")
    parser.add_argument("-o", "--output", type=Path, default=Path("policy.onnx"), help="file to write")


def run(args: argparse.Namespace) -> int:
    """Execute the command."""
    folder = RunFolder(args.run_folder)
    config = load_recorded_config(folder)
    loaded = load_policy(folder, config.learner, args.best)
    print(f"Exporting the {loaded.origin}")
    training = training_record(config, loaded.training)
    parity = export_policy(loaded.policy, loaded.normalizer, loaded.spec, args.output, training)
    print(
        f"Wrote {args.output}: torch and onnxruntime agree to {parity.max_abs_error:.2g} "
        f"(allowed {PARITY_TOLERANCE:g}) on {parity.observations} observations."
    )
    print(f"Next: mpo-robot inspect {args.output}{_how_to_serve(loaded, args.output)}")
    return 0


def _how_to_serve(loaded: LoadedPolicy, output: Path) -> str:
    if loaded.spec.num_actions is not None:  # robots take continuous commands
        return f", or mpo-robot evaluate {output}"
    has_density = getattr(loaded.policy, "distribution", "gaussian") == "gaussian"
    return f", or mpo-robot serve {output}" + ("" if has_density else " --deterministic")
