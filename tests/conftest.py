"""Settings for all tests."""

from hypothesis import settings

# Same examples on every run, and no time limit per example: a slow machine must not fail a test.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
