"""Gymnasium environments stepped together, divided over this process and workers.

Results do not depend on the number of processes. Where they could, this one steps all: environments of the main program, or of
a module that is being imported or has been changed since; those that draw from NumPy's global generator when they are made or
stepped, or import JAX, whose configuration is this process'; and what a worker fails to make.
"""

import os
import signal
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxpgd.dataset import DatasetInfo
from jaxpgd.errors import EnvironmentFailure
from jaxpgd.simulators.environments import flatten_obs, make_environment
from jaxpgd.simulators.stepping import Stepper, described, generator_state, same_state
from jaxpgd.simulators.workers import ALONE, Job, Team, Worker, hire, job_of, keep

# steps in all from which on workers are started: that takes 0.3 s, which a second core saves of 5,000 steps of Hopper, and
# episodes may end early
WORTH = 10_000
LEAST = 2  # environments a process, as each costs its messages at every step
_PATIENCE = 2.0  # seconds for environments to close where something went wrong


class DrawsInSteps(Exception):
    """Steps draw from NumPy's global generator, so that the order of all environments' steps matters."""


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes_for(count: int, horizon: int, processes: int) -> int:
    """How many processes step `count` environments; of 0, as many as there are usable cores, where that is worth it."""
    if processes:
        return min(processes, count)
    return max(min(usable_cores(), count // LEAST), 1) if count * horizon >= WORTH else 1


class Here:
    """This process, in the form of a worker."""

    def __init__(self, info: DatasetInfo, count: int):
        self.stepper = Stepper(lambda: make_environment(info), count)
        self.asked: tuple[str, tuple[Any, ...]] = ("observe", ())

    def begin(self, name: str, *arguments: Any) -> None:
        """Ask for `name(*arguments)`."""
        self.asked = name, arguments

    def end(self) -> Any:
        """What was asked for. Raises EnvironmentFailure."""
        name, arguments = self.asked
        try:
            return getattr(self.stepper, name)(*arguments)
        except (Exception, SystemExit) as error:
            if isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM:
                raise
            raise EnvironmentFailure(described(error)) from error


class Environments:
    """`count` environments of a dataset, stepped by up to `processes`: of n, part i has those numbered i, i + n, i + 2n ...

    A context, at whose end they are closed. Raises InputError where they cannot be made.
    """

    def __init__(self, info: DatasetInfo, count: int, processes: int):
        self.info, self.count = info, count
        self.team, self.workers = Team(None), list[Worker]()
        self.flat = np.zeros((count, 0), np.float32)
        self.job = job_of(info) if processes > 1 else None
        if self.job is None or not self._divide(self.job, processes):
            self.here = Here(info, count)

    def _divide(self, job: Job, processes: int) -> bool:
        """Start workers and make all environments; False, with nothing left of it, where they have to be made here."""
        before, divided = generator_state(), False
        self.team = hire(job, processes - 1)
        try:
            self.workers = self.team.workers[: processes - 1]
            shares = [len(range(i, self.count, processes)) for i in range(processes)]
            for worker, share in zip(self.workers, shares[1:], strict=False):
                worker.begin("make", job.packed, job.modules, share)
            if not self.workers:
                return False
            self.here = Here(self.info, shares[0])
            divided = self._alike(before)
        finally:
            if not divided:
                self._leave(sound=False)
        if not divided:
            ALONE.add(job.packed)
            np.random.set_state(before)  # noqa: NPY002
        return divided

    def _alike(self, before: Any) -> bool:
        """Whether workers have made their environments, as this process would have."""
        try:
            with_jax = [worker.end() for worker in self.workers]
        except EnvironmentFailure:
            return False
        return not any(with_jax) and same_state(before, generator_state())

    @property
    def parts(self) -> Sequence[Here | Worker]:
        """Who steps."""
        return [self.here, *self.workers]

    @property
    def action_type(self) -> Any:
        """The type of the environments' actions."""
        return self.here.stepper.envs[0].action_space.dtype

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """First observations [N, O]. Environments are reset one by one, and pass on the state of NumPy's global generator.

        Raises EnvironmentFailure.
        """
        parts, state = self.parts, generator_state()
        for i, seed in enumerate(seeds):
            part = parts[i % len(parts)]
            part.begin("reset", i // len(parts), seed, state)
            state = self._result(part)
        for part in parts:
            part.begin("observe")
        seen = [flatten_obs(self.info, self._result(part)) for part in parts]
        self.flat = np.zeros((self.count, *seen[0].shape[1:]), np.float32)
        for i, rows in enumerate(seen):
            self.flat[i :: len(parts)] = rows
        return self.flat

    def step(self, actions: np.ndarray, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, bool]:
        """One step of those `alive` [N]: observations [N, O], rewards, ended, successes [N], whether any reports successes.

        Rows of the others are as they were, or zero. Raises EnvironmentFailure; DrawsInSteps where several processes step
        environments that one has to.
        """
        parts, flat, reported = self.parts, self.flat.copy(), False
        due = [(part, slice(i, None, len(parts))) for i, part in enumerate(parts) if alive[i :: len(parts)].any()]
        for part, own in due:
            part.begin("step", actions[own], alive[own])
        rewards, ended, reached = np.zeros(self.count), np.zeros(self.count, bool), np.zeros(self.count, bool)
        for part, own in due:
            seen, rewards[own], ended[own], reached[own], said, drew = self._result(part)
            flat[own] = flatten_obs(self.info, seen)
            reported |= said
            if drew and self.job and self.workers:
                ALONE.add(self.job.packed)
                raise DrawsInSteps
        self.flat = flat
        return flat, rewards, ended, reached, reported

    def _result(self, part: Here | Worker) -> Any:
        try:
            return part.end()
        except EnvironmentFailure as error:
            error.args = (f"An environment {self.info.env_id} failed: {error}",)
            raise

    def __enter__(self) -> "Environments":
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self._leave(sound=kind is None)

    def _leave(self, *, sound: bool) -> None:
        """Close all environments. Workers are kept where nothing has gone wrong."""
        team, workers, done = self.team, self.workers, False
        self.team, self.workers = Team(None), []
        try:
            for worker in workers if sound else ():
                worker.begin("close")
            if hasattr(self, "here"):
                self.here.stepper.close()
            for worker in workers if sound else ():
                worker.end()
            done = sound and bool(workers)
        finally:
            if done:
                keep(team)
            else:
                team.stop(_PATIENCE)
