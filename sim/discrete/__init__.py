"""Tasks with discrete actions: Gymnasium's classic control, MinAtar and Atari games."""
