"""Three updates on fixed data give the numbers on file. See make_learner_step.py for how they came about."""

import json

import pytest

from tests.golden.make_learner_step import FILE, compute


def assert_close(actual, expected, path):
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys(), path
        for key in expected:
            assert_close(actual[key], expected[key], f"{path}.{key}")
    elif isinstance(expected, list):
        assert len(actual) == len(expected), path
        for index, pair in enumerate(zip(actual, expected)):
            assert_close(*pair, f"{path}[{index}]")
    else:  # room for another processor's rounding, far below any change of meaning
        assert actual == pytest.approx(expected, rel=1e-3, abs=1e-5), path


def test_three_updates_give_the_numbers_on_file():
    assert_close(compute(), json.loads(FILE.read_text()), "golden")
