"""Simulator replay: put the environment into the state that an observation describes and take one step.

The answer to "would the real environment have moved there?" for any observation and action, generated ones included.
MuJoCo observations leave out the root's x (and y), on which neither dynamics nor rewards depend: it is set to 0. They clip
velocities at 10 in Hopper and Walker2d, which is why even real transitions do not replay exactly. Ant's forward reward uses
body positions from within the previous step, which no observation tells: its states replay exactly, its reward to some 0.05.
"""

import re
from typing import Any, Protocol

import jax
import numpy as np

from jaxpgd.data.dataset import DatasetInfo, to_env_action
from jaxpgd.errors import InputError, check
from jaxpgd.evaluation.builtin import builtin_environment
from jaxpgd.evaluation.environments import flatten_obs, is_builtin, make_environment, quiet_mujoco

# leading entries of qpos that the observation leaves out, unless the environment was asked to include them
_OMITTED_QPOS = {"Hopper": 1, "Walker2d": 1, "HalfCheetah": 1, "Ant": 2, "InvertedPendulum": 0}
_OMITTING_KWARG = "_exclude_current_positions_from_observation"

Step = tuple[np.ndarray, np.ndarray, np.ndarray]


class Simulator(Protocol):
    """One true step from given observations, for a batch of K independent pairs."""

    def step(self, obs: np.ndarray, action: np.ndarray) -> Step:
        """obs [K, O], action [K, A] in [-1, 1] -> next_obs [K, O], reward [K], terminated [K] bool."""
        ...


def has_simulator(info: DatasetInfo) -> bool:
    """Whether `make_simulator` knows the dataset's environment (its packages may still be missing)."""
    return is_builtin(info) or _family(info) is not None


def make_simulator(info: DatasetInfo) -> Simulator:
    """The simulator of a dataset's environment.

    Known: point2d (its noise-free step), PointMaze, and the v4 and v5 MuJoCo Hopper, Walker2d, HalfCheetah, Ant and
    InvertedPendulum. Raises InputError for others, and where an extra is missing.
    """
    if is_builtin(info):
        return BuiltinSimulator(info)
    family = _family(info)
    if family is None:
        known = ", ".join(["point2d", "PointMaze", *_OMITTED_QPOS])
        raise InputError(f"env_id = {info.env_id!r}: no simulator replay for it (known: {known}). Skip the dynamics error.")
    return PointMazeSimulator(info) if family == "PointMaze" else MujocoSimulator(info, _OMITTED_QPOS[family])


def _family(info: DatasetInfo) -> str | None:
    match = re.fullmatch(r"(?:.*/)?([A-Za-z0-9]+)(?:_\w+)?-v(\d+)", info.env_id or "")
    if match is None:
        return None
    name, version = match[1], int(match[2])
    if name == "PointMaze":
        return name
    return name if name in _OMITTED_QPOS and version in (4, 5) else None


class BuiltinSimulator:
    """The noise-free step of a built-in JAX environment that has no terminals."""

    def __init__(self, info: DatasetInfo) -> None:
        env = builtin_environment(info)

        def step(obs: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array]:
            next_obs = env.mean_step(obs, action)
            return next_obs, env.reward(next_obs)

        self._step = jax.jit(jax.vmap(step))

    def step(self, obs: np.ndarray, action: np.ndarray) -> Step:
        """As `Simulator.step`."""
        next_obs, reward = self._step(obs, action)
        return np.asarray(next_obs), np.asarray(reward), np.zeros(len(obs), bool)


class MujocoSimulator:
    """A Gymnasium MuJoCo task whose observation starts with qpos (less its first `omitted` entries) and qvel."""

    def __init__(self, info: DatasetInfo, omitted: int) -> None:
        self._info = info
        self._env: Any = make_environment(info).unwrapped
        self._omitted = omitted if getattr(self._env, _OMITTING_KWARG, True) else 0
        self._env.reset(seed=0)

    def step(self, obs: np.ndarray, action: np.ndarray) -> Step:
        """As `Simulator.step`."""
        positions = self._env.model.nq - self._omitted
        qpos = np.zeros((len(obs), self._env.model.nq))
        qpos[:, self._omitted :] = obs[:, :positions]
        qvel = np.asarray(obs[:, positions : positions + self._env.model.nv], np.float64)
        controls = to_env_action(self._info, action)
        with quiet_mujoco():
            steps = [self._one(*inputs) for inputs in zip(qpos, qvel, controls, strict=True)]
        return _stack(steps, obs)

    def _one(self, qpos: np.ndarray, qvel: np.ndarray, control: np.ndarray) -> tuple[np.ndarray, float, bool]:
        # the solver starts from the last accelerations: cleared, so that a step depends on its inputs alone
        self._env.data.qacc_warmstart[:] = 0.0
        self._env.set_state(qpos, qvel)
        next_obs, reward, terminated, _, _ = self._env.step(control)
        return np.asarray(next_obs), float(reward), bool(terminated)


class PointMazeSimulator:
    """Gymnasium-Robotics PointMaze: (x, y, vx, vy) from `observation`, the goal from `desired_goal`.

    The goal of the next observation is the one that was set, as in the step itself; a goal that the environment draws anew
    after a success shows one step later in data.
    """

    def __init__(self, info: DatasetInfo) -> None:
        self._info = info
        self._parts = obs_slices(info)
        check({"observation", "desired_goal"} <= self._parts.keys(), "obs_keys", info.obs_keys,
              "observation and desired_goal among them")  # fmt: skip
        self._env: Any = make_environment(info).unwrapped
        self._env.reset(seed=0)

    def step(self, obs: np.ndarray, action: np.ndarray) -> Step:
        """As `Simulator.step`."""
        state = np.asarray(obs[:, self._parts["observation"]], np.float64)
        goal = np.asarray(obs[:, self._parts["desired_goal"]], np.float64)
        controls = to_env_action(self._info, action)
        with quiet_mujoco():
            return _stack([self._one(*inputs) for inputs in zip(state, goal, controls, strict=True)], obs)

    def _one(self, state: np.ndarray, goal: np.ndarray, control: np.ndarray) -> tuple[np.ndarray, float, bool]:
        point = self._env.point_env
        point.data.qacc_warmstart[:] = 0.0
        point.set_state(state[:2], state[2:])
        self._env.goal = goal.copy()
        # the point's own step, then the maze's reward: the maze's step would go on to draw a new goal after a success
        moved = point.step(control)[0]
        reward = self._env.compute_reward(moved[:2], goal, {})
        parts = {"observation": moved, "achieved_goal": moved[:2], "desired_goal": goal}
        return flatten_obs(self._info, parts), float(reward), bool(self._env.compute_terminated(moved[:2], goal, {}))


def obs_slices(info: DatasetInfo) -> dict[str, slice]:
    """Where each entry of a dict observation lies in the concatenated one; empty for plain observations."""
    ends = np.cumsum(info.obs_sizes, dtype=int)
    return {k: slice(int(e) - n, int(e)) for k, n, e in zip(info.obs_keys, info.obs_sizes, ends, strict=True)}


def _stack(steps: list[tuple[np.ndarray, float, bool]], obs: np.ndarray) -> Step:
    if not steps:
        return np.zeros_like(obs), np.zeros(0), np.zeros(0, bool)
    next_obs, reward, terminated = zip(*steps, strict=True)
    return np.stack(next_obs), np.array(reward), np.array(terminated)
