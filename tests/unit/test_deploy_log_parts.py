"""Episodes that span several files: rotation, joining, gaps."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from deploy.log_file import Disk
from deploy.log_format import encode_step
from deploy.log_parts import EpisodeFiles, episode_of, group_files, part_path, read_episode
from deploy.log_reader import LogHead, is_being_written, parse_log, read_head, read_log
from deploy.log_writer import EpisodeLogWriter, LogConfig
from mpo_robot.episode import episodes_from_records
from mpo_robot.errors import EpisodeError, SpecMismatchError
from mpo_robot.specs import PolicySpec
from tests.support.onnx_files import small_spec
from tests.support.records import SPEC, identity, make_records

COUNT = 20


def write_parts(
    directory: Path, name: str = "walk", spec: PolicySpec = SPEC, disk: Disk | None = None, **settings: object
) -> list[Path]:
    """The files of one episode of 20 steps in several parts, in order."""
    config = LogConfig(**(settings or {"max_bytes": 7000}))  # type: ignore[arg-type]
    writer = EpisodeLogWriter(directory, spec, name, robot="bench", config=config, disk=disk)
    writer.describe({"mass": 1.5}, 10, 20)
    for record in make_records(COUNT, spec, name):
        assert writer.append(record)
    writer.close({"end_reason": "truncated"})
    assert writer.error is None
    assert writer.parts == len(list(directory.glob(f"{name}*.mcap")))
    return [part_path(directory, name, index) for index in range(writer.parts)]


def indices(paths: list[Path]) -> list[int]:
    return [record.step_index for record in read_episode(paths).records]


def test_parts_are_whole_logs_below_the_limit_and_join_to_the_episode(tmp_path: Path) -> None:
    paths = write_parts(tmp_path)
    assert len(paths) >= 3
    assert [path.name for path in paths[:2]] == ["walk.mcap", "walk.part0001.mcap"]
    seen = 0
    for index, path in enumerate(paths):
        part = read_log(path)
        assert part.complete
        assert part.records
        seen += len(part.records)
        last = index == len(paths) - 1
        assert part.continues is not last
        assert part.metadata["statistics"]["log_written"] == seen
        data = path.read_bytes()
        end = data.rindex(text := encode_step(part.records[-1])) + len(text)
        assert 4000 < end < 7000 or last, "only the index comes on top of the limit"
    joined = read_episode(paths)
    assert joined.complete
    assert not joined.continues
    assert [identity(record) for record in joined.records] == [identity(r) for r in make_records(COUNT, SPEC, "walk")]
    assert joined.metadata["info"] == {"mass": 1.5}
    assert joined.metadata["statistics"] == {
        "end_reason": "truncated",
        "log_written": COUNT,
        "log_dropped": 0,
        "log_parts": len(paths),
    }
    assert "part" not in joined.metadata
    assert joined.total_bytes == joined.recovered_bytes == sum(path.stat().st_size for path in paths)
    assert len(episodes_from_records(joined.records, SPEC)) == 1, "no gap at the joints"


def test_rotation_by_time_counts_the_time_of_the_episode(tmp_path: Path) -> None:
    paths = write_parts(tmp_path, max_seconds=0.005)  # the records are 1 ms apart
    assert [len(read_log(path).records) for path in paths] == [5, 5, 5, 5]


def test_without_limits_there_is_one_file(tmp_path: Path) -> None:
    assert len(write_parts(tmp_path, queue_size=4096)) == 1


def test_next_part_is_there_and_locked_before_the_former_is_released(tmp_path: Path) -> None:
    held: list[tuple[bool, bool]] = []

    class Watching(Disk):
        def sync(self, descriptor: int) -> None:  # a part is forced to the disk just before it is closed
            parts = sorted(tmp_path.glob("walk*.mcap"))
            held.append((is_being_written(parts[0]) or is_being_written(parts[-2]), is_being_written(parts[-1])))
            super().sync(descriptor)

    paths = write_parts(tmp_path, disk=Watching(), max_seconds=0.007)
    assert len(paths) == 3
    assert held[:2] == [(True, True), (True, True)]


@pytest.mark.parametrize("missing", [0, 1])
def test_missing_part_is_named_and_leaves_a_gap(tmp_path: Path, missing: int) -> None:
    paths = write_parts(tmp_path, max_seconds=0.005)
    paths[missing].unlink()
    (files,) = group_files(sorted(tmp_path.glob("*.mcap")))
    joined = read_episode(files.paths)
    assert not joined.complete
    assert joined.problem == f"part {missing} is missing"
    lost = range(5 * missing, 5 * missing + 5)
    assert [record.step_index for record in joined.records] == [i for i in range(COUNT) if i not in lost]
    assert joined.metadata["statistics"]["end_reason"] == "truncated"
    assert len(episodes_from_records(joined.records, SPEC)) == (1 if missing == 0 else 2)


def test_missing_last_part_is_noticed(tmp_path: Path) -> None:
    *paths, last = write_parts(tmp_path, max_seconds=0.005)
    last.unlink()
    joined = read_episode(paths)
    assert joined.problem == "the part behind part 2 is missing"
    assert not joined.complete
    assert "statistics" not in joined.metadata
    assert len(joined.records) == 15


def test_unreadable_part_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    paths = write_parts(tmp_path, max_seconds=0.005)
    paths[1].write_bytes(b"gone")
    joined = read_episode(paths)
    assert "walk.part0001.mcap is not an MCAP file" in joined.problem
    assert "part 1 is missing" in joined.problem
    assert len(joined.records) == 15
    with pytest.raises(EpisodeError, match="none of 2 parts"):
        read_episode([paths[1], paths[1]])


def test_damage_in_one_part_is_told_with_its_number(tmp_path: Path) -> None:
    paths = write_parts(tmp_path, max_seconds=0.005)
    paths[2].write_bytes(paths[2].read_bytes()[:-40])
    joined = read_episode(paths)
    assert joined.problem.startswith("part 2: ")
    assert len(joined.records) == COUNT
    assert 0 < joined.total_bytes - joined.recovered_bytes < 400


def test_last_part_cut_anywhere_gives_the_complete_prefix_of_the_episode(tmp_path: Path) -> None:
    spec = small_spec(observation_size=1, action_size=1)
    records = make_records(3, spec, "cut")
    writer = EpisodeLogWriter(tmp_path, spec, "cut", config=LogConfig(max_seconds=0.002))
    for record in records:
        writer.append(record)
    writer.close()
    first, second = (part_path(tmp_path, "cut", index) for index in (0, 1))
    data, text = second.read_bytes(), encode_step(records[2])
    end, before = data.index(text) + len(text), [identity(record) for record in records[:2]]
    cut = tmp_path / "cut_off.mcap"
    readable = 0
    for length in sorted({*range(0, len(data), 41), end - 1, end, len(data) - 1}):
        cut.write_bytes(data[:length])
        joined = read_episode([first, cut])
        expected = before + ([identity(records[2])] if length >= end else [])
        assert [identity(record) for record in joined.records] == expected
        assert not joined.complete
        readable += "cannot" not in joined.problem
    assert readable


def test_files_are_grouped_by_what_is_inside_them(tmp_path: Path) -> None:
    walk = write_parts(tmp_path, "walk", max_seconds=0.01)
    run = write_parts(tmp_path, "run", max_seconds=0.01)
    garbage = tmp_path / "garbage.mcap"
    garbage.write_bytes(b"?")
    renamed = walk[1].rename(tmp_path / "a.mcap")
    copy = tmp_path / "zcopy.mcap"
    copy.write_bytes(run[0].read_bytes())
    groups = group_files(sorted(tmp_path.glob("*.mcap")))
    assert groups == [
        EpisodeFiles("walk", (walk[0], renamed), (0, 1)),
        EpisodeFiles(None, (garbage,), (0,)),
        EpisodeFiles("run", tuple(run), (0, 1)),
        EpisodeFiles("run", (copy,), (0,)),
    ]
    assert read_head(renamed) == LogHead("walk", 1)


def test_one_file_stands_for_the_parts_beside_it(tmp_path: Path) -> None:
    paths = write_parts(tmp_path, max_seconds=0.007)
    write_parts(tmp_path, "walk2", max_seconds=0.007)
    for path in paths:
        assert episode_of(path) == EpisodeFiles("walk", tuple(paths), (0, 1, 2))
    (tmp_path / "cut.mcap").write_bytes(b"\x89MCAP0\r\n")
    assert episode_of(tmp_path / "cut.mcap").episode_id is None


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    walk = write_parts(tmp_path / "a", max_seconds=0.01)
    run = write_parts(tmp_path / "a", "run", max_seconds=0.01)
    with pytest.raises(EpisodeError, match="two episodes, walk and run"):
        read_episode([walk[0], run[1]])
    with pytest.raises(EpisodeError, match="is part 0 of its episode, and so is another"):
        read_episode([walk[0], walk[0]])
    other = write_parts(tmp_path / "b", spec=dataclasses.replace(SPEC, control_dt=0.5), max_seconds=0.01)
    with pytest.raises(SpecMismatchError, match="control_dt"):
        read_episode([walk[0], other[1]])


def test_part_that_lost_its_end_says_nothing_of_a_continuation(tmp_path: Path) -> None:
    data = write_parts(tmp_path, max_seconds=0.005)[1].read_bytes()
    whole = parse_log(data, "part")
    assert whole.continues
    assert whole.metadata["part"] == 1
    cut = parse_log(data[: data.index(b"mpo_robot.statistics")], "part")
    assert not cut.continues
    np.testing.assert_array_equal(cut.records[-1].observation, whole.records[-1].observation)
