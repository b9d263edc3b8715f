"""The suite `dydiff` at sizes that take a moment."""

import pytest

from benchmarks.speed import dydiff


@pytest.mark.slow
def test_the_dydiff_suite_holds_its_rows_against_the_published_sampler():
    size = dydiff.Size(trajectories=2, window=8, features=8, blocks=1, transitions=500, hidden=(8,), repeats=1)
    rows = dydiff.run(size)["rows"]
    assert rows[0]["ratio"] == 1.0 and len(rows) == len(dydiff.ROWS | dydiff.SMALL)
