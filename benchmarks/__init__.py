"""Measurements of speed, fidelity and robustness; `python -m benchmarks --help` lists the suites."""
