"""Gymnasium environments stepped together, distributed over this process and workers.

Results do not depend on the number of processes. If they could, this process steps all environments: those of the main program,
of a module that is still being imported or has changed since its import, those that draw from NumPy's global generator or
import JAX (whose configuration belongs to this process), and those that a worker fails to make.
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

# Total steps from which workers pay off. Starting one takes 0.3 s, which a second core saves on 5,000 steps of Hopper, and
# episodes may end early.
WORTH = 10_000
LEAST = 2  # environments per process, because of the messages at every step
_PATIENCE = 2.0  # seconds for environments to close after an error


class DrawsInSteps(Exception):
    """Environments draw from NumPy's global generator when stepped, so that the order of steps matters."""


def usable_cores() -> int:
    """Number of cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes_for(count: int, horizon: int, processes: int) -> int:
    """How many processes step `count` environments: `processes`, or for 0 one per available core if that pays off."""
    if processes:
        return min(processes, count)
    return max(min(usable_cores(), count // LEAST), 1) if count * horizon >= WORTH else 1


class Here:
    """This process with the interface of a worker."""

    def __init__(self, info: DatasetInfo, count: int):
        self.stepper = Stepper(lambda: make_environment(info), count)
        self.asked: tuple[str, tuple[Any, ...]] = ("observe", ())

    def begin(self, name: str, *arguments: Any) -> None:
        """Request `name(*arguments)`."""
        self.asked = name, arguments

    def end(self) -> Any:
        """The result of the request. Raises EnvironmentFailure."""
        name, arguments = self.asked
        try:
            return getattr(self.stepper, name)(*arguments)
        except (Exception, SystemExit) as error:
            if isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM:
                raise
            raise EnvironmentFailure(described(error)) from error


class Environments:
    """`count` environments of a dataset, stepped by n <= `processes` processes: i, i + n, i + 2n, ... by process i.

    A context that closes them. Raises InputError if they cannot be made.
    """

    def __init__(self, info: DatasetInfo, count: int, processes: int):
        self.info, self.count = info, count
        self.team, self.workers = Team(None), list[Worker]()
        self.flat = np.zeros((count, 0), np.float32)
        self.job = job_of(info) if processes > 1 else None
        if self.job is None or not self._distribute(self.job, processes):
            self.here = Here(info, count)

    def _distribute(self, job: Job, processes: int) -> bool:
        """Start workers and make all environments. False, with everything undone, if this process has to make them."""
        before, distributed = generator_state(), False
        self.team = hire(job, processes - 1)
        try:
            self.workers = self.team.workers[: processes - 1]
            shares = [len(range(i, self.count, processes)) for i in range(processes)]
            for worker, share in zip(self.workers, shares[1:], strict=False):
                worker.begin("make", job.packed, job.modules, share)
            if not self.workers:
                return False
            self.here = Here(self.info, shares[0])
            distributed = self._same(before)
        finally:
            if not distributed:
                self._leave(sound=False)
        if not distributed:
            ALONE.add(job.packed)
            np.random.set_state(before)  # noqa: NPY002
        return distributed

    def _same(self, before: Any) -> bool:
        """Whether the workers made the environments that this process would have made."""
        try:
            with_jax = [worker.end() for worker in self.workers]
        except EnvironmentFailure:
            return False
        return not any(with_jax) and same_state(before, generator_state())

    @property
    def parts(self) -> Sequence[Here | Worker]:
        """This process and the workers."""
        return [self.here, *self.workers]

    @property
    def action_type(self) -> Any:
        """The dtype of the environments' actions."""
        return self.here.stepper.envs[0].action_space.dtype

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """First observations [N, O]. Environments are reset in order, handing on the state of NumPy's global generator.

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

    def step(
        self, actions: np.ndarray, going: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, bool]:
        """One step of the environments that have not ended, `going` [N].

        Returns observations [N, O], rewards, ended, ended by a terminal and successes [N], and whether any environment reports
        successes. Rows of ended environments are unchanged or zero. Raises EnvironmentFailure, and DrawsInSteps if several
        processes step environments that a single one has to step.
        """
        parts, flat, reported = self.parts, self.flat.copy(), False
        due = [(part, slice(i, None, len(parts))) for i, part in enumerate(parts) if going[i :: len(parts)].any()]
        for part, own in due:
            part.begin("step", actions[own], going[own])
        rewards = np.zeros(self.count)
        ended, terminal, reached = (np.zeros(self.count, bool) for _ in range(3))
        for part, own in due:
            seen, rewards[own], ended[own], terminal[own], reached[own], reports, drew = self._result(part)
            flat[own] = flatten_obs(self.info, seen)
            reported |= reports
            if drew and self.job and self.workers:
                ALONE.add(self.job.packed)
                raise DrawsInSteps
        self.flat = flat
        return flat, rewards, ended, terminal, reached, reported

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
        """Close all environments. Workers are kept if nothing went wrong."""
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
