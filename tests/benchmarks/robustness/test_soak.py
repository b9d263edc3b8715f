"""The summary of a long run."""

import pytest

from benchmarks.robustness import soak
from jaxpgd.errors import InputError


def test_the_summary_of_a_long_run() -> None:
    # 100 updates a second for 400 s, the last quarter at half of that; memory grows from 1000 to 1100 MB after 300 s
    samples, updates = [], 0
    for second in range(1, 401):
        updates += 50 if second > 300 else 100
        samples.append((float(second), updates, (1100 if second > 300 else 1000) * 2**20))
    found = soak.summary(samples, 400.0)
    assert found["memory_settled_mb"] == 1000 and found["memory_end_mb"] == 1100
    assert found["memory_change_percent"] == pytest.approx(10)
    assert found["last_against_second_quarter_percent"] == pytest.approx(-50, abs=2)
    assert found["updates"] == updates and len(found["samples"]) <= 400


def test_a_run_that_is_too_short_is_refused() -> None:
    samples = [(50.0 + second, 100 * second, 2**20) for second in range(1, 10)]
    with pytest.raises(InputError, match=r"--minutes 1: too short to measure, as training began after 51 s"):
        soak.summary(samples, 60.0)
    with pytest.raises(InputError, match="training did not begin"):
        soak.summary([], 60.0)
