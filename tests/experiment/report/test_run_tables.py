"""What the report says of a run, in tables and sentences."""

import numpy as np

from jaxpgd.experiment.report.run_tables import correction_verdict, refresh_rows, return_row, verdicts
from jaxpgd.metrics.statistics import summarise


def test_a_single_score_has_no_interval() -> None:
    row = return_row("real", summarise(np.array([[3.0]])), {}, 0.95)
    assert row["mean return"] == 3.0 and row["95 % interval"] == row["95 % interval (IQM)"] == "none: one score"
    row = return_row("real", summarise(np.array([[3.0], [5.0]])), {}, 0.95)
    assert row["95 % interval"] == "[3, 5]"


def test_a_missing_dynamics_error_is_named() -> None:
    quality = {"rows": [], "target": "seed 0", "real": {}, "arms": {"dydiff": {}}}
    assert verdicts(quality) == ["no dynamics error: no simulator replays this environment"]
    row = {"dynamics_error": 0.2, "persistence_error": 0.4, "log_likelihood": -1.0}
    (line,) = verdicts(quality | {"real": row, "arms": {"dydiff": row}})
    assert line.startswith("DyDiff: one-step dynamics error 0.2000 (0.50 of persistence)")
    assert verdicts({}) == []


def test_the_correction_is_told_by_what_it_changes() -> None:
    without = {"dynamics_error": 0.2, "reward_error": 0.04}
    told = "dynamics-consistent denoising at 8 of 16 noise levels"
    corrected, row = {"levels": 16, "corrected": 8}, {"dynamics_error": 0.1, "reward_error": 0.02}
    found = correction_verdict(corrected | {"without": without}, row)
    assert found == f"{told}, unguided: one-step dynamics error 0.2000 -> 0.1000, reward error 0.0400 -> 0.0200"
    assert correction_verdict(corrected | {"without": {}}, {}) == told  # no simulator


def test_each_refresh_is_one_row() -> None:
    made = {"coefficient": [0.5, 1.5], "ess": [1.0, 0.5], "clipped_actions": [0.0, 0.2]}
    log = lambda step, stage="agent-guided", **new: (
        {"stage": stage, "step": step} | {f"synthetic_{k}": v for k, v in (made | new).items()}
    )
    later = {"coefficient": [2.0, 2.0], "log_likelihood": [-1.0, -3.0], "data_log_likelihood": [-4.0, -4.0]}
    rows = refresh_rows([log(1), log(2), log(3, **later), log(3, stage="agent-unguided"), {"stage": "denoiser", "step": 4}])
    assert rows == [
        {"updates": 1, "coefficient": 1.0, "effective sample size": 0.75, "actions at their bounds": 0.1},
        {
            "updates": 3, "coefficient": 2.0, "effective sample size": 0.75, "log-likelihood of the dataset's actions": -4.0,
            "of the synthetic actions": -2.0, "actions at their bounds": 0.1,
        },
    ]  # fmt: skip
