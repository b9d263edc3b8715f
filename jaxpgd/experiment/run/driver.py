"""Running a training program from Python: compiled chunks with progress, logs and checkpoints in between."""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpgd.errors import DivergenceError, InputError, StorageError, check
from jaxpgd.experiment.run.device_memory import peak_memory
from jaxpgd.experiment.run.directory import RunDirectory
from jaxpgd.experiment.run.interruption import Interruption
from jaxpgd.experiment.run.progress import StageProgress
from jaxpgd.parallel import SEEDS, Placement, any_process, barrier, check_same_across_hosts, is_writer, map_seeds
from jaxpgd.training.health import (
    LOST,
    SKIPPED,
    Culprit,
    checked,
    culprits,
    finite,
    finite_names,
    name_seeds,
    split_firsts,
    where,
)
from jaxpgd.training.program import Program
from jaxpgd.types import Metrics, PyTree

State = TypeVar("State")
BeforeChunk = Callable[[int, Callable[[], Any], PyTree], tuple[PyTree, dict[str, Any]]]


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
        updates_per_chunk=program.updates_per_chunk,
        quantities=program.quantities,
    )


class Stage(Generic[State]):
    """A training program as a stage of a run: what one chunk takes, whether all is well after it, what is kept of it."""

    def __init__(
        self,
        run: RunDirectory,
        name: str,
        program: Program[State],
        data: PyTree,
        before_chunk: BeforeChunk | None = None,
        score: Callable[[dict[str, Any]], float | None] | None = None,
    ) -> None:
        self.run, self.name, self.program, self.data = run, name, program, data
        self.health, self.score = run.config.health, score
        self.store = run.checkpoints(name)
        self.placement = Placement(program.seeds)
        self._before = before_chunk
        self._shared = self.placement.replicate(data)
        self._updates = program.updates_per_chunk or program.steps_per_chunk
        self._lost = np.zeros(max(program.seeds, 1), bool)
        self._outside = self._lost.copy()
        self._look = self.placement.read(self._finite)
        self._names: list[str] = []
        if self.health.debug_nans:
            check(self.placement.one, "health.debug_nans", True, "one device", "CUDA_VISIBLE_DEVICES=0 leaves one.")
        self._checked = jax.jit(checked(program.chunk)) if self.health.debug_nans else None
        self._chunk: Callable[..., Any] = self.placement.step(program.chunk)

    def begin(self, key: Array) -> State:
        """The first state, saved. Raises DivergenceError where a sample or parameter is not finite."""
        init = self.placement.init(self.program.init)
        with StageProgress(f"{self.name}, start", 1, "state") as progress:
            state: State = jax.block_until_ready(init(key, self._shared))
            progress.advance(1)
        self.judge(jax.device_get(self._look(state)), 0, {}, {})
        self.save(0, state)
        return state

    def _finite(self, state: State) -> Array:
        quantities = self.program.quantities(state)
        self._names = finite_names(quantities)  # known once this is compiled
        return finite(quantities, self.program.seeds)

    def advance(self, state: State, done: int) -> tuple[State, np.ndarray, dict[str, Any], dict[str, Any]]:
        """The next chunk after `done`: the state, which of it is finite, its metrics, which steps were the first that were not.

        The host waits for the device once: for all that it has to know of the chunk.
        """
        given, chosen = (
            (self.data, {})
            if self._before is None
            else self._before(done, functools.partial(self.placement.gather, state), self.data)
        )
        shared = self._shared if given is self.data else self.placement.replicate(given)
        self._debug(state, shared, done)
        state, metrics = self._chunk(state, shared, jnp.asarray(done))
        fine, metrics = jax.device_get((self._look(state), metrics))
        metrics, first = split_firsts(metrics)
        if SKIPPED in metrics:
            metrics[SKIPPED] = np.rint(np.asarray(metrics[SKIPPED]) * self._updates)
        return state, fine, {"step": (done + 1) * self.program.steps_per_chunk, **metrics, **chosen}, first

    def _debug(self, state: State, shared: PyTree, done: int) -> None:
        """Raise DivergenceError naming the operation of the next chunk that makes the first NaN.

        What it computes is thrown away: checked programs round in other places.
        """
        if self._checked is None:
            return
        error, _ = self._checked(state, shared, jnp.asarray(done))
        if error.get() is not None:
            end = (done + 1) * self.program.steps_per_chunk
            raise DivergenceError(f"stage {self.name!r} of {self.run.path}, the chunk that ends at step {end}: {where(error)}")

    def judge(self, fine: np.ndarray, done: int, row: dict[str, Any], first: dict[str, Any]) -> None:
        """Raise DivergenceError after a chunk that is not sound, naming its first bad quantity.

        Where others may go on (`health.lost_seeds`), seeds that are lost are named in a warning, once.
        """
        found = culprits(dict(zip(self._names, fine, strict=True)), row, first, self._updates, done * self._updates, self._lost)
        found += self._skipped_too_many(row, done)
        if found:
            new = np.any([each.seeds for each in found], axis=0)
            what = f"stage {self.name!r} of {self.run.path}: {found[0].what}"
            of = f" ({self._named(new)})" if self.program.seeds else ""
            self._lost |= new
            if self._lost.all() or self.health.lost_seeds == "stop":
                raise DivergenceError(what + of)
            print(f"warning: {what}{of}", file=sys.stderr, flush=True)
        if self._lost.any():
            row[LOST] = self._lost.copy()
        self._flag(row)

    def _skipped_too_many(self, row: dict[str, Any], done: int) -> list[Culprit]:
        most, skipped = self.health.skip_updates, np.atleast_1d(np.asarray(row.get(SKIPPED, 0.0)))
        over = ((skipped > most) | (skipped >= self._updates)) & ~self._lost
        if most == 0 or not over.any():
            return []
        end, count = done * self.program.steps_per_chunk, int(skipped[over].max())
        limit = "which are all that it has" if count >= self._updates else f"more than health.skip_updates = {most}"
        what = f"{count} updates were not finite in the chunk that ends at step {end}, {limit}"
        return [Culprit(what, over, (self._updates, 2, 0))]

    def _named(self, rows: np.ndarray) -> str:
        """Seeds in words, each with its setting or arm where there are several."""
        found = [int(i) for i in np.flatnonzero(rows)]
        return name_seeds(found, self.run.config.seeds, self.program.seeds, self.program.groups)

    @property
    def skipped(self) -> list[int]:
        """Updates that each seed has left out, all processes of this stage together."""
        rows = [row[SKIPPED] for row in self.run.log.read() if row.get("stage") == self.name and SKIPPED in row]
        return [int(n) for n in np.atleast_1d(np.sum(rows, axis=0))] if rows else []

    @property
    def lost(self) -> list[int]:
        """The seeds that were left behind."""
        return [int(i) for i in np.flatnonzero(self._lost)]

    def recall(self) -> None:
        """What an earlier process of this stage has said of critics and lost seeds, from its log."""
        for row in self.run.log.read():
            if row.get("stage") == self.name and np.shape(row.get(LOST, 0)) == self._lost.shape:
                self._lost |= np.asarray(row[LOST], bool)
            excess = np.atleast_1d(np.asarray(row.get("value_excess", 0.0), np.float64))
            if row.get("stage") == self.name and excess.shape == self._outside.shape:
                self._outside |= excess > self.health.value_excess

    def _flag(self, row: dict[str, Any]) -> None:
        """Say once, for each seed, that its values have left what the rewards allow."""
        excess = np.atleast_1d(np.asarray(row.get("value_excess", 0.0)))
        new = (excess > self.health.value_excess) & ~self._outside
        if new.any():
            self._outside |= new
            place = f"stage {self.name!r} of {self.run.path}: at step {row['step']}"
            print(
                f"warning: {place} the critic diverges ({self._named(new)}): values are {float(excess[new].max()):.3g} times "
                "the width of what the rewards allow outside of it",
                file=sys.stderr,
                flush=True,
            )

    @property
    def diverging(self) -> list[int]:
        """The seeds whose values have left what the rewards allow."""
        return [int(i) for i in np.flatnonzero(self._outside)]

    def rescue(self, error: DivergenceError, done: int) -> DivergenceError:
        """Save the state before the chunk after `done`, which failed, and say so in the error.

        The failed state has taken its memory: the one before is computed again from the last checkpoint.
        """
        step, path = done * self.program.steps_per_chunk, self.run.path
        facts = {"stage": self.name, "message": str(error), "last_good_step": step}
        try:
            self.run.write_json(f"failures/{self.name}.json", facts)  # first: the disk may be full
        except StorageError as full:
            raise StorageError(f"{error}. And {full}") from None
        found = self.store.restore(jax.eval_shape(self.program.init, jax.random.key(0), self.data))
        assert found is not None
        state, at = self.placement.shard(found[0]), found[1]
        while at < done:
            state, *_ = self.advance(state, at)
            at += 1
        if found[1] < done:
            self.save(done, state)
        saved = f"{error}. The state before, of step {step}, is saved."
        if self.health.debug_nans:
            return DivergenceError(f"{saved} Where no operation is named, a number became infinite before any was NaN.")
        if self.program.groups:  # a study's run, which only its study continues
            return DivergenceError(f"{saved} To go on: the study's command with --health.skip-updates N.")
        keep = ", or --health.lost-seeds keep where others are well" if self.program.seeds > 1 else ""
        return DivergenceError(
            f"{saved} To see where it arises: `jaxpgd run {path / 'config.toml'} --resume --debug-nans`. To go on: --resume "
            f"with --health.skip-updates N{keep}. Other settings need a new run."
        )

    def save(self, done: int, state: State, row: dict[str, Any] | None = None) -> None:
        """Write a checkpoint, once for all hosts; none goes on before it is there."""
        whole = self.placement.fully_addressable(state)
        if is_writer():
            self.run.log.sync()  # its lines are on disk before a checkpoint that counts on them
            self.store.save(done, whole, None if self.score is None or row is None else self.score(row))
        barrier(f"checkpoint {self.name} {done}")


