"""Gymnasium and built-in environments: evaluation of policies, collection of data, replayed steps and true rollouts."""
