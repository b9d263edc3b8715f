"""The suite `scaling` at sizes that take a moment."""

import pytest

from benchmarks.speed import scaling


@pytest.mark.slow
def test_the_scaling_suite_has_a_row_for_each_number_of_devices():
    size = scaling.Size(
        counts=(1, 2), features=8, blocks=1, batch=4, steps=2, trajectories=4, sampler_steps=3, seeds=2, updates=2,
        agent_batch=8, transitions=500, repeats=1,
    )  # fmt: skip
    rows = scaling.run(size)["rows"]
    assert [row["devices"] for row in rows] == [1, 2]
    assert all(rate > 0 for row in rows for rate in row["of_one"].values())
