"""Settings for all tests."""

import os

# One thread: results do not depend on the number of cores, and threads that spin for each other on a busy machine
# make small matrix products a hundred times slower. Read by torch when a test imports it; inherited by subprocesses.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

from hypothesis import settings

# Same examples on every run, and no time limit per example: a slow machine must not fail a test.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
