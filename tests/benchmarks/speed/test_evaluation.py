"""The suite `evaluation`: any number of processes gives the same returns, bit for bit."""

import pytest

from benchmarks.speed import evaluation


def test_the_evaluation_suite_compares_processes_bit_for_bit(monkeypatch):
    size = evaluation.Size(
        env_id="Pendulum-v1", kwargs=(("g", 9.0),), seeds=2, episodes=2, horizon=20, hidden=8, processes=(1, 2), repeats=1
    )
    rows = evaluation.run(size)["rows"]
    assert [row["processes"] for row in rows] == [1, 2] and all(row["bit_equal"] for row in rows)
    assert rows[1]["of_one"] == pytest.approx(rows[1]["steps_per_second"] / rows[0]["steps_per_second"])
    different = iter(range(99))
    real = evaluation.evaluate

    def drifting(*args, **kwargs):
        found = real(*args, **kwargs | {"processes": 1})
        return found.replace(returns=found.returns + next(different))

    monkeypatch.setattr(evaluation, "evaluate", drifting)
    assert [row["bit_equal"] for row in evaluation.run(size)["rows"]] == [True, False]
