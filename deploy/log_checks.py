"""What is wrong with an episode log, beyond what damage to its bytes would show."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from deploy.log_reader import LogContents
from mpo_robot.episode import Source, StepRecord, check_record
from mpo_robot.errors import EpisodeError

_SHOWN = 5  # step numbers in a finding


class Finding(NamedTuple):
    """One thing about a log: `is_problem` if the log is not what a robot in order leaves behind."""

    is_problem: bool
    text: str


def check_episode(contents: LogContents) -> list[Finding]:
    """Check bytes, completeness, interface, order, continuity and numbers; problems first.

    The hash of the spec itself was checked when the log was read.
    """
    records = contents.records
    findings = [*_of_the_file(contents), *_of_the_order(contents), *_of_each_step(contents)]
    without = _numbers(records, lambda r: r.source is Source.POLICY and math.isnan(r.behavior_log_prob))
    if without:
        findings.append(
            Finding(False, f"steps of a policy without behavior log-prob (it is deterministic): {_list(without)}")
        )
    if any(math.isnan(record.reward) for record in records):
        unknown = sum(math.isnan(record.reward) for record in records)
        findings.append(Finding(False, f"{unknown} of {len(records)} steps have no reward"))
    if contents.invalid_records:
        findings.append(Finding(False, f"{len(contents.invalid_records)} steps kept apart (unfit reading)"))
    return sorted(findings, key=lambda finding: not finding.is_problem)


def _of_the_file(contents: LogContents) -> Iterator[Finding]:
    skipped = contents.total_bytes - contents.recovered_bytes
    if not contents.complete:
        lost = f"; {skipped:,} of {contents.total_bytes:,} bytes cannot be read" if skipped else ""
        yield Finding(True, contents.problem + lost)
    if not contents.records:
        yield Finding(True, "no completed step")
    statistics = contents.metadata.get("statistics", {})
    if statistics.get("log_dropped"):
        yield Finding(
            True, f"{statistics['log_dropped']} steps were dropped while recording (queue full or disk error)"
        )
    written = statistics.get("log_written")
    found = len(contents.records) + len(contents.invalid_records)
    if isinstance(written, int) and not contents.continues and "part" not in contents.metadata and written != found:
        yield Finding(True, f"{written} steps were written, {found} are there")


def _of_the_order(contents: LogContents) -> Iterator[Finding]:
    records, apart = contents.records, {record.step_index for record in contents.invalid_records}
    before = -1 if "part" not in contents.metadata else records[0].step_index - 1 if records else -1
    gaps: list[str] = []
    for record in records:
        missing = [index for index in range(before + 1, record.step_index) if index not in apart]
        if missing:
            gaps.append(f"{missing[0]}" if len(missing) == 1 else f"{missing[0]} to {missing[-1]}")
        if record.step_index <= before:
            yield Finding(True, f"step {record.step_index} follows step {before}: out of order or repeated")
        before = record.step_index
    if gaps:
        yield Finding(True, f"missing steps: {_list(gaps)}")
    pairs = list(itertools.pairwise(records))
    broken = [
        after.step_index
        for first, after in pairs
        if after.step_index == first.step_index + 1 and after.observation.tobytes() != first.next_observation.tobytes()
    ]
    if broken:
        yield Finding(True, f"observation is not the next_observation of the step before: steps {_list(broken)}")
    if back := [after.step_index for first, after in pairs if after.monotonic_ns <= first.monotonic_ns]:
        yield Finding(True, f"time does not move on: steps {_list(back)}")
    if ended := _numbers(records[:-1], lambda record: record.terminated or record.truncated):
        yield Finding(True, f"steps follow the end of the episode at: {_list(ended)}")


def _of_each_step(contents: LogContents) -> Iterator[Finding]:
    spec, records = contents.spec, contents.records
    name = contents.metadata.get("episode_id")
    if foreign := _numbers(records, lambda record: record.episode_id != name):
        yield Finding(True, f"steps of another episode than {name}: {_list(foreign)}")
    for record in (*records, *contents.invalid_records):
        try:
            check_record(record, spec)
        except EpisodeError as error:
            yield Finding(True, str(error))
            return
    for field in ("observation", "next_observation", "policy_action", "sent_action", "applied_command"):
        if wrong := _numbers(records, lambda record, field=field: not np.isfinite(getattr(record, field)).all()):
            yield Finding(True, f"{field} is not finite: steps {_list(wrong)}")
    for field in ("behavior_log_prob", "reward"):
        if wrong := _numbers(records, lambda record, field=field: math.isinf(getattr(record, field))):
            yield Finding(True, f"{field} is infinite: steps {_list(wrong)}")

    def differs(record: StepRecord) -> bool:
        return not np.allclose(record.sent_action, spec.to_action(record.applied_command), atol=1e-5, equal_nan=True)

    if wrong := _numbers(records, differs):
        yield Finding(True, f"sent_action is not applied_command in normalized form: steps {_list(wrong)}")


def _numbers(records: Sequence[StepRecord], wrong: Callable[[StepRecord], bool]) -> list[int]:
    return [record.step_index for record in records if wrong(record)]


def _list(items: Sequence[object]) -> str:
    more = len(items) - _SHOWN
    return ", ".join(str(item) for item in items[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
