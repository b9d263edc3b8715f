"""The suite `denoiser` at sizes that take a moment."""

import pytest

from benchmarks.speed import denoiser


@pytest.mark.slow
def test_the_denoiser_suite_counts_what_it_trains():
    size = denoiser.Size(
        obs_dim=2, action_dim=1, transitions=400, window=8, batch=4, features=(8,), blocks=1, steps=2, repeats=2
    )
    (row,) = denoiser.run(size)["rows"]
    assert row["ratio"] == pytest.approx(row["rate"] / row["baseline_rate"])
    # the last convolution alone, forward: batch * window * taps * features * features
    assert row["gflop_per_unit"] * 1e9 > 2 * 4 * 8 * 3 * 8 * 8 and row["matmul_share"] > 0