def drive(
    run: RunDirectory,
    stage: str,
    key: Array,
    program: Program[State],
    data: PyTree,
    *,
    unit: str = "steps",
    note: str = "loss",
    before_chunk: BeforeChunk | None = None,
    after_chunk: Callable[[int, Callable[[], State]], dict[str, Any]] | None = None,
    score: Callable[[dict[str, Any]], float | None] | None = None,
) -> State:
    """Run or resume `program` as `stage` of a run; returns its final state. A finished stage is only read.

    After each chunk metrics go to `metrics.jsonl`; `after_chunk(chunks done, state)` may add more (evaluations), and so may
    `before_chunk(chunks done, state, data)`, whose data, of the same shapes, the chunk gets instead; both get a function that
    fetches the state from all devices, of use until the hook returns. The state is
    checkpointed at least `checkpoint_seconds` apart, at the end, and where SIGINT or SIGTERM asks to stop; of those saved the
    one is kept whose metrics have the highest `score`.
    Raises DivergenceError where a sample, loss, gradient or parameter is not finite (see `Stage.judge`), with the state before
    that chunk saved.
    """
    work = Stage(run, stage, program, data, before_chunk, score)
    if run.claimed and is_writer():
        work.store.recover()
    found = work.store.restore(jax.eval_shape(program.init, key, data))
    finished = found is not None and found[1] == program.chunks and run.is_done(stage)
    check_same_across_hosts(2 * (0 if found is None else found[1] + 1) + finished, f"{stage}: what was saved, by process")
    if found is not None and finished:
        return found[0]
    if not run.claimed:
        raise InputError(
            f"run = {str(run.path)!r}: the last checkpoint of its stage {stage!r} cannot be read. Continue that run with "
            f"`jaxpgd run {run.path / 'config.toml'} --resume` first."
        )
    run.log.start()
    began, resumed = time.monotonic(), found is not None
    total = program.chunks * program.steps_per_chunk
    with Interruption() as stop:
        state, done = (work.begin(key), 0) if found is None else (work.placement.shard(found[0]), found[1])
        if found is None and any_process(bool(stop.requested)):
            stop.leave()
        if is_writer():
            work.store.set_aside(done)
        run.log.rewind(stage, done)
        work.recall()
        saved = time.monotonic()
        with StageProgress(stage, total, unit, done * program.steps_per_chunk) as progress:
            while done < program.chunks:
                try:
                    state, fine, row, first = work.advance(state, done)
                    work.judge(fine, done + 1, row, first)
                except DivergenceError as error:
                    raise work.rescue(error, done) from None
                done += 1
                if after_chunk is not None:
                    row |= after_chunk(done, functools.partial(work.placement.gather, state))
                run.log.write(stage, done, row)
                progress.advance(program.steps_per_chunk, _note(row, note))
                asked = any_process(bool(stop.requested))
                if done == program.chunks or asked or any_process(time.monotonic() - saved >= run.config.checkpoint_seconds):
                    work.save(done, state, row)
                    saved = time.monotonic()
                if asked and done < program.chunks:
                    stop.leave()
        facts: dict[str, Any] = {
            "health": dataclasses.asdict(run.config.health),
            "seconds": time.monotonic() - began,
            "resumed": resumed,
            "steps": total,
        }
        facts |= {"peak_memory_bytes": peak_memory(), "diverging_critics": work.diverging, "lost_seeds": work.lost}
        run.overcome(stage, facts | {"skipped_updates": work.skipped})
        barrier(f"{stage} finished")
    if any_process(bool(stop.requested)):
        stop.leave()
    return work.placement.gather(state)


def _note(metrics: Metrics, name: str) -> str:
    return f"{name} {float(np.mean(metrics[name])):.4g}" if name in metrics else ""
