"""One true step from the state that an observation describes.

`Simulator.step` tells where the real environment would have moved, from any observation and action, generated ones included.
`rollout.rollout` takes a policy on from there.
"""

import re
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxpgd.dataset import DatasetInfo
from jaxpgd.envs.builtin import builtin_environment
from jaxpgd.errors import InputError
from jaxpgd.simulators.environments import environment_spec, is_builtin
from jaxpgd.simulators.mujoco_states import MAZE_KEYS, MujocoSimulator, PointMazeSimulator, Steps

# Leading entries of qpos that the observation leaves out, unless the environment was made to include them.
_OMITTED_QPOS = {"Hopper": 1, "Walker2d": 1, "HalfCheetah": 1, "Ant": 2, "InvertedPendulum": 0, "Maze2d": 0}


class Simulator(Protocol):
    """True steps from given observations, for a batch of K independent pairs."""

    def step(self, obs: np.ndarray, action: np.ndarray) -> Steps:
        """obs [K, O], action [K, A] in [-1, 1] -> next_obs [K, O], reward [K], terminated [K] bool."""
        ...


class BuiltinSimulator:
    """A JAX environment without terminals that offers `without_noise` (point2d, linear_gaussian): steps without noise."""

    def __init__(self, env: Any) -> None:
        self.env = env

    def step(self, obs: np.ndarray, action: np.ndarray) -> Steps:
        """See `Simulator.step`."""
        next_obs, reward = _exact_steps(self.env.without_noise(), jnp.asarray(obs), jnp.asarray(action))
        return np.asarray(next_obs), np.asarray(reward), np.zeros(len(obs), bool)


@jax.jit
def _exact_steps(env: Any, obs: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array]:
    unused = jax.random.key(0)  # the environment has no noise
    found: tuple[jax.Array, jax.Array] = jax.vmap(lambda o, a: env.step(unused, o, a)[:2])(obs, action)
    return found


KnownSimulator = BuiltinSimulator | MujocoSimulator | PointMazeSimulator


def has_simulator(info: DatasetInfo) -> bool:
    """Whether `make_simulator` supports the dataset's environment. Its packages may still be missing.

    PointMaze data must contain position, velocity and goal. Another environment of the same name is not supported.
    """
    if is_builtin(info):
        return True
    family = _family(info)
    return family is not None and (family != "PointMaze" or MAZE_KEYS <= set(info.obs_keys)) and _known_code(info)


def make_simulator(info: DatasetInfo) -> KnownSimulator:
    """The simulator of a dataset's environment.

    Supported: point2d (its noise-free step), PointMaze, the v4 and v5 MuJoCo Hopper, Walker2d, HalfCheetah, Ant and
    InvertedPendulum, and D4RL's ant and maze2d. Raises InputError for others, and if an extra is missing.
    """
    if is_builtin(info):
        return BuiltinSimulator(builtin_environment(info.env_id))
    family = _family(info) if _known_code(info) else None
    if family is None:
        known = ", ".join(["point2d", "PointMaze", *_OMITTED_QPOS])
        raise InputError(f"env_id = {info.env_id!r}: no simulator replay for it (known: {known}). Skip the dynamics error.")
    return PointMazeSimulator(info) if family == "PointMaze" else MujocoSimulator(info, _OMITTED_QPOS[family])


def _family(info: DatasetInfo) -> str | None:
    if d4rl := re.fullmatch(r"d4rl/(ant|maze2d)-.+", info.env_id or ""):
        return d4rl[1].capitalize()
    match = re.fullmatch(r"(?:.*/)?([A-Za-z0-9]+)(?:_\w+)?-v(\d+)", info.env_id or "")
    if match is None:
        return None
    name, version = match[1], int(match[2])
    if name == "PointMaze":
        return name
    return name if name in _OMITTED_QPOS and version in (4, 5) else None


def _known_code(info: DatasetInfo) -> bool:
    """Whether the environment is made by code whose states are known here. True if its spec is not available."""
    try:
        entry = environment_spec(info).entry_point
    except InputError:
        return True
    module = entry if isinstance(entry, str) else getattr(entry, "__module__", "")
    return module.startswith(("gymnasium.envs.mujoco", "gymnasium_robotics", "jaxpgd."))
