"""One tiny run of all stages that the pipeline's tests look at, and a compilation cache that they share."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from jaxpgd.config import load_config
from jaxpgd.pipeline import truth
from jaxpgd.pipeline.run import run_all
from jaxpgd.settings import Config

TINY = {
    "seeds": 2,
    "checkpoint_seconds": 0.0,
    "data": {"episodes": 40, "validation_fraction": 0.25},
    "denoiser": {
        "features": 8, "groups": 4, "blocks": 1, "block": "plain", "steps": 6, "validate_every": 2, "batch_size": 8,
        "validation_batches": 1,
    },
    "sampler": {"kind": "euler", "steps": 3, "batch_size": 8},
    "guidance": {"coefficient": 0.5},
    "synthesis": {"trajectories": 8, "interval": 4},
    "agent": {"updates": 8, "updates_per_chunk": 2, "batch_size": 16, "td3_bc": {"hidden": [8]}},
    "evaluation": {"episodes": 2, "every": 4, "intermediate_episodes": 1, "trajectories": 32, "coefficients": [1.0]},
}  # fmt: skip


def tiny(out: Path, **changes: object) -> Config:
    return load_config(None, TINY | {"out": str(out)} | changes)


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs of equal shape compile once; interrupted runs are then cheap to continue."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("cache")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="session")
def make_config() -> object:
    return tiny


@pytest.fixture(scope="session")
def few_rollouts() -> Iterator[None]:
    """The importance-weighted truth from fewer rollouts than a report deserves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(truth, "ROLLOUTS", 500)
        patch.setattr(truth, "LEAST_EFFECTIVE_SIZE", 1.0, raising=False)
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, compilation_cache: None, few_rollouts: None) -> Path:
    """Directory of a run of all three arms that was never interrupted."""
    return run_all(tiny(tmp_path_factory.mktemp("runs") / "whole"))
