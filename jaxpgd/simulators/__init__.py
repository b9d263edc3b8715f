"""Simulators: Gymnasium and built-in environments, in which policies are evaluated and transitions computed again."""
