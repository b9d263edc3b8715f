"""One tiny run of all stages that the pipeline's tests look at."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxpgd.experiment.commands.run import run_all
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.config_files import load_config
from jaxpgd.experiment.stages import importance_truth

TINY = {
    "seeds": 2,
    "checkpoint_seconds": 0.0,
    "data": {"episodes": 40, "validation_fraction": 0.25},
    "denoiser": {
        "features": 8, "groups": 4, "blocks": 1, "block": "plain", "steps": 6, "validate_every": 2, "batch_size": 8,
        "validation_batches": 1,
    },
    "sampler": {"kind": "euler", "steps": 3, "batch_size": 8},
    "guidance": {"kind": "reconstruction", "coefficient": 0.5},
    "synthesis": {"trajectories": 8, "interval": 4},
    "agent": {"updates": 8, "updates_per_chunk": 2, "batch_size": 16, "td3_bc": {"hidden": [8]}},
    "evaluation": {"episodes": 2, "every": 4, "intermediate_episodes": 1, "trajectories": 32, "coefficients": [1.0]},
}  # fmt: skip


def tiny(out: Path, **changes: object) -> Config:
    return load_config(None, TINY | {"out": str(out)} | changes, unused="kept")


@pytest.fixture(scope="session")
def make_config() -> object:
    return tiny


@pytest.fixture(scope="session")
def few_rollouts() -> Iterator[None]:
    """The importance-weighted truth from fewer rollouts than a report deserves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importance_truth, "ROLLOUTS", 500)
        patch.setattr(importance_truth, "LEAST_EFFECTIVE_SIZE", 1.0, raising=False)
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, few_rollouts: None) -> Path:
    """Directory of a run of all three arms that was never interrupted."""
    return run_all(tiny(tmp_path_factory.mktemp("runs") / "whole"))
