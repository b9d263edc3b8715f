"""Runs whose data come from a world model and from DyDiff, and the comparison of their rollouts."""

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
import pytest

from jaxpgd.agents import AGENTS
from jaxpgd.errors import InputError
from jaxpgd.experiment.commands import run
from jaxpgd.experiment.commands.compare_rollouts import compare_runs, crossings, greedy
from jaxpgd.experiment.commands.reproduce import reproduce
from jaxpgd.experiment.commands.synthesize import export_synthetic
from jaxpgd.experiment.config import Arm
from jaxpgd.experiment.config_files import load_config
from jaxpgd.experiment.run.logs import MetricsLog
from jaxpgd.experiment.stages.model_programs import termination_rule
from jaxpgd.experiment.stages.prepare import prepare
from jaxpgd.types import Policy

SMALL: dict[str, Any] = {
    "arms": ["world_model", "dydiff"],
    "seeds": 1,
    "world_model": {
        "members": 3, "elites": 2, "hidden": [8], "reward_hidden": [8], "epochs": 4, "steps_per_epoch": 2, "batch_size": 16,
    },
    # what DyDiff published where the defaults are others
    "data": {"episodes": 40, "validation_fraction": 0.25, "normalisation": "limits"},
    "agent": {
        "updates": 8, "updates_per_chunk": 2, "batch_size": 16,
        "td3_bc": {"hidden": [8], "actor": "tanh_gaussian", "policy_delay": 2, "cloning": 0.5},
    },
}  # fmt: skip
SYNTHESIS = {
    "trajectories": 8, "interval": 4, "synthetic_ratio": 0.5, "regime": "fifo", "fraction": 0.5,
    "filter": {"kind": "softmax", "keep": 0.5, "steps": "all"}, "world_model": {"length": 1, "actions": "mode"},
    "dydiff": {"scaled_conditions": True, "actions": "mode"},
}  # fmt: skip


@pytest.fixture(scope="module")
def dydiff_config(make_config: Any) -> Any:
    return lambda out, **changes: make_config(out, **(SMALL | {"synthesis": SYNTHESIS} | changes))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, dydiff_config: Any) -> Path:
    return run.run_all(dydiff_config(tmp_path_factory.mktemp("dydiff") / "whole"))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_every_arm_is_trained_scored_and_reported(done: Path) -> None:
    results = read(done / "results.json")
    assert [row["arm"] for row in results["returns"]] == ["world_model", "dydiff"]
    quality = results["quality"]
    assert quality["rows"] == [] and set(quality["arms"]) == {"world_model", "dydiff"}
    for row in quality["arms"].values():
        assert np.isfinite([row["log_likelihood"], row["dynamics_error"], row["persistence_error"]]).all()
    page = (done / "report.html").read_text()
    assert "dydiff" in page and (done / "figures" / "dynamics.png").stat().st_size > 5000
    assert {p.name for p in (done / "checkpoints").iterdir()} == {
        "world-model", "state-denoiser", "agent-world_model", "agent-dydiff",
    }  # fmt: skip


def test_fifo_fills_the_replay(done: Path) -> None:
    rows = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    sizes = [r["synthetic_transitions"][0] for r in rows if r["stage"] == "agent-dydiff"]
    assert sizes == [4 * 15, 4 * 15, 8 * 15, 8 * 15]  # 16 steps, the last of which nobody knows the outcome of


def test_rollouts_of_one_step_are_one_transition(done: Path) -> None:
    rows = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    assert [r["synthetic_transitions"][0] for r in rows if r["stage"] == "agent-world_model"] == [4, 4, 8, 8]
    assert len(read(done / "results.json")["quality"]["arms"]["world_model"]["dynamics_error_by_step"]) == 1
    with np.load(done / "samples.npz") as stored:
        assert stored["world_model_obs"].shape[1] == 1 and stored["world_model_last_obs"].shape == (32, 2)
        assert "dydiff_last_obs" not in stored


class Interruption(Exception):
    pass


