"""The suite `guidance`: scores of exact samples, rows, costs."""

import pytest

from benchmarks.fidelity import guidance, methods
from benchmarks.speed import guidance_cost, sampling


def test_the_guidance_suite_scores_exact_samples_at_their_floor(monkeypatch):
    monkeypatch.setattr(guidance, "COUNT", 512)
    problem = guidance.cases()["16 steps, 6 states, 3 actions"]
    row = guidance.floor(problem, 0.25)
    assert row["w2"] < 2.0 and row["dynamics_error"] > 0
    method = methods.Method("moment", methods.guided("moment", iterations=2), "heun", (4,))
    assert guidance.measure(problem, method, 0.25, 4)["forward_equivalents"] == 15
    text = guidance.table([row])
    assert "exact samples" in text and "w2" in text


@pytest.mark.slow
def test_costs_are_measured_beside_those_counted():
    found = guidance_cost.costs(sampling.Size(trajectories=2, features=8, blocks=1, window=8, repeats=1))
    assert [row["forward_equivalents"] for row in found] == [2, 2, 3]
    assert all(row["forward_times"] > 0 for row in found)
    assert "forward_times" in guidance.table(found)


@pytest.mark.slow
def test_guided_sampling_is_timed_against_unguided():
    found = guidance_cost.sampling_costs(sampling.Size(trajectories=2, features=8, blocks=1, window=8, repeats=1))
    assert [row["forward_equivalents"] for row in found] == [32, 64, 49, 66, 41, 160]
    assert found[0]["unguided_times"] == 1.0 and all(row["unguided_times"] > 0 for row in found)
