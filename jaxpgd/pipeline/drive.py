"""Running a training program from Python: compiled chunks with progress, logs and checkpoints in between."""

import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpgd.errors import DivergenceError, InputError
from jaxpgd.parallel import SEEDS, Placement, any_of_all, check_alike, is_writer, map_seeds, wait_for_all
from jaxpgd.pipeline.interruption import Interruption
from jaxpgd.pipeline.run_directory import RunDirectory
from jaxpgd.training.checkpoints import CheckpointStore
from jaxpgd.training.memory import peak_memory
from jaxpgd.training.program import Program
from jaxpgd.training.progress import StageProgress
from jaxpgd.types import Metrics, PyTree

State = TypeVar("State")


def over_seeds(make: Callable[[PyTree], Program[State]], settings: PyTree, count: int, seeds: int) -> Program[State]:
    """One program for `seeds` independent states of each of `count` settings: keys are split, data shared.

    `make(setting)` is the program of one of `settings` [count]; only its init may depend on it. The state's leading axis is
    [count * seeds], the seeds of a setting together; seed i has the same key in every setting.
    """
    program = make(jax.tree.map(lambda x: x[0], settings))

    def init(key: Array, data: PyTree) -> Any:
        keys = jax.random.split(key, seeds)[jnp.arange(count * seeds) % seeds]
        each = jax.tree.map(lambda x: jnp.repeat(x, seeds, axis=0), settings)
        one = lambda key, setting: make(setting).init(key, data)
        return jax.vmap(one, spmd_axis_name=SEEDS)(keys, each)

    return Program(
        init=init,
        chunk=lambda states, data, index: map_seeds(lambda state: program.chunk(state, data, index), states),
        chunks=program.chunks,
        steps_per_chunk=program.steps_per_chunk,
        seeds=count * seeds,
    )


def drive(
    run: RunDirectory,
    stage: str,
    key: Array,
    program: Program[State],
    data: PyTree,
    *,
    unit: str = "steps",
    note: str = "loss",
    before_chunk: Callable[[int, Callable[[], State], PyTree], tuple[PyTree, dict[str, Any]]] | None = None,
    after_chunk: Callable[[int, Callable[[], State]], dict[str, Any]] | None = None,
) -> State:
    """Run or resume `program` as `stage` of a run; returns its final state. A finished stage is only read.

    After each chunk metrics go to `metrics.jsonl`; `after_chunk(chunks done, state)` may add more (evaluations), and so may
    `before_chunk(chunks done, state, data)`, whose data, of the same shapes, the chunk gets instead; both get a function that
    fetches the state from all devices, of use until the hook returns. The state is
    checkpointed at least `checkpoint_seconds` apart, at the end, and where SIGINT or SIGTERM asks to stop.
    Raises DivergenceError where a loss or a gradient is not finite; the last checkpoint is of before.
    """
    store = run.checkpoints(stage)
    placement = Placement(program.seeds)
    init = placement.init(program.init)
    found = store.restore(jax.eval_shape(program.init, key, data))
    finished = found is not None and found[1] == program.chunks and run.is_done(stage)
    check_alike(2 * (0 if found is None else found[1] + 1) + finished, f"{stage}: what was saved, by process")
    if found is not None and finished:
        return found[0]
    if not run.claimed:
        raise InputError(
            f"run = {str(run.path)!r}: the last checkpoint of its stage {stage!r} cannot be read. Continue that run with "
            f"`jaxpgd run {run.path / 'config.toml'} --resume` first."
        )
    began, resumed = time.monotonic(), found is not None
    chunk = placement.step(program.chunk)
    shared = placement.share(data)
    total = program.chunks * program.steps_per_chunk
    with Interruption() as stop:
        if found is None:
            with StageProgress(f"{stage}, start", 1, "state") as progress:
                found = jax.block_until_ready(init(key, shared)), 0
                progress.advance(1)
            _save(store, 0, placement.whole(found[0]))
            if any_of_all(bool(stop.requested)):
                stop.leave()
        state, done = placement.place(found[0]), found[1]
        run.log.rewind(stage, done)
        saved = time.monotonic()
        with StageProgress(stage, total, unit, done * program.steps_per_chunk) as progress:
            while done < program.chunks:
                given, chosen = (
                    (data, {})
                    if before_chunk is None
                    else before_chunk(done, functools.partial(placement.collect, state), data)
                )
                given = shared if given is data else placement.share(given)
                state, metrics = chunk(state, given, jnp.asarray(done))
                done += 1
                row: dict[str, Any] = {"step": done * program.steps_per_chunk, **jax.device_get(metrics), **chosen}
                check_finite(row, stage, run.path)
                if after_chunk is not None:
                    row |= after_chunk(done, functools.partial(placement.collect, state))
                run.log.write(stage, done, row)
                progress.advance(program.steps_per_chunk, _note(metrics, note))
                asked = any_of_all(bool(stop.requested))
                if done == program.chunks or asked or any_of_all(time.monotonic() - saved >= run.config.checkpoint_seconds):
                    _save(store, done, placement.whole(state))
                    saved = time.monotonic()
                if asked and done < program.chunks:
                    stop.leave()
        run.finish(
            stage, {"seconds": time.monotonic() - began, "resumed": resumed, "steps": total, "peak_memory_bytes": peak_memory()}
        )
        wait_for_all(f"{stage} finished")
    if any_of_all(bool(stop.requested)):
        stop.leave()
    return placement.collect(state)


def _save(store: CheckpointStore, chunks: int, state: Any) -> None:
    """Write a checkpoint, once for all hosts; none goes on before it is there."""
    if is_writer():
        store.save(chunks, state)
    wait_for_all(f"checkpoint {store.directory.name} {chunks}")


def check_finite(row: dict[str, Any], stage: str, path: Path) -> None:
    """Raise DivergenceError naming the first loss or gradient norm of a chunk that is not finite for any seed.

    Where other seeds go on, those that are lost are named in a warning.
    """
    for name, value in row.items():
        if not name.endswith(("loss", "gradient_norm")):
            continue
        finite = np.isfinite(np.atleast_1d(np.asarray(value, np.float64)))
        what = f"stage {stage!r} of {path}: {name} is not finite in the chunk that ends at step {row['step']}"
        if not finite.any():
            raise DivergenceError(
                f"{what}. The last checkpoint is of before: a smaller learning rate or gradient clipping needs a new run."
            )
        if not finite.all():
            print(f"warning: {what} (of {', '.join(map(str, np.flatnonzero(~finite)))})", file=sys.stderr, flush=True)


def _note(metrics: Metrics, name: str) -> str:
    return f"{name} {float(np.mean(metrics[name])):.4g}" if name in metrics else ""
