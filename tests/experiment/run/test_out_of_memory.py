"""A device without memory: half the batch, once; then an error that names what to lower."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxpgd.diffusion.solvers import SamplerConfig
from jaxpgd.errors import DeviceMemoryError
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.run.directory import ClaimedRun, create_run
from jaxpgd.experiment.run.driver import drive
from jaxpgd.experiment.run.out_of_memory import is_out_of_memory, with_half_the_batch
from jaxpgd.experiment.run.resolved import effective, with_batch_size
from jaxpgd.experiment.run.view import RunView, open_run
from jaxpgd.training.program import Program


def new_run(tmp_path: Path, batch: int = 64) -> ClaimedRun:
    return create_run(Config(out=str(tmp_path / "run"), sampler=SamplerConfig(batch_size=batch)), resume=False)


def short_of(most: int, tried: list[int]) -> Any:
    """A stage whose device has memory for `most` trajectories at once."""

    def work(config: Config) -> int:
        tried.append(config.sampler.batch_size)
        if tried[-1] > most:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.")
        return tried[-1]

    return lambda run: with_half_the_batch(run, run.effective(), "stage", work)


def test_the_batch_is_halved_once_and_remembered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, tried = new_run(tmp_path), list[int]()
    assert short_of(32, tried)(run) == 32 and tried == [64, 32]
    assert "no memory for 64 trajectories at once (stage); going on with sampler.batch_size = 32" in capsys.readouterr().err
    why = "no memory for 64 trajectories at once (stage)"
    assert run.read_json("resolved.json") == {"sampler.batch_size": {"value": 32, "why": why}}
    assert run.config.sampler.batch_size == 64 and open_run(run.path).effective().sampler.batch_size == 32
    assert effective(with_batch_size(run.config, 16), run.resolved).sampler.batch_size == 16
    assert short_of(32, tried)(run) == 32 and tried == [64, 32, 32]


def test_twice_is_an_error_that_names_settings(tmp_path: Path) -> None:
    tried = list[int]()
    with pytest.raises(DeviceMemoryError, match=r"sampler.batch_size = 32, seeds = 4, .*denoiser.batch_size"):
        short_of(8, tried)(new_run(tmp_path))
    assert tried == [64, 32]
    with pytest.raises(DeviceMemoryError, match=r"sampler\.batch_size = 1"):
        short_of(0, tried)(new_run(tmp_path / "one", batch=1))


def test_other_errors_pass(tmp_path: Path) -> None:
    def work(config: Config) -> None:
        raise ValueError("something else")

    run = new_run(tmp_path)
    with pytest.raises(ValueError, match="something else"):
        with_half_the_batch(run, run.config, "stage", work)
    assert is_out_of_memory(MemoryError()) and not is_out_of_memory(ValueError("x"))


def test_a_stage_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    run, chunks = new_run(tmp_path), list[int]()
    program = Program(
        init=lambda key, data: jnp.zeros(()), chunk=lambda x, data, index: (x + 1, {"loss": x}), chunks=4, steps_per_chunk=1
    )

    def work(config: Config) -> Any:
        def after(done: int, state: Any) -> dict[str, Any]:
            chunks.append(done)
            if len(chunks) == 3:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
            return {}

        return drive(run, "stage", jax.random.key(0), program, None, after_chunk=after)

    assert float(with_half_the_batch(run, run.config, "stage", work)) == 4.0
    assert chunks == [1, 2, 3, 1, 2, 3, 4]  # nothing was saved between the start and the failure
    assert [row["chunk"] for row in run.log.read()] == [1, 2, 3, 4]


def test_a_command_on_a_finished_run_halves_for_itself_alone(tmp_path: Path) -> None:
    tried = list[int]()
    view = open_run(new_run(tmp_path).path)
    assert type(view) is RunView and short_of(32, tried)(view) == 32 and tried == [64, 32]
    assert not (view.path / "resolved.json").exists() and view.resolved == {}
