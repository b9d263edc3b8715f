"""Runs whose trajectories are corrected by a world model: `synthesis.consistency`."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxpgd.errors import InputError
from jaxpgd.experiment.config_files import apply_values, load_config
from jaxpgd.experiment.needs import needs
from jaxpgd.experiment.report.run_tables import verdicts
from jaxpgd.experiment.run.directory import create_run
from jaxpgd.experiment.run.view import open_run
from jaxpgd.experiment.stages.batch_size import largest_batch
from jaxpgd.experiment.stages.build import arm_synthesizer
from jaxpgd.experiment.stages.load import load_run
from jaxpgd.experiment.stages.prepare import Prepared, prepare, prepare_world_model_data
from jaxpgd.experiment.stages.score_synthesizers import score_synthesizers
from jaxpgd.experiment.stages.train_models import train_models
from jaxpgd.experiment.used_settings import unused
from jaxpgd.guidance.consistency import Consistency
from jaxpgd.synthesis import memory
from jaxpgd.synthesis.diffusion import synthesize

SMALL: dict[str, Any] = {
    "arms": ["unguided"],
    "seeds": 1,
    "world_model": {
        "members": 2, "elites": 2, "hidden": [16], "reward_hidden": [8], "epochs": 2, "steps_per_epoch": 40, "batch_size": 16,
    },
    "synthesis": {"trajectories": 8, "interval": 4, "consistency": {"kind": "dynamics", "sigma_max": 100.0}},
}  # fmt: skip


@pytest.fixture(scope="module")
def corrected(tmp_path_factory: pytest.TempPathFactory, make_config: Any) -> Path:
    with create_run(make_config(tmp_path_factory.mktemp("consistency") / "run", **SMALL), resume=False) as run:
        train_models(run, prepare(run.config))
    return Path(run.path)


def test_a_run_trains_the_world_model_that_corrects(corrected: Path) -> None:
    stages = {p.name for p in (corrected / "checkpoints").iterdir()}
    assert stages == {"denoiser", "world-model"}
    config = load_config(str(corrected / "config.toml"))
    assert needs(config, "world-model") and not needs(dataclasses.replace(config, arms=("real",)), "world-model")


def test_the_correction_changes_the_samples_of_the_same_denoiser(corrected: Path) -> None:
    loaded = load_run(open_run(str(corrected)))
    plain = apply_values(loaded.config, {"synthesis": {"consistency": {"kind": "none"}}}, "test")
    of = lambda config: synthesize(jax.random.key(0), arm_synthesizer(config, loaded.models, "unguided"), count=8).obs
    before, after = of(plain), of(loaded.config)
    assert before.shape == after.shape and np.isfinite(after).all() and not np.allclose(before, after)


@pytest.mark.slow
def test_the_report_can_say_what_the_correction_changes(corrected: Path, tmp_path: Path) -> None:
    shutil.copytree(corrected, tmp_path / "run")
    loaded = load_run(open_run(tmp_path / "run"))
    with create_run(loaded.config, resume=True) as run:
        found = score_synthesizers(run, loaded.prepared, loaded.models, {})
    unguided, without = found["rows"][0], found["correction"]["without"]
    assert found["correction"]["levels"] == found["correction"]["corrected"] > 1  # sigma_max is above all levels
    assert unguided.keys() == without.keys() | {"coefficient"} and unguided["dynamics_error"] != without["dynamics_error"]
    assert any(line.startswith("dynamics-consistent denoising at") for line in verdicts(found))


def test_the_memory_of_a_corrected_trajectory_is_asked_for_once(corrected: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def bytes_of(denoise: Any, shape: Any, **how: Any) -> None:
        asked.append(how)

    class Device:
        platform = "gpu"

        def memory_stats(self) -> dict[str, int]:
            return {}

    loaded = load_run(open_run(str(corrected)))
    monkeypatch.setattr(memory.jax, "local_devices", lambda: [Device()])
    monkeypatch.setattr(memory, "bytes_per_trajectory", bytes_of)
    largest_batch(loaded.config, loaded.models)
    assert len(asked) == 1 and isinstance(asked[0]["correct"], Consistency)


def test_the_world_model_is_held_to_the_episodes_of_the_denoisers_validation(make_config: Any, tmp_path: Path) -> None:
    def parts(world_model: dict[str, Any], **data: Any) -> tuple[set[int], set[int], Prepared]:
        """The episodes that the world model is trained on and measured on; all steps of point2d tell where they lead."""
        config = make_config(tmp_path / "run", **SMALL | {"data": data, "world_model": SMALL["world_model"] | world_model})
        prepared = prepare(config)
        found, episode = prepare_world_model_data(config, prepared), np.repeat(np.arange(data["episodes"]), 16)
        assert len(found.train) + len(found.held_out) == len(episode)
        return set(episode[found.train]), set(episode[found.held_out]), prepared

    train, held_out, prepared = parts({}, episodes=40, validation_fraction=0.25)
    assert held_out == set(np.asarray(prepared.windows.validation) // 16) and len(held_out) == 10
    assert train == set(np.asarray(prepared.windows.train) // 16) and len(train) == 30
    train, held_out, _ = parts({"holdout": 0.2}, episodes=40, validation_fraction=0.0)
    assert len(held_out) == 8 and not train & held_out
    for mixed in (parts({"holdout_by": "transitions"}, episodes=40), parts({}, episodes=1)):
        assert mixed[0] & mixed[1]


def test_what_cannot_be_corrected_is_refused() -> None:
    on = {"consistency": {"kind": "dynamics"}}
    with pytest.raises(InputError, match=r"synthesis.consistency.floor = 0.1: expected its default .* is not 'none'"):
        load_config(None, {"synthesis": {"consistency": {"floor": 0.1}}})
    with pytest.raises(InputError, match=r"data.normalisation = 'limits': expected 'standard'"):
        load_config(None, {"data": {"normalisation": "limits"}, "guidance": {"kind": "published"}, "synthesis": on})
    with pytest.raises(InputError, match=r"synthesis.consistency.sigma_max = 0.001: expected at least .* 0.002"):
        load_config(None, {"synthesis": {"consistency": {"kind": "dynamics", "sigma_max": 0.001}}})
    with pytest.raises(InputError, match=r"synthesis.length = 1: expected at least 2"):
        load_config(None, {"synthesis": {"length": 1, **on}})


def test_settings_of_the_world_model_that_corrects_count() -> None:
    """Its terminals as well: where the environment has no known rule, nothing is trained before one is named."""
    given = {"lr": 1e-3, "termination": "learned"}
    of = lambda kind: load_config(None, {"synthesis": {"consistency": {"kind": kind}}, "world_model": given}, unused="kept")
    names = {f"world_model.{name}" for name in given}
    assert names.isdisjoint(unused(of("dynamics"))) and names <= unused(of("none")).keys()
