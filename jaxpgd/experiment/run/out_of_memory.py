"""When a device runs out of memory: sample half as many trajectories at once, and say so."""

import functools
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import jax

from jaxpgd.errors import DeviceMemoryError
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.run.directory import ClaimedRun
from jaxpgd.experiment.run.resolved import BATCH_SIZE, with_batch_size
from jaxpgd.experiment.run.view import RunView

Rest = ParamSpec("Rest")
Result = TypeVar("Result")
_SAID = ("RESOURCE_EXHAUSTED", "out of memory", "Out of memory", "OUT_OF_MEMORY")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is a device's, or the host's, lack of memory."""
    return isinstance(error, MemoryError) or any(word in str(error) for word in _SAID)


def with_half_the_batch(run: RunView, config: Config, what: str, work: Callable[[Config], Result]) -> Result:
    """`work(config)`, and once more with half of `sampler.batch_size` if the device runs out of memory.

    A run that is written to keeps the smaller batch (`resolved.json`). Work that saves its state goes on from there. Raises
    DeviceMemoryError, which names the settings to lower, where half is too much as well.
    """
    size = config.sampler.batch_size
    try:
        return work(config)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if size <= 1 or jax.process_count() > 1:  # the other hosts wait within the step that failed here
            raise _shortage(run.path, config, what) from error
    gc.collect()  # what the failed attempt held
    half = with_batch_size(config, size // 2)
    print(f"warning: {run.path}: no memory for {size} trajectories at once ({what}); going on with sampler.batch_size = "
          f"{size // 2}", file=sys.stderr, flush=True)  # fmt: skip
    if isinstance(run, ClaimedRun):
        run.decide(BATCH_SIZE, size // 2, f"no memory for {size} trajectories at once ({what})")
    return _explained(run.path, half, what, lambda: work(half))


def explained(stage: Callable[Concatenate[ClaimedRun, Rest], Result]) -> Callable[Concatenate[ClaimedRun, Rest], Result]:
    """`stage(run, ...)`, which samples nothing: raises DeviceMemoryError where there is no memory for it."""

    @functools.wraps(stage)
    def once(run: ClaimedRun, *args: Rest.args, **kwargs: Rest.kwargs) -> Result:
        return _explained(run.path, run.config, stage.__name__.replace("_", " "), lambda: stage(run, *args, **kwargs))

    return once


def _explained(path: Path, config: Config, what: str, work: Callable[[], Result]) -> Result:
    try:
        return work()
    except Exception as error:
        if is_out_of_memory(error):
            raise _shortage(path, config, what) from error
        raise


def _shortage(path: Path, config: Config, what: str) -> DeviceMemoryError:
    return DeviceMemoryError(
        f"{path}: not enough memory on the device ({what}), with sampler.batch_size = {config.sampler.batch_size}, seeds = "
        f"{config.seeds}, agent.batch_size = {config.agent.batch_size}, denoiser.batch_size = {config.denoiser.batch_size}. "
        "What is saved stays. Lower sampler.batch_size with --resume, or one of the others in a new run."
    )
