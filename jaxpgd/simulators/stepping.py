"""Gymnasium environments stepped one after the other, in this process or in a worker, which runs this file.

It imports nothing from jaxpgd, so that workers start without JAX.
"""

import importlib
import importlib.util
import io
import math
import os
import pickle
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from multiprocessing.connection import Connection
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector.utils import concatenate, create_empty_array

# observations, rewards, ended, ended by a terminal, successes, whether any reports successes, whether NumPy's global generator
# was used
Stepped = tuple[Any, np.ndarray, np.ndarray, np.ndarray, np.ndarray, bool, bool]


@contextmanager
def quiet_mujoco() -> Iterator[None]:
    """A context without MuJoCo's warnings, which it would also append to a log file in the working directory."""
    if importlib.util.find_spec("mujoco") is None:
        yield
        return
    mujoco = importlib.import_module("mujoco")
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda text: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


def generator_state() -> Any:
    """The state of NumPy's global generator."""
    return np.random.get_state()  # noqa: NPY002


def same_state(one: Any, other: Any) -> bool:
    """Whether two states of NumPy's global generator are equal."""
    return bool(one[2:] == other[2:] and np.array_equal(one[1], other[1]))


def finite_reward(reward: Any) -> float:
    """A step's reward as a float. Raises ValueError if it is not a finite number."""
    try:
        number = float(reward)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"its reward is {reward!r}, not a finite number")
    return number


class Stepper:
    """Environments of one process. Those that have ended are not stepped and keep their last observation."""

    def __init__(self, make: Callable[[], gymnasium.Env], count: int):
        self.envs: list[gymnasium.Env] = []
        try:
            for _ in range(count):
                self.envs.append(make())
        except BaseException:
            self.close()
            raise
        self.space = self.envs[0].observation_space
        self.seen: list[Any] = [None] * count
        self.batch: Any = create_empty_array(self.space, n=count, fn=np.zeros)

    def reset(self, index: int, seed: int, state: Any) -> Any:
        """Reset an environment with NumPy's global generator in `state`. Returns the generator's state afterwards."""
        np.random.set_state(state)  # noqa: NPY002
        self.seen[index], _ = self.envs[index].reset(seed=seed)
        return generator_state()

    def observe(self) -> Any:
        """The last observations of all environments, batched by their space."""
        return concatenate(self.space, self.seen, self.batch)

    def step(self, actions: np.ndarray, going: np.ndarray) -> Stepped:
        """One step of the environments that have not ended: `going` [N]."""
        count, reported, before = len(self.envs), False, generator_state()
        rewards = np.zeros(count)
        ended, terminal, reached = (np.zeros(count, bool) for _ in range(3))
        for i in np.flatnonzero(going):
            self.seen[i], reward, terminated, truncated, info = self.envs[i].step(actions[i])
            rewards[i] = finite_reward(reward)
            ended[i], terminal[i] = bool(terminated) or bool(truncated), bool(terminated)
            successes = [info[name] for name in ("success", "is_success") if name in info]  # the latter: Gymnasium-Robotics
            reported, reached[i] = reported or bool(successes), any(map(bool, successes))
        return self.observe(), rewards, ended, terminal, reached, reported, not same_state(before, generator_state())

    def close(self) -> None:
        """Close all environments."""
        for env in self.envs:
            with suppress(Exception):  # its work is done
                env.close()
        self.envs = []


class Worker:
    """Answers the requests that a worker receives."""

    def __init__(self) -> None:
        self.stepper: Stepper | None = None

    def make(self, packed: bytes, modules: Sequence[str], count: int) -> bool:
        """Make `count` environments of a pickled spec, silently. Returns whether that imported JAX."""
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            for name in modules:
                importlib.import_module(name)
            spec: EnvSpec = pickle.loads(packed)
            with quiet_mujoco():
                self.stepper = Stepper(lambda: gymnasium.make(spec), count)
        return "jax" in sys.modules

    def answer(self, message: bytes) -> bytes:
        """The pickled result of `make` or of a method of the stepper, or a description of the exception that it raised."""
        try:
            name, arguments = pickle.loads(message)
            found = getattr(self if name == "make" else self.stepper, name)(*arguments)
            return pickle.dumps((True, found), pickle.HIGHEST_PROTOCOL)
        except BaseException as error:
            return pickle.dumps((False, (described(error), traceback.format_exc())))


def described(error: BaseException) -> str:
    """An exception's type and message in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}".removesuffix(": ")


def serve(descriptor: int) -> None:
    """Answer requests until the connection is closed or the parent process ends, in whatever way."""
    warnings.simplefilter("ignore")  # the parent makes the same environments and shows the same warnings
    threading.Thread(target=_end_with_parent, daemon=True).start()
    worker = Worker()
    with suppress(EOFError, OSError), Connection(descriptor) as connection:
        while True:
            connection.send_bytes(worker.answer(connection.recv_bytes()))
    if worker.stepper is not None:
        worker.stepper.close()


def _end_with_parent() -> None:
    """Exit with the parent, which holds the other end of standard input and writes nothing."""
    os.read(0, 1)
    os._exit(1)