@pytest.mark.slow
def test_interrupted_models_end_with_the_same_bits(
    done: Path, dydiff_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dydiff_config(tmp_path / "again")
    write = MetricsLog.write
    for stage in ("world-model", "state-denoiser"):

        def stop(self: MetricsLog, name: str, chunk: int, values: dict[str, Any], stage: str = stage) -> None:
            write(self, name, chunk, values)
            if (name, chunk) == (stage, 2):
                raise Interruption

        monkeypatch.setattr(MetricsLog, "write", stop)
        with pytest.raises(Interruption):
            run.run_all(config, resume=True)
    monkeypatch.setattr(MetricsLog, "write", write)
    run.run_all(config, resume=True)
    assert read(tmp_path / "again" / "results.json") == read(done / "results.json")


@pytest.mark.slow
def test_comparison_of_rollouts(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = compare_runs([str(done)], trajectories=6)
    methods = [
        "world model, mean",
        "world model, sampled",
        *(f"DyDiff, {i} iteration{'s' * (i != 1)}" for i in (0, 1, 2, 4, 8)),
    ]
    assert list(result["methods"]) == methods
    for row in result["methods"].values():
        assert len(row["state_error"]) == 16
        assert row["state_error"][0] == pytest.approx(0.0, abs=1e-5)  # the same start observations
        assert row["state_error"][-1] > 0
    rows = result["methods"]
    # the refinement starts at the ensemble's mean, and every iteration moves on
    np.testing.assert_allclose(rows[methods[2]]["state_error"], rows["world model, mean"]["state_error"], rtol=0.5, atol=0.05)
    assert len({float(rows[m]["state_error"][-1]) for m in methods}) == len(methods)
    assert set(result["crossings"]) == set(methods[2:])
    folder = done / "comparison"
    assert (folder / "rollouts.png").stat().st_size > 5000 and read(folder / "rollouts.json")["length"] == 16
    printed = capsys.readouterr().out
    assert "DyDiff, 2 iterations" in printed and "distance below from" in printed and "None" not in printed
    with pytest.raises(InputError, match=r"--length = 1: expected at least"):
        compare_runs([str(done)], length=1)


def test_crossings_by_hand() -> None:
    curve = lambda *values: {"squares": np.array([values, values]), "state_distance": np.array(values)}
    found = {
        "world model, mean": curve(0.0, 1.0, 2.0, 3.0), "world model, sampled": curve(0.0, 1.0, 0.5, 3.0),
        "better": curve(0.5, 1.5, 1.0, 1.0), "worse": curve(1.0, 2.0, 3.0, 4.0),
    }  # fmt: skip
    assert crossings(found) == {
        "better": {"state_error": 2, "clearly": 2, "state_distance": 3},
        "worse": {"state_error": None, "clearly": None, "state_distance": None},
    }


def test_a_greedy_policy_samples_its_mode() -> None:
    noisy = Policy(np.ones(2), lambda p, k, o: p + jax.random.normal(k, (2,)), lambda p, o: p * o.sum())
    obs = np.array([1.0, 2.0])
    np.testing.assert_array_equal(greedy(noisy).sample(jax.random.key(0), obs), noisy.mode(obs))
    assert hash(greedy(noisy).sample_fn) == hash(greedy(noisy).sample_fn)


def test_export_of_every_kind(done: Path, tmp_path: Path) -> None:
    for kind in ("dydiff", "world_model"):
        export_synthetic(str(done), tmp_path / kind, policy="dydiff", kind=kind, trajectories=3)
        assert (tmp_path / kind / "transitions.npz").exists()
    with pytest.raises(InputError, match=r"--kind = 'guided': expected one of dydiff, world_model"):
        export_synthetic(str(done), tmp_path / "other", policy="dydiff")
    with pytest.raises(InputError, match=r"--policy = '': expected ARM"):
        export_synthetic(str(done), tmp_path / "other", kind="dydiff")


def test_every_arm_can_be_the_only_one() -> None:
    for arm in get_args(Arm):
        assert load_config(None, {"arms": [arm]}).arms == (arm,)


def test_an_environment_without_a_known_rule_is_refused_before_training(dydiff_config: Any, tmp_path: Path) -> None:
    config = dydiff_config(tmp_path / "x")
    info = dataclasses.replace(prepare(config).dataset.info, env_id="Humanoid-v5", env_spec=None)
    with pytest.raises(InputError, match=r"world_model.termination = 'auto'.*Humanoid-v5"):
        termination_rule(config, info)
    learned = dataclasses.replace(config, world_model=dataclasses.replace(config.world_model, termination="learned"))
    assert termination_rule(learned, info) is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(AGENTS))
def test_every_agent_with_every_source(kind: str, make_config: Any, tmp_path: Path) -> None:
    data = SMALL["data"] | {"normalisation": "standard"}  # as guidance takes tokens to be
    config = make_config(tmp_path / kind, **(SMALL | {"arms": list(get_args(Arm)), "data": data}))
    section = dataclasses.replace(getattr(config.agent, kind), hidden=(8, 8))
    agent = dataclasses.replace(config.agent, kind=kind, **{kind: section})
    path = run.run_all(dataclasses.replace(config, agent=agent))
    rows = read(path / "results.json")["returns"]
    assert [row["arm"] for row in rows] == list(get_args(Arm)) and np.isfinite([row["mean return"] for row in rows]).all()


@pytest.mark.slow
def test_the_same_config_gives_the_same_bits(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce(str(done))
    said = capsys.readouterr().out
    assert "the same bits, " in said and (done / "reproduced" / "reproduction.json").exists()
    parts = {part["part"]: part["entries"] for part in read(done / "reproduced" / "reproduction.json")["parts"]}
    assert set(parts) == {
        *(name + ending for name in ("world-model", "state-denoiser", "agent-world_model", "agent-dydiff")
          for ending in ("", ", metrics")), "returns.json", "quality.json", "results.json",
    }  # fmt: skip
    assert min(parts.values()) > 0
