"""The largest coefficient within a bound on the dynamics error: the search by hand, and in a run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpgd.errors import InputError
from jaxpgd.experiment.commands.run import run_all
from jaxpgd.experiment.run.logs import MetricsLog
from jaxpgd.experiment.run.view import open_run
from jaxpgd.experiment.stages import train_agents
from jaxpgd.experiment.stages.agent_config import agent_config
from jaxpgd.experiment.stages.choose_coefficient import _finite_policies, largest_within
from jaxpgd.types import Policy


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


original = train_agents.choose_coefficient


def calibrated(make_config: Any, finished: Path, out: Path, times: float) -> Any:
    """A config of the guided arm alone, with the denoiser of the finished run."""
    guidance = {"kind": "reconstruction", "coefficient": 0.5, "max_dynamics_error": times}
    return make_config(out, arms=["guided"], guidance=guidance, models_from=[str(finished)])


def choices(path: Path) -> list[dict[str, Any]]:
    """Rows of the chunks that began with a refresh."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "guided_dynamics_error" in row]


@pytest.mark.parametrize(("times", "coefficient"), [pytest.param(1e6, 0.5, marks=pytest.mark.slow), (1e-6, 0.0)])
def test_a_run_chooses_before_each_refresh(
    finished: Path, make_config: Any, tmp_path: Path, times: float, coefficient: float
) -> None:
    path = run_all(calibrated(make_config, finished, tmp_path / "run", times))
    (row,) = choices(path)  # 8 updates, a refresh every 4; the first replay is unguided
    assert row["step"] == 6 and row["synthetic_coefficient"] == [coefficient] * 2
    assert 0 < row["guided_dynamics_error"] <= times * row["unguided_dynamics_error"] or coefficient == 0
    assert (row["guided_dynamics_error"] == row["unguided_dynamics_error"]) == (coefficient == 0)
    # what comes after the training is of the coefficient that was chosen
    view = open_run(path)
    assert agent_config(view, view.effective()).guidance.coefficient == coefficient
    assert view.config.guidance.coefficient == 0.5  # what was asked for stays
    decided = view.resolved["guidance.coefficient"]
    assert decided.value == coefficient and f"within {times:g} times the unguided one" in decided.why
    quality = json.loads((path / "quality.json").read_text())
    assert quality["chosen"] == coefficient and [r["coefficient"] for r in quality["rows"]] == sorted({0.0, coefficient, 1.0})


@pytest.mark.slow
def test_a_run_by_effective_size_is_scored_at_the_coefficient_it_ends_with(
    finished: Path, make_config: Any, tmp_path: Path
) -> None:
    guidance = {"kind": "reconstruction", "coefficient": 50.0, "target_ess": 0.5}
    path = run_all(make_config(tmp_path / "run", arms=["guided"], guidance=guidance, models_from=[str(finished)]))
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    row = [row for row in rows if row["stage"] == "agent-guided"][-1]
    chosen = np.mean(row["synthetic_coefficient"])
    assert 0 < chosen < 50.0 and len(row["synthetic_coefficient"]) == 2
    assert np.shape(row["synthetic_guidance_norm"]) == np.shape(row["synthetic_profile_sigma"]) == (2, 8)
    quality = json.loads((path / "quality.json").read_text())
    assert quality["chosen"] == chosen and [r["coefficient"] for r in quality["rows"]] == sorted({0.0, chosen, 1.0})
    report = (path / "report.html").read_text()
    assert "Generations of the guided arm" in report and "coverage of states" in report


class Stop(Exception):
    pass


@pytest.mark.slow
def test_an_interrupted_run_makes_the_same_choice(
    finished: Path, make_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped right after the choice was logged and before its chunk was saved: it is made again."""
    whole, config = (calibrated(make_config, finished, tmp_path / name, 1.0) for name in ("whole", "stopped"))
    expected = choices(run_all(replace(whole, checkpoint_seconds=1e9)))
    write = MetricsLog.write

    def stop(self: MetricsLog, stage: str, chunk: int, values: dict[str, Any]) -> None:
        write(self, stage, chunk, values)
        if (stage, chunk) == ("agent-guided", 3):
            raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(MetricsLog, "write", stop)
        run_all(config)
    asked = []
    monkeypatch.setattr(train_agents, "choose_coefficient", lambda *given: asked.append(1) or original(*given))
    assert choices(run_all(config, resume=True)) == expected and len(asked) == 1
    returns = [(tmp_path / name / "returns.json").read_text() for name in ("whole", "stopped")]
    assert returns[0] == returns[1]


def test_seeds_that_are_lost_do_not_count() -> None:
    policy = Policy(params={"a": np.array([[1.0], [np.nan], [2.0]])}, sample_fn=lambda *_: None, mode_fn=lambda *_: None)
    assert np.asarray(_finite_policies(policy).params["a"]).tolist() == [[1.0], [2.0]]
    lost = policy.replace(params={"a": np.full((2, 1), np.nan)})  # type: ignore[attr-defined]
    assert len(_finite_policies(lost).params["a"]) == 2


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
