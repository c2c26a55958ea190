"""Which logs of a folder may be deleted, and in which order they are."""

from __future__ import annotations

import json
import os
from pathlib import Path

from deploy.log_config import LogConfig
from deploy.log_opener import log_opener
from deploy.log_retention import INGESTED, ingested_files, mark_ingested, prune_folder
from deploy.log_writer import EpisodeLogWriter
from tests.support.records import SPEC, make_records


def make_folder(directory: Path, *names: str) -> dict[str, Path]:
    """Files of 1000 bytes each, oldest first."""
    directory.mkdir(exist_ok=True)
    paths = {name: directory / f"{name}.mcap" for name in names}
    for age, path in enumerate(paths.values()):
        path.write_bytes(bytes(1000))
        os.utime(path, (1e9 + age, 1e9 + age))
    return paths


def mark(*paths: Path) -> None:
    mark_ingested(paths[0].parent, {path: path.stat().st_size for path in paths}, "runs/a")


def left(directory: Path) -> list[str]:
    return sorted(path.stem for path in directory.glob("*.mcap"))


def test_nothing_that_was_not_ingested_is_deleted(tmp_path: Path) -> None:
    paths = make_folder(tmp_path, "a", "b", "c")
    pruning = prune_folder(tmp_path, 1500)
    assert pruning.deleted == ()
    assert pruning.left_bytes == 3000
    assert "3,000 bytes of logs, more than log.folder_max_bytes=1500" in pruning.problem
    assert "nothing else was ingested" in pruning.problem
    mark(paths["b"])
    pruning = prune_folder(tmp_path, 1500)
    assert pruning.deleted == (paths["b"],)
    assert (pruning.freed_bytes, pruning.left_bytes) == (1000, 2000)
    assert pruning.problem
    assert left(tmp_path) == ["a", "c"]


def test_oldest_go_first_and_no_more_than_needed(tmp_path: Path) -> None:
    paths = make_folder(tmp_path, "c", "b", "a")
    mark(*paths.values())
    pruning = prune_folder(tmp_path, 2000)
    assert pruning.deleted == (paths["c"],)
    assert pruning.problem == ""
    assert prune_folder(tmp_path, 2000).deleted == ()


def test_any_is_deleted_only_when_told_so(tmp_path: Path) -> None:
    paths = make_folder(tmp_path, "a", "b", "c")
    assert prune_folder(tmp_path, 1000, "any").deleted == (paths["a"], paths["b"])
    assert prune_folder(tmp_path, 500, "any").left_bytes == 0


def test_file_that_changed_since_it_was_ingested_stays(tmp_path: Path) -> None:
    paths = make_folder(tmp_path, "a", "b")
    mark(paths["a"])
    with paths["a"].open("ab") as stream:
        stream.write(b"more")
    assert prune_folder(tmp_path, 0).deleted == ()


def test_episode_goes_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    paths = make_folder(tmp_path, "a", "a.part0001", "b")
    mark(paths["a"])
    assert prune_folder(tmp_path, 1000).deleted == ()
    mark(paths["a.part0001"])
    assert set(prune_folder(tmp_path, 2500).deleted) == {paths["a"], paths["a.part0001"]}


def test_log_in_the_hands_of_its_writer_and_rejected_ones_are_never_deleted(tmp_path: Path) -> None:
    rejected = make_folder(tmp_path / "rejected", "bad")["bad"]
    writer = EpisodeLogWriter(tmp_path, SPEC, "running")
    try:
        assert prune_folder(tmp_path, 0, "any").deleted == ()
    finally:
        writer.close()
    assert rejected.exists()
    assert prune_folder(tmp_path, 0, "any").deleted == (writer.path,)
    assert rejected.exists()


def test_marks_survive_a_torn_line_and_are_not_repeated(tmp_path: Path) -> None:
    paths = make_folder(tmp_path, "a", "b")
    mark(paths["a"])
    (tmp_path / INGESTED).write_text((tmp_path / INGESTED).read_text()[:-5])
    assert ingested_files(tmp_path) == {}
    mark(paths["a"])
    mark(paths["a"], paths["b"])
    assert ingested_files(tmp_path) == {"a.mcap": 1000, "b.mcap": 1000}
    lines = [line for line in (tmp_path / INGESTED).read_text().splitlines() if line]
    assert len(lines) == 3
    assert json.loads(lines[-1]) == {"file": "b.mcap", "bytes": 1000, "run": "runs/a"}


def test_room_is_made_before_each_episode_and_said(tmp_path: Path) -> None:
    paths = make_folder(tmp_path, "a", "b")
    mark(paths["a"])
    said: list[str] = []
    config = LogConfig(str(tmp_path), folder_max_bytes=900)
    open_log = log_opener(config, SPEC, "bench", said.append)
    assert open_log is not None
    assert said == []
    writer = open_log("new")
    writer.append(make_records(1)[0])
    writer.close()
    assert said[0] == "note     deleted a.mcap: 1,000 bytes of old logs"
    assert "holds 1,000 bytes of logs" in said[1]
    assert left(tmp_path) == ["b", "new"]
    assert log_opener(LogConfig(""), SPEC, "bench") is None
