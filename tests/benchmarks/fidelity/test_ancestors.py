"""The suite `ancestors`: a population of the smallest problem, by the share of first particles that it keeps."""

import numpy as np
import pytest

from benchmarks.fidelity import ancestors


def test_all_problems_have_their_number_of_actions():
    for name, problem in ancestors.problems().items():
        steps, actions = (int(number) for number in name.split(" x "))
        assert (problem.env.horizon, problem.env.action_dim) == (steps, actions)


@pytest.mark.slow
def test_rows_run_from_the_proposal_to_all_of_the_weights():
    rows = list(ancestors.rows("4 x 1", ancestors.problems()["4 x 1"], levels=8, seeds=1))
    exponents, kept = ([row[name] for row in rows] for name in ("exponent", "ancestors"))
    assert exponents[0] == 1.0 and exponents[-1] < 1e-3 and kept[-1] > 0.999
    assert np.all(np.diff(kept) > -1e-6)
    assert rows[-1]["log_likelihood"] < rows[0]["log_likelihood"]  # the proposal falls short
