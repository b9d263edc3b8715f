"""What to do when a device has no memory left: sample fewer trajectories at once, and say so."""

import dataclasses
import functools
import gc
import sys
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import jax

from jaxpgd.errors import DeviceMemoryError
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.run.directory import RunDirectory

Rest = ParamSpec("Rest")
Result = TypeVar("Result")
CHOICE = "sampler.batch_size"  # in memory.json of a run
_SAID = ("RESOURCE_EXHAUSTED", "out of memory", "Out of memory", "OUT_OF_MEMORY")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is a device's, or the host's, lack of memory."""
    return isinstance(error, MemoryError) or any(word in str(error) for word in _SAID)


def with_batch(config: Config, size: int) -> Config:
    """The config with another number of trajectories sampled at once."""
    return dataclasses.replace(config, sampler=dataclasses.replace(config.sampler, batch_size=size))


def fitting(stage: Callable[Concatenate[RunDirectory, Rest], Result]) -> Callable[Concatenate[RunDirectory, Rest], Result]:
    """`stage(run, ...)`, and once more with half of `sampler.batch_size` where there was no memory for it.

    The choice is kept with the run (`memory.json`). A stage that saves its state goes on from there. Raises
    DeviceMemoryError, which names the settings to lower, where half is too much as well.
    """

    @functools.wraps(stage)
    def twice(run: RunDirectory, *args: Rest.args, **kwargs: Rest.kwargs) -> Result:
        size, what = run.config.sampler.batch_size, stage.__name__.strip("_").replace("_", " ")
        try:
            return stage(run, *args, **kwargs)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if size <= 1 or jax.process_count() > 1:  # the other hosts wait within the step that failed here
                raise _shortage(run, what) from error
        gc.collect()  # what the failed attempt held
        run.config = with_batch(run.config, size // 2)
        print(f"warning: {run.path}: no memory for {size} trajectories at once ({what}); going on with sampler.batch_size = "
              f"{size // 2}", file=sys.stderr, flush=True)  # fmt: skip
        if run.claimed:
            run.write_json("memory.json", {CHOICE: size // 2})
        try:
            return stage(run, *args, **kwargs)
        except Exception as error:
            if is_out_of_memory(error):
                raise _shortage(run, what) from error
            raise

    return twice


def explained(stage: Callable[Concatenate[RunDirectory, Rest], Result]) -> Callable[Concatenate[RunDirectory, Rest], Result]:
    """`stage(run, ...)`, which samples nothing: raises DeviceMemoryError where there is no memory for it."""

    @functools.wraps(stage)
    def once(run: RunDirectory, *args: Rest.args, **kwargs: Rest.kwargs) -> Result:
        try:
            return stage(run, *args, **kwargs)
        except Exception as error:
            if is_out_of_memory(error):
                raise _shortage(run, stage.__name__.replace("_", " ")) from error
            raise

    return once


def remembered(run: RunDirectory, size: int) -> int:
    """The batch size to begin with: a smaller one that this run was left with before."""
    kept = run.read_json("memory.json").get(CHOICE)
    return min(size, kept) if isinstance(kept, int) and kept > 0 else size


def _shortage(run: RunDirectory, what: str) -> DeviceMemoryError:
    c: Any = run.config
    return DeviceMemoryError(
        f"{run.path}: not enough memory on the device ({what}), with sampler.batch_size = {c.sampler.batch_size}, seeds = "
        f"{c.seeds}, agent.batch_size = {c.agent.batch_size}, denoiser.batch_size = {c.denoiser.batch_size}. What is saved "
        "stays. Lower sampler.batch_size with --resume, or one of the others in a new run."
    )
