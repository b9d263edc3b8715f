"""A run on scaled rewards learns from them, and reports the same numbers: a factor of 4 changes no bit of tokens."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxpgd.experiment.commands.compare_rollouts import compare_models
from jaxpgd.experiment.commands.run import run_all
from jaxpgd.experiment.commands.synthesize import export_synthetic
from jaxpgd.experiment.run.view import open_run
from jaxpgd.experiment.stages.known_policies import known_target
from jaxpgd.experiment.stages.load import load_models
from jaxpgd.experiment.stages.prepare import prepare

pytestmark = pytest.mark.slow  # two whole runs

SMALL = {
    "arms": ["unguided", "world_model"],
    "seeds": 1,
    "evaluation": {"episodes": 1, "trajectories": 16, "coefficients": []},
    "world_model": {"members": 2, "elites": 1, "hidden": [8], "reward_hidden": [8], "epochs": 2, "steps_per_epoch": 4,
                 "batch_size": 16},
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, make_config: Any, few_rollouts: None) -> list[Path]:
    folder, data = tmp_path_factory.mktemp("runs"), {"episodes": 40, "window": 8}
    scales = ({}, {"reward_scale": 4.0})
    return [run_all(make_config(folder / str(len(s)), **SMALL, data=data | s)) for s in scales]


def test_everything_about_trajectories_is_in_own_units(runs: list[Path]) -> None:
    plain, scaled = (json.loads((run / "quality.json").read_text("utf-8")) for run in runs)
    assert plain["real"]["reward_error"] < 0.01 and plain["rows"][0]["reward_error"] > 0.1
    assert plain == scaled
    samples = [np.load(run / "samples.npz") for run in runs]
    for name in samples[0].files:
        np.testing.assert_array_equal(samples[0][name], samples[1][name], err_msg=name)


def test_logs_tell_synthetic_rewards_in_own_units(runs: list[Path]) -> None:
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()] for run in runs]
    for stage in ("agent-unguided", "agent-world_model"):
        first = [next(row for row in found if row["stage"] == stage) for found in rows]
        assert first[0]["synthetic_reward"] == first[1]["synthetic_reward"] != 0
        assert first[0]["critic_loss"] != first[1]["critic_loss"]  # values are those of learned rewards
    for stage in ("denoiser", "world-model"):  # what is standardised is the same
        losses = [[{k: v for k, v in row.items() if "loss" in k} for row in found if row["stage"] == stage] for found in rows]
        assert losses[0] == losses[1] != []


def test_exports_and_rollouts_are_in_own_units(runs: list[Path], tmp_path: Path) -> None:
    rewards, errors = [], []
    for run in runs:
        export_synthetic(str(run), tmp_path / run.name, trajectories=4)
        rewards.append(np.load(tmp_path / run.name / "transitions.npz")["rewards"])
        opened = open_run(str(run))
        prepared = prepare(opened.config)
        models, policy = load_models(opened, prepared), known_target(prepared.dataset)
        assert policy is not None
        found = compare_models(jax.random.key(0), [("run", opened.config, prepared, models)], policy, 8, 4)
        errors.append({name: row["return_error"] for name, row in found["methods"].items()})
    np.testing.assert_array_equal(*rewards)
    assert errors[0] == errors[1] and len(errors[0]) == 4
