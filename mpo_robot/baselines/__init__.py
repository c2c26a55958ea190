"""Algorithms to compare MPO with, on the same replay, networks, returns and metrics."""
