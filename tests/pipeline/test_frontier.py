"""The frontier of likelihood against dynamics error: summaries by hand, and the command on a tiny run."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxpgd.cli import main
from jaxpgd.pipeline.frontier import dominated, largest_coefficients, summarise_cells


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


def test_command(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--trajectories", "8", "--coefficients", "0.5,2", "--kinds", "published,moment,smc", "--policy", "guided:1"]
    main(["frontier", str(finished), *arguments, "--max-dynamics-error", "100", "--out", str(tmp_path / "f")])
    result = json.loads((tmp_path / "f" / "frontier.json").read_text())
    assert [(c["guidance"], c["coefficient"]) for c in result["cells"]] == [
        ("unguided", 0.0), ("published", 0.5), ("published", 2.0), ("moment", 0.5), ("moment", 2.0), ("smc", 0.5), ("smc", 2.0),
    ]  # fmt: skip
    costs = [c["forward_equivalents"] for c in result["cells"][::2]]
    assert costs == [3, 3 + 3, 5 * 3, 2 * 3]  # euler, 3 steps; 2 iterations of moments; smc proposes by reconstruction
    assert np.isfinite([c["dynamics_error"] for c in result["cells"]]).all()
    assert set(result["largest"]) == {"published", "moment", "smc"}
    assert (tmp_path / "f" / "frontier.png").stat().st_size > 5000
    assert "dominated" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "message"), [
    (["--coefficients", "0,1"], "--coefficients = (0.0, 1.0)"),
    (["--coefficients", "a"], "--coefficients = 'a': expected numbers"),
    (["--kinds", "magic"], "--kinds = ['magic']"),
    (["--actor", "nowhere.npz"], "policy = 'nowhere.npz'"),
    (["--actor", "a.npz", "--policy", "guided"], "expected one of them"),
])  # fmt: skip
def test_bad_arguments(finished: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["frontier", str(finished), *arguments])
    assert stopped.value.code == 2 and message in capsys.readouterr().err
