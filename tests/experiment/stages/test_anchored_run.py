"""A run whose DyDiff is anchored: its stages, what its report says of innovations, and models taken from it."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxpgd.errors import InputError
from jaxpgd.experiment.commands import run
from jaxpgd.experiment.commands.compare_rollouts import compare_runs
from jaxpgd.experiment.config_files import load_config
from jaxpgd.experiment.run.directory import create_run
from jaxpgd.experiment.run.view import open_run
from jaxpgd.experiment.stages.build import arm_synthesizer
from jaxpgd.experiment.stages.load import load_run, open_trained
from jaxpgd.experiment.stages.model_source import decided_by, model_source
from jaxpgd.experiment.stages.prepare import prepare
from jaxpgd.experiment.stages.train_models import train_models
from jaxpgd.experiment.studies.store import Store

SMALL: dict[str, Any] = {
    "arms": ["dydiff"],
    "seeds": 1,
    "world_model": {
        "members": 2, "elites": 2, "hidden": [8], "reward_hidden": [8], "epochs": 2, "steps_per_epoch": 2, "batch_size": 16,
    },
    "synthesis": {
        "trajectories": 8, "interval": 4,
        "dydiff": {
            "conditioning": "anchored",
            "behaviour": {"hidden": [8], "epochs": 3, "steps_per_epoch": 2, "batch_size": 16},
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, make_config: Any) -> Path:
    return run.run_all(make_config(tmp_path_factory.mktemp("anchored") / "whole", **SMALL))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.slow
def test_the_behaviour_is_a_stage_and_the_report_says_what_states_tell_of_innovations(done: Path) -> None:
    rows = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    assert stages[:3] == ["world-model", "behaviour", "state-denoiser"]
    assert np.isfinite([row["behaviour_loss"] for row in rows if row["stage"] == "behaviour"]).all()
    found = read(done / "results.json")["quality"]["innovations"]
    assert set(found) == {"explained", "explained_square", "anchors_clipped"} and len(found["explained"]) == 2
    assert "innovations: the state explains up to" in (done / "report.html").read_text()


@pytest.mark.slow
def test_loaded_models_are_those_that_were_trained(done: Path) -> None:
    """The denoiser's own ensemble and behaviour come from its checkpoint, and its ensemble is the run's."""
    loaded = load_run(open_trained(str(done)))
    given = loaded.models.states.entries
    assert given.kind == "anchored" and np.isfinite(given.spread).all()
    jax.tree.map(np.testing.assert_array_equal, given.model.elites, loaded.models.world.elites)
    arm_synthesizer(loaded.config, loaded.models, "dydiff")
    moved = dataclasses.replace(loaded.models.world, elites=jax.tree.map(lambda x: x + 1, given.model.elites))
    other = loaded.models.replace(world=moved)
    with pytest.raises(InputError, match="world model = 'another ensemble'"):
        arm_synthesizer(loaded.config, other, "dydiff")


@pytest.mark.slow
def test_models_from_an_anchored_run(done: Path, make_config: Any, tmp_path: Path) -> None:
    again = run.run_all(make_config(tmp_path / "again", **SMALL, models_from=[str(done)]))
    assert {row["stage"] for row in map(json.loads, (again / "metrics.jsonl").read_text().splitlines())} == {"agent-dydiff"}
    assert read(again / "results.json")["quality"]["innovations"] == read(done / "results.json")["quality"]["innovations"]
    synthesis = {**SMALL["synthesis"], "dydiff": {"conditioning": "published"}}
    with pytest.raises(InputError, match=r"conditioning = 'published': expected 'anchored', as in models_from"):
        run.run_all(make_config(tmp_path / "other", **(SMALL | {"synthesis": synthesis}), models_from=[str(done)]))


def test_what_an_anchored_denoiser_is_decided_by() -> None:
    published, innovations, anchored = (
        load_config(None, {"arms": ["dydiff"], "synthesis": {"dydiff": {"conditioning": kind}}})
        for kind in ("published", "innovations", "anchored")
    )
    assert not {"world_model", "synthesis.dydiff.behaviour"} & set(decided_by(published, "state-denoiser"))
    assert "world_model" not in decided_by(innovations, "state-denoiser")
    assert {"world_model", "synthesis.dydiff.behaviour"} <= set(decided_by(anchored, "state-denoiser"))


def test_a_run_of_the_behaviour_alone_holds_no_state_denoiser_back(make_config: Any, tmp_path: Path) -> None:
    """As studies have them: its arm needs a state denoiser, too, which it never begins."""
    with create_run(make_config(tmp_path / "behaviour", **SMALL), resume=False) as begun:
        config = make_config(tmp_path / "own", **SMALL, models_from=[str(begun.path)])
        with pytest.raises(InputError, match="stage 'state-denoiser' is not finished"):
            model_source(config, "state-denoiser")
        (begun.path / "stages").mkdir(exist_ok=True)
        (begun.path / "stages" / "behaviour.json").write_text("{}")
        assert model_source(config, "state-denoiser") is None
        source = model_source(config, "behaviour")
        assert source is not None and source.path == begun.path
        (begun.path / "checkpoints" / "state-denoiser").mkdir(parents=True)
        with pytest.raises(InputError, match="stage 'state-denoiser' is not finished"):
            model_source(config, "state-denoiser")
        (tmp_path / "own" / "stages").mkdir(parents=True)
        (tmp_path / "own" / "stages" / "state-denoiser.json").write_text("{}")
        assert model_source(config, "state-denoiser") is None  # it has trained its own by now


@pytest.mark.slow
def test_a_finished_state_denoiser_without_its_last_checkpoint_is_trained_to_its_end_again(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done, tmp_path / "run")
    config = dataclasses.replace(open_run(tmp_path / "run").config, out=str(tmp_path / "run"))
    with create_run(config, resume=True) as again:
        prepared = prepare(again.config)
        first = train_models(again, prepared).states
        last = max(again.checkpoints("state-denoiser").saved())
        (again.path / "checkpoints" / "state-denoiser" / str(last) / "manifest.json").write_text("{")
        second = train_models(again, prepared).states
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(first), jax.tree.leaves(second))


@pytest.mark.slow
def test_a_studys_store_trains_an_anchored_denoiser(make_config: Any, tmp_path: Path) -> None:
    config = make_config(tmp_path / "cell", **SMALL)
    store = Store(tmp_path / "models")
    runs = store.models(config)
    _, models = store.opened(dataclasses.replace(config, models_from=runs))
    assert models.states is not None and models.states.entries.kind == "anchored"
    assert store.models(config) == runs


@pytest.mark.parametrize(("changes", "message"), [
    ({"synthesis": {"dydiff": {"conditions": "noised"}}}, "synthesis.dydiff.conditions = 'noised': expected 'clean' or"),
    ({"data": {"normalisation": "limits"}}, "data.normalisation = 'limits': expected 'standard' where synthesis.dydiff"),
    ({"synthesis": {"dydiff": {"behaviour": {"hidden": [0]}}}}, "synthesis.dydiff.behaviour.hidden = 0: expected layer"),
])  # fmt: skip
def test_what_does_not_go_with_innovations(changes: dict[str, Any], message: str) -> None:
    own = {**changes.get("synthesis", {}).get("dydiff", {}), "conditioning": "innovations"}
    with pytest.raises(InputError, match=message):
        load_config(None, {"arms": ["dydiff"], **changes, "synthesis": {"dydiff": own}})


@pytest.mark.slow
def test_comparison_of_an_anchored_run(done: Path) -> None:
    """An ensemble that two runs share is rolled out once, and DyDiff is called what it is."""
    result = compare_runs([str(done), str(done)], trajectories=6)
    named = lambda how, counts: [f"DyDiff anchored{how}, {i} iteration{'s' * (i != 1)}" for i in counts]
    names = [*named("", (0, 1, 2, 4, 8)), *named(", mean", (1, 2, 4, 8))]
    assert list(result["methods"])[:11] == ["world model, mean", "world model, sampled", *names]
    assert [name.partition(" (")[0] for name in list(result["methods"])[11:]] == names[1:]
