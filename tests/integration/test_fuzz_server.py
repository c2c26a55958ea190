"""Some thousand hostile frames against the real command; benchmarks/fuzz_server.py throws a million."""

import pytest

from benchmarks import fuzz_server
from tests.support.fuzzing import FrameFuzzer
from tests.support.onnx_files import small_spec


def test_a_server_under_hostile_frames_lives_and_serves(tmp_path):
    result = fuzz_server.run(2000, seed=1, folder=tmp_path)
    assert result.problems(max_growth_mb=30.0) == []
    assert (result.frames, result.streams, result.honest) == (2000, 40, 4)


@pytest.mark.slow
def test_a_hundred_thousand_hostile_frames(tmp_path):
    result = fuzz_server.run(100_000, seed=2, folder=tmp_path)
    assert result.problems(max_growth_mb=10.0) == []


def test_the_frames_repeat_and_reach_every_kind_of_message():
    frames = [list(map(bytes, FrameFuzzer(0, small_spec(), "a" * 64).next())) for _ in range(2)]
    assert frames[0] == frames[1]
    fuzzer = FrameFuzzer(0, small_spec(), "a" * 64)
    sent = b"".join(b"".join(fuzzer.next()) for _ in range(2000))
    for kind in ("hello", "begin_episode", "act_request", "end_episode", "operate", "ping", "welcome"):
        assert kind.encode() in sent


def test_every_failure_is_a_problem():
    good = fuzz_server.FuzzResult(honest=1, exit_code=0, internal_errors=0)
    assert good.problems(1.0) == []
    for fault in (
        {"exit_code": -6},
        {"internal_errors": 1},
        {"undecodable": 1},
        {"honest_missed": 1},
        {"honest": 0},
        {"rss_end_mb": 2.0},
        {"files_end": 9},
    ):
        assert (
            len(fuzz_server.FuzzResult(**{"honest": 1, "exit_code": 0, "internal_errors": 0, **fault}).problems(1.0))
            == 1
        )
