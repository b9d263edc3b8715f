"""Timing: compilation apart, peaks, what a row says."""

import jax.numpy as jnp
import pytest

from benchmarks import timing


def test_time_calls_waits_for_results_and_measure_separates_compilation():
    calls = []
    assert len(timing.time_calls(lambda: calls.append(1), 3)) == len(calls) == 3
    traces = []

    def fn(x):
        traces.append(1)
        return x + 1

    result = timing.measure(fn, jnp.ones(3), repeats=4)
    assert len(traces) == 1
    assert result.repeats == 4
    assert 0 < result.median_seconds < result.compile_seconds
    assert result.spread_seconds >= 0


def test_matmul_peak_is_a_plausible_rate():
    assert 0.01 < timing.matmul_peak(size=64, repeats=2) < 1e7


def test_a_row_tells_rate_arithmetic_and_memory():
    result = timing.measure(lambda x: x @ x, jnp.ones((64, 64)), repeats=2)
    assert result.memory_bytes is not None and result.memory_bytes >= 2 * 4 * 64 * 64  # argument and result
    row = timing.row(timing.Timing(1.0, 0.5, 0.1, 3, 99, (0.5, 0.6, 0.4), (100.0, 50.0, 100.0)), 10, flops=4e9)
    assert row["rate"] == 20 and row["spread_percent"] == pytest.approx(20) and row["memory_bytes"] == 99
    assert row["gflop_per_unit"] == 4 and row["matmul_gflops"] == 100
    assert row["matmul_share"] == pytest.approx(1.0)  # the median of 0.8, 4 / 3 and 1
    assert "matmul_share" not in timing.row(timing.Timing(1.0, 0.5, 0.1, 3), 10)
