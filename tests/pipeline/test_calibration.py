"""The largest coefficient within a bound on the dynamics error: the search by hand, and in a run."""

import json
from pathlib import Path
from typing import Any

import pytest

from jaxpgd.errors import InputError
from jaxpgd.pipeline.calibration import largest_within
from jaxpgd.pipeline.run import run_all


def test_search_by_hand() -> None:
    """The error is the coefficient itself: the answer is at most the bound, and within a factor of 256^(1/16) of it."""
    looked: list[float] = []

    def error(coefficient: float) -> float:
        looked.append(coefficient)
        return coefficient

    assert largest_within(error, 2.0, 3.0) == 2.0 and looked == [2.0]
    for bound in (0.02, 0.1, 0.5, 1.9):
        found = largest_within(error, 2.0, bound)
        assert found <= bound <= found * 256 ** (1 / 16) * (1 + 1e-9)
    assert largest_within(error, 2.0, 1e-4) == 0.0  # none of those looked at
    assert largest_within(lambda coefficient: float("nan"), 2.0, 1.0) == 0.0


def choices(path: Path) -> list[dict[str, Any]]:
    """Rows of the chunks that began with a refresh."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "guided_dynamics_error" in row]


@pytest.mark.parametrize(("times", "coefficient"), [(1e6, 0.5), (1e-6, 0.0)])
def test_a_run_chooses_before_each_refresh(
    finished: Path, make_config: Any, tmp_path: Path, times: float, coefficient: float
) -> None:
    guidance = {"coefficient": 0.5, "max_dynamics_error": times}
    run_all(make_config(tmp_path / "run", arms=["guided"], guidance=guidance, denoiser_from=str(finished)))
    (row,) = choices(tmp_path / "run")  # 8 updates, a refresh every 4; the first replay is unguided
    assert row["step"] == 6 and row["synthetic_coefficient"] == [coefficient] * 2
    assert 0 < row["guided_dynamics_error"] <= times * row["unguided_dynamics_error"] or coefficient == 0
    assert (row["guided_dynamics_error"] == row["unguided_dynamics_error"]) == (coefficient == 0)


@pytest.mark.parametrize(("changes", "message"), [
    ({"guidance": {"max_dynamics_error": 2.0, "target_ess": 0.5}}, "guidance.max_dynamics_error = 2.0: expected 0 where guid"),
    ({"guidance": {"max_dynamics_error": 2.0}, "synthesis": {"first_unguided": False}}, "synthesis.first_unguided = False"),
    ({"guidance": {"max_dynamics_error": -1.0}}, "guidance.max_dynamics_error = -1.0"),
])  # fmt: skip
def test_bad_settings(make_config: Any, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    base = {"agent": {"updates": 8, "updates_per_chunk": 2}, "synthesis": {"trajectories": 8, "interval": 4}}
    merged = {name: base.get(name, {}) | changes.get(name, {}) for name in base.keys() | changes.keys()}
    with pytest.raises(InputError) as caught:
        make_config(tmp_path / "run", **merged)
    assert message in str(caught.value)
