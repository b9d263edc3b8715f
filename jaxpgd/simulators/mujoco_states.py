"""Gymnasium's MuJoCo tasks set to the state that an observation describes, and stepped from there.

MuJoCo observations leave out the root's x (and y), on which neither dynamics nor rewards depend: it is set to 0. Hopper and
Walker2d clip observed velocities at 10, so that even real transitions do not replay exactly. Ant's forward reward depends on
body positions within the previous step, which no observation shows: its states replay exactly, its reward to about 0.05.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from jaxpgd.dataset import DatasetInfo, obs_slices, to_env_action
from jaxpgd.errors import check
from jaxpgd.simulators.environments import answering, flatten_obs, make_environment, quiet_mujoco
from jaxpgd.simulators.stepping import finite_reward

MAZE_KEYS = {"observation", "desired_goal"}
_OMITTING_KWARG = "_exclude_current_positions_from_observation"
_BAD_STATE = 1e10  # mjMAXVAL: MuJoCo resets itself at states beyond it

Steps = tuple[np.ndarray, np.ndarray, np.ndarray]  # next observations [K, O], rewards [K], terminated [K]
Outcome = tuple[Any, Any, Any]  # next observation, reward and terminated, as an environment returns them


class StatefulSimulator(Protocol):
    """A simulator that steps many trajectories one by one, each from a state of its own."""

    info: DatasetInfo

    def begin(self, obs: np.ndarray, rng: np.random.Generator | None) -> list[Any]:
        """States [N] that obs [N, O] describe. `rng` draws what the environment draws at random; None: it draws nothing."""
        ...

    def advance(self, state: Any, control: np.ndarray) -> Outcome:
        """Step a state in place with an action [A] in the environment's bounds: next_obs [O], reward, terminated."""
        ...


class MujocoSimulator:
    """A Gymnasium MuJoCo task whose observation starts with qpos (without its first `omitted` entries) and qvel."""

    def __init__(self, info: DatasetInfo, omitted: int) -> None:
        self.info = info
        self._env: Any = make_environment(info).unwrapped
        self._omitted = omitted if getattr(self._env, _OMITTING_KWARG, True) else 0
        with answering(info.env_id):
            self._env.reset(seed=0)

    def step(self, obs: np.ndarray, action: np.ndarray) -> Steps:
        """See `Simulator.step`."""
        return _replayed(self.info, self._one, obs, *self._positions_and_velocities(obs), to_env_action(self.info, action))

    def begin(self, obs: np.ndarray, rng: np.random.Generator | None) -> list[Any]:
        """See `StatefulSimulator.begin`. These tasks draw nothing at random after their start."""
        return [self._begin(*state) for state in zip(*self._positions_and_velocities(obs), strict=True)]

    def advance(self, state: Any, control: np.ndarray) -> Outcome:
        """See `StatefulSimulator.advance`."""
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
        # The solver starts from the last accelerations. They are cleared, so that a step depends on its inputs alone.
        self._env.data.qacc_warmstart[:] = 0.0
        self._env.set_state(qpos, qvel)
        next_obs, reward, terminated, _, _ = self._env.step(control)
        return next_obs, reward, terminated


@dataclasses.dataclass
class _MazeState:
    """The state of one maze: the point's physics, the goal, and the generator of new goals (None: the goal stays)."""

    data: Any
    goal: np.ndarray
    rng: np.random.Generator | None


class PointMazeSimulator:
    """Gymnasium-Robotics PointMaze: (x, y, vx, vy) from `observation`, the goal from `desired_goal`.

    The next observation of `step` shows the goal that was set. An environment that draws a new goal after a success shows it
    one step later, in data and in rollouts with noise.
    """

    def __init__(self, info: DatasetInfo) -> None:
        self.info = info
        self._parts = obs_slices(info)
        check(MAZE_KEYS <= self._parts.keys(), "obs_keys", info.obs_keys,
              "observation and desired_goal among them")  # fmt: skip
        self._env: Any = make_environment(info).unwrapped
        with answering(info.env_id):
            self._env.reset(seed=0)

    def step(self, obs: np.ndarray, action: np.ndarray) -> Steps:
        """See `Simulator.step`."""
        return _replayed(self.info, self._one, obs, *self._states_and_goals(obs), to_env_action(self.info, action))

    def begin(self, obs: np.ndarray, rng: np.random.Generator | None) -> list[_MazeState]:
        """See `StatefulSimulator.begin`. Mazes that were made to do so draw a new goal at random after a success."""
        return [self._begin(state, goal, rng) for state, goal in zip(*self._states_and_goals(obs), strict=True)]

    def advance(self, state: _MazeState, control: np.ndarray) -> Outcome:
        """See `StatefulSimulator.advance`."""
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
        # The point's own step, then the maze's reward: the maze's step would also draw a new goal after a success.
        return self._outcome(point.step(control)[0], goal)

    def _outcome(self, moved: np.ndarray, goal: np.ndarray) -> Outcome:
        reward = self._env.compute_reward(moved[:2], goal, {})
        parts = {"observation": moved, "achieved_goal": moved[:2], "desired_goal": goal}
        return flatten_obs(self.info, parts), reward, self._env.compute_terminated(moved[:2], goal, {})


def _fresh_data(model: Any) -> Any:
    """The physics state of one trajectory, about 0.5 MB: positions, velocities and the solver's memory."""
    import mujoco  # an optional extra: whoever calls this has made an environment of it

    return mujoco.MjData(model)


def _replayed(info: DatasetInfo, one: Callable[..., Outcome], obs: np.ndarray, *inputs: np.ndarray) -> Steps:
    """One step from each of obs [K, O], with its row of every input. Raises EnvironmentFailure."""
    with quiet_mujoco(), answering(info.env_id):
        return _stack([checked_outcome(seen, one(*each)) for seen, *each in zip(obs, *inputs, strict=True)], obs)


def checked_outcome(seen: np.ndarray, outcome: Outcome) -> tuple[np.ndarray, float, bool]:
    """Next observation [O], reward and terminated of a step from the observation `seen` [O].

    Raises ValueError if they have other shapes or types, or are not finite although the step began in a state that the
    simulator accepts.
    """
    found, reward, terminated = np.asarray(outcome[0]), outcome[1], outcome[2]
    if found.shape != seen.shape or found.dtype.kind not in "biuf":
        raise ValueError(f"its observation has shape {found.shape} of {found.dtype}, not {seen.shape} of numbers")
    if np.abs(seen).max(initial=0.0) > _BAD_STATE or not np.isfinite(seen).all():
        return found, float(reward), bool(terminated)
    if not np.isfinite(found).all():
        raise ValueError("its observation is not finite")
    return found, finite_reward(reward), bool(terminated)


def _stack(steps: list[tuple[np.ndarray, float, bool]], obs: np.ndarray) -> Steps:
    if not steps:
        return np.zeros_like(obs), np.zeros(0), np.zeros(0, bool)
    next_obs, reward, terminated = zip(*steps, strict=True)
    return np.stack(next_obs), np.array(reward), np.array(terminated)
