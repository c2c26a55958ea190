"""Settings for all tests."""

import os

# One thread: results do not depend on the number of cores, and threads that spin for each other on a busy machine
# make small matrix products a hundred times slower. Read by torch when a test imports it; inherited by subprocesses.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Same examples on every run, and no time limit per example: a slow machine must not fail a test.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def _state_home_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test writes into the user's state directory, where faults of robots are remembered."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True)
def state_home(_state_home_of_the_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Each test has a state directory of its own; its subprocesses too."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder))
        yield folder
