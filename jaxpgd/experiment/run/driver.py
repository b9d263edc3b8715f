"""The driver runs one training program chunk by chunk, from Python: progress, logs and checkpoints between compiled chunks.

It is how every stage trains (`stages.train_models`, `stages.train_agents`). Reading what was trained needs no driver: see
`stages.load`.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpgd.errors import DivergenceError, StorageError, check
from jaxpgd.experiment.run.directory import ClaimedRun
from jaxpgd.experiment.run.divergence import DivergenceWatch
from jaxpgd.experiment.run.interruption import Interruption
from jaxpgd.experiment.run.peak_memory import peak_memory
from jaxpgd.experiment.run.progress import StageProgress
from jaxpgd.parallel import Placement, any_process, barrier, check_same_across_hosts, is_writer
from jaxpgd.training.health import SKIPPED, checked, finite, finite_names, split_firsts, where
from jaxpgd.training.program import Program
from jaxpgd.types import Metrics, PyTree

State = TypeVar("State")
BeforeChunk = Callable[[int, Callable[[], Any], PyTree], tuple[PyTree, dict[str, Any]]]
AfterChunk = Callable[[int, Callable[[], Any]], dict[str, Any]]
Score = Callable[[dict[str, Any]], float | None]
Lap = tuple[float, float]  # of a chunk: seconds, and processor seconds of all threads


def drive(
    run: ClaimedRun,
    stage: str,
    key: Array,
    program: Program[State],
    data: PyTree,
    *,
    unit: str = "steps",
    note: str = "loss",
    before_chunk: BeforeChunk | None = None,
    after_chunk: AfterChunk | None = None,
    score: Score | None = None,
) -> State:
    """Run or resume `program` as `stage` of a run; returns its final state. A finished stage is only read.

    After each chunk metrics go to `metrics.jsonl`. `after_chunk(chunks done, state)` may add more (evaluations), and so may
    `before_chunk(chunks done, state, data)`, which also returns data of the same shapes that the chunk gets instead. Both get
    the state as a function that fetches it from all devices, of use until the hook returns. The state is checkpointed at least
    `checkpoint_seconds` apart, at the end, and when SIGINT or SIGTERM asks to stop; besides the newest ones the checkpoint
    stays whose metrics have the highest `score`.
    Raises DivergenceError where a sample, loss, gradient or parameter is not finite (see `DivergenceWatch.judge`), with the
    state before that chunk saved.
    """
    work = _Work(run, stage, program, data, before_chunk, score)
    if is_writer():
        work.store.recover()
    found = work.store.restore(jax.eval_shape(program.init, key, data))
    finished = found is not None and found[1] == program.chunks and run.is_done(stage)
    check_same_across_hosts(2 * (0 if found is None else found[1] + 1) + finished, f"{stage}: what was saved, by process")
    if found is not None and finished:
        return found[0]
    run.log.start()
    began = time.monotonic()
    with Interruption() as stop:
        state, done = (work.begin(key), 0) if found is None else (work.placement.shard(found[0]), found[1])
        if found is None and any_process(bool(stop.requested)):
            stop.leave()
        if is_writer():
            work.store.set_aside(done)
        run.log.rewind(stage, done)
        work.recall_laps(done)
        work.watch.recall()
        steps = program.steps_per_chunk
        with StageProgress(stage, program.chunks * steps, unit, done * steps) as progress:
            tell = lambda row: progress.advance(steps, _note(row, note))
            state = _run_chunks(work, state, done, after_chunk, stop, tell)
        run.finish_after_failure(stage, _facts(work, time.monotonic() - began, resumed=found is not None))
        barrier(f"{stage} finished")
    if any_process(bool(stop.requested)):
        stop.leave()
    return work.placement.gather(state)


def _facts(work: "_Work[State]", seconds: float, *, resumed: bool) -> dict[str, Any]:
    """What is kept of a finished stage."""
    return {
        "health": dataclasses.asdict(work.run.config.health),
        "seconds": seconds,
        "resumed": resumed,
        "steps": work.program.chunks * work.program.steps_per_chunk,
        **_step_seconds(work.laps, work.program.steps_per_chunk),
        "peak_memory_bytes": peak_memory(),
        "diverging_critics": work.watch.diverging,
        "lost_seeds": work.watch.lost,
        "skipped_updates": work.watch.skipped,
    }


def _step_seconds(laps: list[Lap | None], steps: int) -> dict[str, float]:
    """Seconds of a step and processor seconds of all threads, means over chunks of `steps` but those with compilation (None).

    Means, not medians: chunks of a world model that has stopped early cost nothing. Nothing where there is no other chunk.
    """
    timed = [lap for lap in laps if lap is not None]
    if not timed:
        return {}
    wall, cpu = np.mean(np.array(timed), axis=0) / steps
    return {"step_seconds": float(wall), "step_cpu_seconds": float(cpu)}


def _run_chunks(
    work: "_Work[State]",
    state: State,
    done: int,
    after_chunk: AfterChunk | None,
    stop: Interruption,
    tell: Callable[[dict[str, Any]], None],
) -> State:
    """The state after all chunks that are left, with their metrics logged and checkpoints saved."""
    run, saved, first_chunk = work.run, time.monotonic(), done
    while done < work.program.chunks:
        began = time.monotonic(), time.process_time()
        try:
            state, is_finite, row, first = work.advance(state, done)
            work.watch.judge(is_finite, done + 1, row, first)
        except DivergenceError as error:
            raise work.rescue(error, done) from None
        lap = time.monotonic() - began[0], time.process_time() - began[1]
        work.laps.append(None if done == first_chunk else lap)
        done += 1
        if after_chunk is not None:
            row |= after_chunk(done, functools.partial(work.placement.gather, state))
        run.log.write(work.stage, done, row)
        tell(row)
        last, asked = done == work.program.chunks, any_process(bool(stop.requested))
        if last or asked or any_process(time.monotonic() - saved >= run.config.checkpoint_seconds):
            work.save(done, state, row)
            saved = time.monotonic()
        if asked and not last:
            stop.leave()
    return state


class _Work(Generic[State]):
    """A training program as a stage of a run: its compiled functions, where its state lives, its checkpoints."""

    def __init__(
        self,
        run: ClaimedRun,
        stage: str,
        program: Program[State],
        data: PyTree,
        before_chunk: BeforeChunk | None = None,
        score: Score | None = None,
    ) -> None:
        self.run, self.stage, self.program, self.data = run, stage, program, data
        self.store = run.checkpoints(stage)
        self.placement = Placement(program.seeds)
        self.watch = DivergenceWatch(run, stage, program)
        self._before, self._score = before_chunk, score
        self._replicated = self.placement.replicate(data)
        self._updates = program.updates_per_chunk or program.steps_per_chunk
        self._finite = self.placement.read(self._are_finite)
        self._names: list[str] = []
        self.laps: list[Lap | None] = []  # of each chunk, also before the run was interrupted; None where it compiled
        self._laps_path = run.path / "times" / f"{stage}.json"
        debug = run.config.health.debug_nans
        if debug:
            check(self.placement.one, "health.debug_nans", True, "one device", "CUDA_VISIBLE_DEVICES=0 leaves one.")
        self._checked = jax.jit(checked(program.chunk)) if debug else None
        self._chunk: Callable[..., Any] = self.placement.step(program.chunk)

    def _are_finite(self, state: State) -> Array:
        quantities = self.program.quantities(state)
        self._names = finite_names(quantities)  # known once this is compiled
        return finite(quantities, self.program.seeds)

    def _by_name(self, is_finite: np.ndarray) -> dict[str, Any]:
        return dict(zip(self._names, is_finite, strict=True))

    def begin(self, key: Array) -> State:
        """The first state, saved. Raises DivergenceError where a sample or parameter is not finite."""
        init = self.placement.init(self.program.init)
        with StageProgress(f"{self.stage}, start", 1, "state") as progress:
            state: State = jax.block_until_ready(init(key, self._replicated))
            progress.advance(1)
        self.watch.judge(self._by_name(jax.device_get(self._finite(state))), 0, {}, {})
        self.save(0, state)
        return state

    def recall_laps(self, done: int) -> None:
        """The times of the chunks before an interruption, as far as they are known."""
        laps: list[Lap | None] = []
        with suppress(OSError, ValueError):
            known = json.loads(self._laps_path.read_text(encoding="utf-8-sig"))
            laps = [lap and (lap[0], lap[1]) for lap in known[:done]]
        self.laps = laps + [None] * (done - len(laps))

    def advance(self, state: State, done: int) -> tuple[State, dict[str, Any], dict[str, Any], dict[str, Any]]:
        """The next chunk after `done`: its state, which parts of it are finite, its metrics, the first bad step of each metric.

        The host waits for the device once, for all that it has to know of the chunk.
        """
        given, chosen = (
            (self.data, {})
            if self._before is None
            else self._before(done, functools.partial(self.placement.gather, state), self.data)
        )
        replicated = self._replicated if given is self.data else self.placement.replicate(given)
        self._debug(state, replicated, done)
        state, metrics = self._chunk(state, replicated, jnp.asarray(done))
        is_finite, metrics = jax.device_get((self._finite(state), metrics))
        metrics, first = split_firsts(metrics)
        if SKIPPED in metrics:
            metrics[SKIPPED] = np.rint(np.asarray(metrics[SKIPPED]) * self._updates)
        row = {"step": (done + 1) * self.program.steps_per_chunk, **metrics, **chosen}
        return state, self._by_name(is_finite), row, first

    def _debug(self, state: State, data: PyTree, done: int) -> None:
        """Raise DivergenceError naming the operation of the next chunk that makes the first NaN.

        What it computes is thrown away: checked programs round in other places.
        """
        if self._checked is None:
            return
        error, _ = self._checked(state, data, jnp.asarray(done))
        if error.get() is not None:
            end = (done + 1) * self.program.steps_per_chunk
            raise DivergenceError(f"stage {self.stage!r} of {self.run.path}, the chunk that ends at step {end}: {where(error)}")

    def save(self, done: int, state: State, row: dict[str, Any] | None = None) -> None:
        """Write a checkpoint, once for all hosts; none goes on before it is there."""
        addressable = self.placement.fully_addressable(state)
        if is_writer():
            self.run.log.sync()  # its lines are on disk before a checkpoint that counts on them
            self.run.write_json(f"times/{self.stage}.json", self.laps)
            self.store.save(done, addressable, None if self._score is None or row is None else self._score(row))
        barrier(f"checkpoint {self.stage} {done}")

    def rescue(self, error: DivergenceError, done: int) -> DivergenceError:
        """Save the state before the chunk after `done`, which failed, and say so in the error.

        The failed chunk has used up that state's memory: it is computed again from the last checkpoint.
        """
        step, path = done * self.program.steps_per_chunk, self.run.path
        facts = {"stage": self.stage, "message": str(error), "last_good_step": step}
        try:
            self.run.write_json(f"failures/{self.stage}.json", facts)  # first: the disk may be full
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
        if self.run.config.health.debug_nans:
            return DivergenceError(f"{saved} Where no operation is named, a number became infinite before any was NaN.")
        if self.program.groups:  # a study's run, which only its study continues
            return DivergenceError(f"{saved} To go on: the study's command with --health.skip-updates N.")
        keep = ", or --health.lost-seeds keep where others are well" if self.program.seeds > 1 else ""
        return DivergenceError(
            f"{saved} To see where it arises: `jaxpgd run {path / 'config.toml'} --resume --debug-nans`. To go on: --resume "
            f"with --health.skip-updates N{keep}. Other settings need a new run."
        )


def _note(metrics: Metrics, name: str) -> str:
    return f"{name} {float(np.mean(metrics[name])):.4g}" if name in metrics else ""
