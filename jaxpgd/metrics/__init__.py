"""Metrics of trajectories, rollouts and returns: arrays in, numbers out. Nothing here opens files or environments."""
