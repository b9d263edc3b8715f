"""The frontier of likelihood against dynamics error: summaries by hand. The command itself is tested in test_run.py."""

import pytest

from jaxpgd.experiment.commands.frontier import dominated, largest_coefficients, summarise_cells


def row(guidance: str, coefficient: float, log_likelihood: float, dynamics_error: float) -> dict:
    return {
        "guidance": guidance, "coefficient": coefficient, "log_likelihood": log_likelihood, "dynamics_error": dynamics_error,
    }  # fmt: skip


ROWS = [
    row("unguided", 0.0, -5.0, 0.05),
    row("published", 0.3, -4.0, 0.06),
    row("published", 1.0, -2.0, 0.08),
    row("published", 3.0, 0.0, 0.07),
    row("moment", 0.3, -3.0, 0.055),
    row("moment", 1.0, -1.0, 0.2),
]


def test_cells_are_averaged_over_runs() -> None:
    (found,) = summarise_cells([row("moment", 1.0, -1.0, 0.1), row("moment", 1.0, -2.0, 0.3)])
    assert found["runs"] == 2 and found["log_likelihood"] == -1.5 and found["dynamics_error"] == pytest.approx(0.2)
    assert (found["dynamics_error_low"], found["dynamics_error_high"]) == (0.1, 0.3)


def test_dominated_by_hand() -> None:
    """published at 0.3 has less than moment at 0.3; moment at 1 has less than published at 3."""
    assert dominated(ROWS) == {"published": [0.3], "moment": [1.0]}


def test_largest_coefficients_by_hand() -> None:
    """Within 1.5 times 0.05: published leaves the bound at 1, though it comes back at 3."""
    assert largest_coefficients(ROWS, 1.5) == {"published": 0.3, "moment": 0.3}
    assert largest_coefficients(ROWS, 1.05) == {"published": 0.0, "moment": 0.0}
    lost = [*ROWS[:1], row("moment", 0.3, -3.0, 0.055), row("moment", 1.0, float("nan"), float("nan"))]
    assert largest_coefficients(lost, 1.5) == {"moment": 0.3} and dominated(lost) == {"moment": [1.0]}
