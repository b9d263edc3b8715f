"""The summary of a long run."""

import pytest

from benchmarks.robustness import soak


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
