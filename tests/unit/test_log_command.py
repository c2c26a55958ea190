"""`mpo-robot log verify|repair|plot`."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mcap.reader import make_reader

from deploy.log_reader import read_log
from deploy.log_writer import EpisodeLogWriter, LogConfig
from mpo_robot.cli.main import main
from mpo_robot.episode import Source, StepRecord
from tests.support.records import SPEC, identity, make_records
from tests.support.robot_process import wait_until

Edit = Callable[[StepRecord], StepRecord]


def write_log(
    directory: Path, name: str = "walk", count: int = 8, edit: Edit | None = None, **settings: object
) -> Path:
    writer = EpisodeLogWriter(directory, SPEC, name, robot="bench", config=LogConfig(**settings))  # type: ignore[arg-type]
    writer.describe({"mass": 1.5}, 10, 20)
    together = settings.keys() & {"flush_interval_s", "max_seconds"}  # otherwise a chunk for each step
    for record in make_records(count, SPEC, name):
        writer.append(record if edit is None else edit(record))
        wait_until(lambda: together or b'"step_index":%d,' % record.step_index in writer.path.read_bytes())  # noqa: B023
    writer.close({"end_reason": "truncated"})
    return writer.path


def flip(path: Path, text: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(text) + len(text) + 20] ^= 1
    path.write_bytes(data)


def verify(capsys: pytest.CaptureFixture[str], *paths: Path) -> tuple[int, list[dict]]:
    code = main(["log", "verify", "--json", *map(str, paths)])
    return code, json.loads(capsys.readouterr().out)


def test_verify_finds_a_log_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_log(tmp_path)
    code, (row,) = verify(capsys, path)
    assert code == 0
    assert row == {
        "log": str(path),
        "files": ["walk.mcap"],
        "state": "ok",
        "steps": 8,
        "end": "truncated",
        "spec_hash": SPEC.spec_hash,
        "problems": [],
        "notes": [],
    }
    assert main(["log", "verify", str(tmp_path)]) == 0
    assert "ok         " in capsys.readouterr().out


def test_verify_says_what_is_damaged_and_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(write_log(tmp_path), b'"step_index":3,')
    code, (row,) = verify(capsys, tmp_path)
    assert (code, row["state"], row["steps"]) == (1, "damaged", 7)
    assert "damaged chunk record (crc" in row["problems"][0]
    assert "bytes cannot be read" in row["problems"][0]
    assert row["problems"][1:] == ["8 steps were written, 7 are there", "missing steps: 3"]


def test_verify_returns_2_for_what_is_no_log_and_still_tells_of_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_log(tmp_path, "good")
    (tmp_path / "bad.mcap").write_bytes(b"hello")
    code, rows = verify(capsys, tmp_path)
    assert code == 2
    assert [(row["state"], row["steps"]) for row in rows] == [("unreadable", 0), ("ok", 8)]
    assert main(["log", "verify", str(tmp_path / "none")]) == 2
    (tmp_path / "empty").mkdir()
    assert main(["log", "verify", str(tmp_path / "empty")]) == 2


def test_verify_of_a_log_that_is_being_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = EpisodeLogWriter(tmp_path, SPEC, "walk")
    try:
        writer.append(make_records(2)[0])
        wait_until(lambda: b'"step_index":0,' in writer.path.read_bytes())
        code, (row,) = verify(capsys, tmp_path)
    finally:
        writer.close()
    assert (code, row["state"], row["problems"]) == (0, "running", [])
    assert row["notes"][0] == "it is still being written"


def test_verify_joins_parts_and_misses_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_log(tmp_path, max_seconds=0.003)
    code, (row,) = verify(capsys, tmp_path / "walk.part0001.mcap")
    assert (code, row["steps"], len(row["files"])) == (0, 8, 3)
    (tmp_path / "walk.part0001.mcap").unlink()
    code, (row,) = verify(capsys, tmp_path)
    assert code == 1
    assert row["problems"] == ["part 1 is missing", "8 steps were written, 5 are there", "missing steps: 3 to 5"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"behavior_log_prob": math.inf}, "behavior_log_prob is infinite: steps 4"),
        ({"observation": np.float32([0, math.nan, 0])}, "observation is not finite: steps 4"),
        (
            {"observation": np.zeros(3, np.float32)},
            "observation is not the next_observation of the step before: steps 4",
        ),
        ({"sent_action": np.zeros(2, np.float32)}, "sent_action is not applied_command in normalized form: steps 4"),
        ({"spec_hash": "b" * 64}, "was recorded with spec bbbb"),
        ({"policy_action": np.zeros(5, np.float32)}, "policy_action has shape (5,), expected (2,)"),
        ({"episode_id": "other"}, "steps of another episode than walk: 4"),
        ({"terminated": True}, "steps follow the end of the episode at: 4"),
        ({"monotonic_ns": 0}, "time does not move on: steps 4"),
        ({"step_index": 2}, "step 2 follows step 3: out of order or repeated"),
    ],
)
def test_verify_checks_what_the_bytes_mean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict, text: str
) -> None:
    def edit(record: StepRecord) -> StepRecord:
        return dataclasses.replace(record, **change) if record.step_index == 4 else record

    write_log(tmp_path, edit=edit, flush_interval_s=60.0)
    code, (row,) = verify(capsys, tmp_path)
    assert code == 1
    assert any(text in problem for problem in row["problems"]), row["problems"]


def test_verify_notes_what_is_unusual_but_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def edit(record: StepRecord) -> StepRecord:
        return dataclasses.replace(record, behavior_log_prob=math.nan, reward=math.nan)

    write_log(tmp_path, edit=edit, flush_interval_s=60.0)
    code, (row,) = verify(capsys, tmp_path)
    assert (code, row["problems"]) == (0, [])
    assert "deterministic" in row["notes"][0]
    assert row["notes"][1] == "8 of 8 steps have no reward"


def test_verify_tells_of_dropped_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = EpisodeLogWriter(tmp_path, SPEC, "walk")
    for record in make_records(3, SPEC, "walk"):
        writer.append(dataclasses.replace(record, latency_ns=object()) if record.step_index == 1 else record)  # type: ignore[arg-type]
    writer.close()
    code, (row,) = verify(capsys, tmp_path)
    assert code == 1
    assert row["problems"][0].startswith("1 steps were dropped while recording")


def test_repair_copies_every_intact_message_and_never_touches_the_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_log(tmp_path, signals=True)
    flip(path, b'"step_index":3,')
    damaged, before = path.read_bytes(), read_log(path)
    output = tmp_path / "mended.mcap"
    assert main(["log", "repair", str(path), "-o", str(output)]) == 0
    assert path.read_bytes() == damaged
    mended = read_log(output)
    assert mended.complete
    assert [identity(record) for record in mended.records] == [identity(record) for record in before.records]
    assert mended.metadata["info"] == {"mass": 1.5}
    assert mended.metadata["statistics"]["end_reason"] == "truncated"
    note = mended.metadata["statistics"]["repaired"]
    assert note == {
        "from": ["walk.mcap"],
        "problem": before.problem,
        "skipped_bytes": before.total_bytes - before.recovered_bytes,
    }
    with output.open("rb") as stream:
        topics = [channel.topic for _, channel, _ in make_reader(stream, validate_crcs=True).iter_messages()]
    assert topics.count("/signals") == topics.count("/step") == len(before.records)
    capsys.readouterr()
    code, (row,) = verify(capsys, output)
    assert (code, row["problems"]) == (1, ["missing steps: 3"]), "mending brings nothing back"


@pytest.mark.parametrize("share", [0.45, 0.6, 0.8, 0.97])
def test_repair_of_a_cut_off_log_gives_what_the_reader_gives(tmp_path: Path, share: float) -> None:
    path = write_log(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    output = tmp_path / "out" / "mended.mcap"
    assert main(["log", "repair", str(path), "-o", str(output)]) == 0
    mended = read_log(output)
    assert mended.complete
    assert [identity(r) for r in mended.records] == [identity(r) for r in read_log(path).records]


def test_repair_makes_one_file_of_the_parts(tmp_path: Path) -> None:
    write_log(tmp_path, max_seconds=0.003)
    parts = sorted(tmp_path.glob("walk*.mcap"), reverse=True)
    output = tmp_path / "whole.mcap"
    assert main(["log", "repair", *map(str, parts), "-o", str(output)]) == 0
    whole = read_log(output)
    assert [identity(r) for r in whole.records] == [identity(r) for r in make_records(8, SPEC, "walk")]
    assert whole.complete
    assert "part" not in whole.metadata
    assert not whole.continues


def test_repair_refuses_to_overwrite_and_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_log(tmp_path)
    before = path.read_bytes()
    assert main(["log", "repair", str(path), "-o", str(path)]) == 2
    assert "never overwritten" in capsys.readouterr().err
    assert path.read_bytes() == before
    (tmp_path / "rubbish").write_bytes(b"rubbish")
    assert main(["log", "repair", str(tmp_path / "rubbish"), "-o", str(tmp_path / "out.mcap")]) == 2
    assert main(["log", "repair", str(tmp_path / "none"), "-o", str(tmp_path / "out.mcap")]) == 2
    assert not (tmp_path / "out.mcap").exists()


def test_plot_draws_gaps_fallbacks_and_misses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def edit(record: StepRecord) -> StepRecord:
        late = record.step_index in (5, 6)
        source = Source.FALLBACK if late else Source.POLICY
        return dataclasses.replace(record, source=source, deadline_missed=late)

    path = write_log(tmp_path, edit=edit)
    flip(path, b'"step_index":2,')
    for name, start in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml")):
        assert main(["log", "plot", str(path), "-o", str(tmp_path / name)]) == 0
        assert (tmp_path / name).read_bytes().startswith(start)
    text = (tmp_path / "a.svg").read_text()
    assert text.count("#ff7f0e; opacity: 0.2") == 4, "one fallback in each of four panels"
    assert text.count("#7f7f7f; opacity: 0.35") == 4, "one gap in each"
    capsys.readouterr()
    assert main(["log", "plot", str(path), "-o", str(tmp_path / "a.txt")]) == 2
    assert ".png, .svg, .pdf" in capsys.readouterr().err


def test_log_without_a_step_is_not_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = EpisodeLogWriter(tmp_path, SPEC, "empty")
    writer.close()
    assert main(["log", "plot", str(writer.path), "-o", str(tmp_path / "a.png")]) == 2
    assert "holds no step" in capsys.readouterr().err
