"""The real environment from the state that an observation describes: one step of it, or a policy's whole rollout.

`Simulator.step` answers "would the real environment have moved there?" for any observation and action, generated ones
included; `rollout` answers "where would this policy have gone from here?".
MuJoCo observations leave out the root's x (and y), on which neither dynamics nor rewards depend: it is set to 0. They clip
velocities at 10 in Hopper and Walker2d, which is why even real transitions do not replay exactly. Ant's forward reward uses
body positions from within the previous step, which no observation tells: its states replay exactly, its reward to some 0.05.
"""

import dataclasses
import re
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxpgd.dataset import DatasetInfo, obs_slices, to_env_action
from jaxpgd.envs.builtin import builtin_environment
from jaxpgd.envs.rollout import rollout as environment_rollout
from jaxpgd.errors import InputError, check
from jaxpgd.simulators.environments import (
    answering,
    environment_spec,
    flatten_obs,
    is_builtin,
    make_environment,
    quiet_mujoco,
)
from jaxpgd.simulators.stepping import finite_reward
from jaxpgd.types import Policy, Trajectory, valid_steps

# leading entries of qpos that the observation leaves out, unless the environment was asked to include them
_OMITTED_QPOS = {"Hopper": 1, "Walker2d": 1, "HalfCheetah": 1, "Ant": 2, "InvertedPendulum": 0, "Maze2d": 0}
_MAZE_KEYS = {"observation", "desired_goal"}
_OMITTING_KWARG = "_exclude_current_positions_from_observation"

_BAD_STATE = 1e10  # mjMAXVAL: MuJoCo starts anew from states beyond it

Step = tuple[np.ndarray, np.ndarray, np.ndarray]
Outcome = tuple[Any, Any, Any]  # next observation, reward, terminated: as an environment gives them


class Simulator(Protocol):
    """One true step from given observations, for a batch of K independent pairs."""

    def step(self, obs: np.ndarray, action: np.ndarray) -> Step:
        """obs [K, O], action [K, A] in [-1, 1] -> next_obs [K, O], reward [K], terminated [K] bool."""
        ...


def has_simulator(info: DatasetInfo) -> bool:
    """Whether `make_simulator` knows the dataset's environment (its packages may still be missing), and its states from data.

    Data of PointMaze tell the state with position, velocity and goal; an environment of someone's own may share a name.
    """
    if is_builtin(info):
        return True
    family = _family(info)
    return family is not None and (family != "PointMaze" or _MAZE_KEYS <= set(info.obs_keys)) and _own_code(info)


def make_simulator(info: DatasetInfo) -> "KnownSimulator":
    """The simulator of a dataset's environment.

    Known: point2d (its noise-free step), PointMaze, the v4 and v5 MuJoCo Hopper, Walker2d, HalfCheetah, Ant and
    InvertedPendulum, and D4RL's ant and maze2d. Raises InputError for others, and where an extra is missing.
    """
    if is_builtin(info):
        return BuiltinSimulator(builtin_environment(info.env_id))
    family = _family(info) if _own_code(info) else None
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


def _own_code(info: DatasetInfo) -> bool:
    """Whether an environment is made by code whose states are known here; true where it cannot be said."""
    try:
        entry = environment_spec(info).entry_point
    except InputError:
        return True
    module = entry if isinstance(entry, str) else getattr(entry, "__module__", "")
    return module.startswith(("gymnasium.envs.mujoco", "gymnasium_robotics", "jaxpgd."))


class BuiltinSimulator:
    """A JAX environment without terminals that offers `without_noise` (point2d, linear_gaussian): steps without noise."""

    def __init__(self, env: Any) -> None:
        self.env = env

    def step(self, obs: np.ndarray, action: np.ndarray) -> Step:
        """As `Simulator.step`."""
        next_obs, reward = _exact_steps(self.env.without_noise(), jnp.asarray(obs), jnp.asarray(action))
        return np.asarray(next_obs), np.asarray(reward), np.zeros(len(obs), bool)


