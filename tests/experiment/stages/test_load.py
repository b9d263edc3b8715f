"""Loading what a run has trained: from its checkpoints, without the driver, and without writing."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxpgd.errors import InputError
from jaxpgd.experiment.run import driver
from jaxpgd.experiment.run.checkpoints import read_arrays
from jaxpgd.experiment.run.view import open_run
from jaxpgd.experiment.stages import train_agents, train_models
from jaxpgd.experiment.stages.load import chosen_policy, load_denoiser, load_policies, load_policy, load_run, open_trained


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any, **more: Any) -> None:
        pytest.fail("the driver was called")

    for module in (driver, train_models, train_agents):
        monkeypatch.setattr(module, "drive", fail)


def test_models_and_policies_are_loaded_without_the_driver(finished: Path, no_driver: None) -> None:
    state = lambda: {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    before = state()
    loaded = load_run(open_trained(str(finished), denoiser=True))
    store = open_run(finished).checkpoints("agent-guided")
    saved = read_arrays(store.directory / str(store.saved()[-1]))
    policies = load_policies(loaded.run, loaded.prepared, loaded.models, "guided")
    for leaf in jax.tree.leaves(policies.params):
        assert any(leaf.shape == x.shape and np.array_equal(leaf, x) for x in saved.values())
    one = load_policy(loaded.run, loaded.prepared, loaded.models, "guided:1")
    jax.tree.map(np.testing.assert_array_equal, one.params, jax.tree.map(lambda x: x[1], policies.params))
    assert chosen_policy(loaded, "guided:1", "")[1] == f"guided:1 of {finished}"
    assert loaded.config.sampler.batch_size == 8 and state() == before


@pytest.mark.parametrize("best", [False, True])
def test_a_denoiser_is_loaded_by_its_path(finished: Path, no_driver: None, best: bool) -> None:
    denoiser = load_denoiser(str(finished), best=best)
    assert denoiser.length == 16 and denoiser.codec.token_dim == 2 + 2 + 2


def test_a_run_without_a_denoiser_is_refused(tmp_path: Path, make_config: Any) -> None:
    from jaxpgd.experiment.run.directory import create_run

    run = create_run(make_config(tmp_path / "run", arms=["real"]), resume=False)
    with pytest.raises(InputError, match="expected a run with a trajectory denoiser"):
        load_denoiser(str(run.path))
