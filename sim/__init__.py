"""Simulated tasks and robots: dm_control and Gymnasium MuJoCo behind one contract, with domain randomisation."""