@jax.jit
def _exact_steps(env: Any, obs: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array]:
    unused = jax.random.key(0)  # the environment has no noise
    return jax.vmap(lambda o, a: env.step(unused, o, a)[:2])(obs, action)


class MujocoSimulator:
    """A Gymnasium MuJoCo task whose observation starts with qpos (less its first `omitted` entries) and qvel."""

    def __init__(self, info: DatasetInfo, omitted: int) -> None:
        self.info = info
        self._env: Any = make_environment(info).unwrapped
        self._omitted = omitted if getattr(self._env, _OMITTING_KWARG, True) else 0
        with answering(info.env_id):
            self._env.reset(seed=0)

    def step(self, obs: np.ndarray, action: np.ndarray) -> Step:
        """As `Simulator.step`."""
        return _replayed(self.info, self._one, obs, *self._positions_and_velocities(obs), to_env_action(self.info, action))

    def begin(self, obs: np.ndarray, rng: np.random.Generator | None) -> list[Any]:
        """As `_Stepped.begin`. These tasks draw nothing at random after their start."""
        return [self._begin(*state) for state in zip(*self._positions_and_velocities(obs), strict=True)]

    def advance(self, state: Any, control: np.ndarray) -> Outcome:
        """As `_Stepped.advance`."""
        self._env.data = state
        next_obs, reward, terminated, _, _ = self._env.step(control)
        return flatten_obs(self.info, next_obs), reward, terminated

    def _positions_and_velocities(self, obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        positions = self._env.model.nq - self._omitted
        qpos = np.zeros((len(obs), self._env.model.nq))
        qpos[:, self._omitted :] = obs[:, :positions]
        return qpos, np.asarray(obs[:, positions : positions + self._env.model.nv], np.float64)

    def _begin(self, qpos: np.ndarray, qvel: np.ndarray) -> Any:
        self._env.data = _fresh_data(self._env.model)
        self._env.set_state(qpos, qvel)
        return self._env.data

    def _one(self, qpos: np.ndarray, qvel: np.ndarray, control: np.ndarray) -> Outcome:
        # the solver starts from the last accelerations: cleared, so that a step depends on its inputs alone
        self._env.data.qacc_warmstart[:] = 0.0
        self._env.set_state(qpos, qvel)
        next_obs, reward, terminated, _, _ = self._env.step(control)
        return next_obs, reward, terminated


@dataclasses.dataclass
class _MazeState:
    """One maze on its way: the point's physics, the goal, and what draws new goals (None: the goal stays)."""

    data: Any
    goal: np.ndarray
    rng: np.random.Generator | None


class PointMazeSimulator:
    """Gymnasium-Robotics PointMaze: (x, y, vx, vy) from `observation`, the goal from `desired_goal`.

    The goal of the next observation is the one that was set, as in the step itself; a goal that the environment draws anew
    after a success shows one step later in data, and in rollouts with noise.
    """

    def __init__(self, info: DatasetInfo) -> None:
        self.info = info
        self._parts = obs_slices(info)
        check(_MAZE_KEYS <= self._parts.keys(), "obs_keys", info.obs_keys,
              "observation and desired_goal among them")  # fmt: skip
        self._env: Any = make_environment(info).unwrapped
        with answering(info.env_id):
            self._env.reset(seed=0)

    def step(self, obs: np.ndarray, action: np.ndarray) -> Step:
        """As `Simulator.step`."""
        return _replayed(self.info, self._one, obs, *self._states_and_goals(obs), to_env_action(self.info, action))

    def begin(self, obs: np.ndarray, rng: np.random.Generator | None) -> list[_MazeState]:
        """As `_Stepped.begin`. What the maze draws at random is a new goal after a success, where it was made to."""
        return [self._begin(state, goal, rng) for state, goal in zip(*self._states_and_goals(obs), strict=True)]

    def advance(self, state: _MazeState, control: np.ndarray) -> Outcome:
        """As `_Stepped.advance`."""
        self._env.point_env.data = state.data
        goal, moved = state.goal, self._env.point_env.step(control)[0]
        if state.rng is not None:
            self._env.np_random, self._env.goal = state.rng, goal
            self._env.update_goal(moved[:2])
            state.goal = self._env.goal
        return self._outcome(moved, goal)

    def _states_and_goals(self, obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        state, goal = (np.asarray(obs[:, self._parts[k]], np.float64) for k in ("observation", "desired_goal"))
        return state, goal

    def _begin(self, state: np.ndarray, goal: np.ndarray, rng: np.random.Generator | None) -> _MazeState:
        point = self._env.point_env
        point.data = _fresh_data(point.model)
        point.set_state(state[:2], state[2:])
        return _MazeState(point.data, goal, rng)

    def _one(self, state: np.ndarray, goal: np.ndarray, control: np.ndarray) -> Outcome:
        point = self._env.point_env
        point.data.qacc_warmstart[:] = 0.0
        point.set_state(state[:2], state[2:])
        # the point's own step, then the maze's reward: the maze's step would go on to draw a new goal after a success
        return self._outcome(point.step(control)[0], goal)

    def _outcome(self, moved: np.ndarray, goal: np.ndarray) -> Outcome:
        reward = self._env.compute_reward(moved[:2], goal, {})
        parts = {"observation": moved, "achieved_goal": moved[:2], "desired_goal": goal}
        return flatten_obs(self.info, parts), reward, self._env.compute_terminated(moved[:2], goal, {})


KnownSimulator = BuiltinSimulator | MujocoSimulator | PointMazeSimulator


def _fresh_data(model: Any) -> Any:
    """A physics state of its own for one trajectory (about 0.5 MB): positions, velocities, what the solver leaves behind."""
    import mujoco  # an optional extra: here some environment of it has been made

    return mujoco.MjData(model)


def _replayed(info: DatasetInfo, one: Callable[..., Outcome], obs: np.ndarray, *inputs: np.ndarray) -> Step:
    """`one` step from each of obs [K, O], with its row of every input. Raises EnvironmentFailure."""
    with quiet_mujoco(), answering(info.env_id):
        return _stack([_checked(seen, one(*each)) for seen, *each in zip(obs, *inputs, strict=True)], obs)


def _checked(seen: np.ndarray, outcome: Outcome) -> tuple[np.ndarray, float, bool]:
    """The next observation [O], reward and end of a step from the observation `seen` [O].

    Raises ValueError where these are none, or not finite though the step began in a state that a simulator takes as it is.
    """
    found, reward, terminated = np.asarray(outcome[0]), outcome[1], outcome[2]
    if found.shape != seen.shape or found.dtype.kind not in "biuf":
        raise ValueError(f"its observation has shape {found.shape} of {found.dtype}, not {seen.shape} of numbers")
    if np.abs(seen).max(initial=0.0) > _BAD_STATE or not np.isfinite(seen).all():
        return found, float(reward), bool(terminated)
    if not np.isfinite(found).all():
        raise ValueError("its observation is not finite")
    return found, finite_reward(reward), bool(terminated)


def _stack(steps: list[tuple[np.ndarray, float, bool]], obs: np.ndarray) -> Step:
    if not steps:
        return np.zeros_like(obs), np.zeros(0), np.zeros(0, bool)
    next_obs, reward, terminated = zip(*steps, strict=True)
    return np.stack(next_obs), np.array(reward), np.array(terminated)


class _Stepped(Protocol):
    """A simulator whose trajectories are stepped one by one, each with a state that it keeps to itself."""

    info: DatasetInfo

    def begin(self, obs: np.ndarray, rng: np.random.Generator | None) -> list[Any]:
        """States [N] that obs [N, O] describe. `rng` draws what the environment draws at random; None: it draws nothing."""
        ...

    def advance(self, state: Any, control: np.ndarray) -> Outcome:
        """Step a state in place with the environment's own action [A]: next_obs [O], reward, terminated."""
        ...


def rollout(
    key: jax.Array,
    simulator: KnownSimulator,
    policy: Policy,
    start: np.ndarray,
    length: int,
    *,
    deterministic: bool = False,
    noise: bool = True,
) -> tuple[Trajectory, np.ndarray]:
    """What a policy truly does from observations `start` [N, O]: trajectories [N, T], T = `length`, and their end [N, O].

    `simulator` is one of `make_simulator`, or a `BuiltinSimulator` of a JAX environment. The state is set from `start` once
    and kept in full from then on: what observations clip or leave out does not feed back. The policy sees observations as the
    dataset has them; `deterministic` takes its mode instead of a sample. Without `noise` the environment draws nothing: JAX
    environments take exact steps, mazes keep their goal (MuJoCo's physics has no noise). Time limits do not apply.
    After a terminal the state stays, rewards are 0 and steps are masked; the end of such a trajectory is where its terminal
    led. Returned arrays are numpy's; actions are those taken, in [-1, 1] for Gymnasium's environments. Raises InputError for
    a start without rows or a length below 1, EnvironmentFailure where the environment raises anything or gives no numbers.
    """
    start = np.asarray(start, np.float32)
    check(start.ndim == 2 and len(start) > 0, "start", start.shape, "observations [N, O], N above 0")
    check(length > 0, "length", length, "a number of steps above 0")
    if isinstance(simulator, BuiltinSimulator):
        env = simulator.env if noise else simulator.env.without_noise()
        made, next_obs = _compiled_rollouts(key, env, policy, jnp.asarray(start), length, deterministic)
        return jax.tree.map(np.asarray, made), np.asarray(next_obs[:, -1])
    with quiet_mujoco(), answering(simulator.info.env_id):
        return _stepped_rollouts(key, simulator, policy, start, length, deterministic, noise)


@partial(jax.jit, static_argnames=("length", "deterministic"))
def _compiled_rollouts(
    key: jax.Array, env: Any, policy: Policy, start: jax.Array, length: int, deterministic: bool
) -> tuple[Trajectory, jax.Array]:
    def one(key: jax.Array, start: jax.Array) -> tuple[Trajectory, jax.Array]:
        return environment_rollout(key, env, policy, start, length=length, deterministic=deterministic)

    return jax.vmap(one)(jax.random.split(key, len(start)), start)


@partial(jax.jit, static_argnames="deterministic")
def _act(key: jax.Array, policy: Policy, obs: jax.Array, deterministic: bool) -> jax.Array:
    if deterministic:
        return jax.vmap(policy.mode)(obs)
    return jax.vmap(policy.sample)(jax.random.split(key, len(obs)), obs)


def _stepped_rollouts(
    key: jax.Array, simulator: _Stepped, policy: Policy, start: np.ndarray, length: int, deterministic: bool, noise: bool
) -> tuple[Trajectory, np.ndarray]:
    key, noise_key = jax.random.split(key)
    states = simulator.begin(start, np.random.default_rng(np.asarray(jax.random.key_data(noise_key))) if noise else None)
    obs, alive, rows = start, np.ones(len(start), bool), []
    for step_key in jax.random.split(key, length):
        action = np.clip(np.asarray(_act(step_key, policy, jnp.asarray(obs), deterministic)), -1.0, 1.0)
        controls = to_env_action(simulator.info, action)
        next_obs, reward, discount = obs.copy(), np.zeros(len(obs), np.float32), np.ones(len(obs), np.float32)
        for i in np.flatnonzero(alive):  # all actions are computed at every step, so that the compiled shape stays
            next_obs[i], reward[i], terminated = _checked(obs[i], simulator.advance(states[i], controls[i]))
            discount[i] = 1.0 - terminated
        alive = alive & (discount > 0)
        rows.append((obs, action, reward, discount))
        obs = next_obs
    made: list[Any] = [np.stack(column, axis=1) for column in zip(*rows, strict=True)]
    mask: Any = np.asarray(valid_steps(jnp.asarray(made[3]), end_known=True))
    end: Any = obs
    return Trajectory(made[0], made[1], made[2], made[3], mask, end), obs
