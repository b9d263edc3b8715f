"""True rollouts of a policy, or of given actions, from the states that observations describe."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpgd.dataset import to_env_action
from jaxpgd.envs.rollout import rollout as environment_rollout
from jaxpgd.errors import check
from jaxpgd.simulators.environments import answering, quiet_mujoco
from jaxpgd.simulators.mujoco_states import StatefulSimulator, checked_outcome
from jaxpgd.simulators.resimulation import BuiltinSimulator, KnownSimulator
from jaxpgd.types import Policy, Trajectory, valid_steps


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
    """True rollouts of a policy from observations `start` [N, O]: trajectories [N, T], T = `length`, and their end [N, O].

    `simulator` comes from `make_simulator`, or is a `BuiltinSimulator` of any JAX environment. The state is set from `start`
    once and then kept in full: what observations clip or leave out does not feed back. The policy sees observations in the
    dataset's form; `deterministic` takes its mode instead of a sample. Without `noise` the environment draws nothing: JAX
    environments take exact steps, mazes keep their goal (MuJoCo's physics has no noise). Time limits do not apply.

    After a terminal the state stays, rewards are 0 and steps are masked; the end of such a trajectory is where its terminal
    led. The arrays are NumPy's. Actions are those taken, in [-1, 1] for Gymnasium's environments. Raises InputError for an
    empty start or a length below 1, and EnvironmentFailure if the environment raises an exception or returns no numbers.
    """
    start = np.asarray(start, np.float32)
    check(start.ndim == 2 and len(start) > 0, "start", start.shape, "observations [N, O], N above 0")
    check(length > 0, "length", length, "a number of steps above 0")
    if isinstance(simulator, BuiltinSimulator):
        env = simulator.env if noise else simulator.env.without_noise()
        trajectory, next_obs = _compiled_rollouts(key, env, policy, jnp.asarray(start), length, deterministic)
        return jax.tree.map(np.asarray, trajectory), np.asarray(next_obs[:, -1])
    key, noise_key = jax.random.split(key)
    keys = jax.random.split(key, length)
    act = lambda t, obs: _act(keys[t], policy, jnp.asarray(obs), deterministic)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(noise_key))) if noise else None
    made = _stepped(simulator, act, start, length, rng)
    return made, np.asarray(made.last_obs)


def replay_actions(simulator: KnownSimulator, start: np.ndarray, action: np.ndarray) -> Trajectory:
    """True steps under actions [N, T, A] in [-1, 1] that are given, from observations `start` [N, O]: trajectories [N, T].

    The environment draws nothing (see `rollout`, also for the state and for what comes after a terminal): an open-loop replay.
    Raises InputError where the shapes do not fit, and EnvironmentFailure.
    """
    start, action = np.asarray(start, np.float32), np.asarray(action, np.float32)
    fits = start.ndim == 2 and action.ndim == 3 and len(start) == len(action) > 0 and action.shape[1] > 0
    check(fits, "start, action", (start.shape, action.shape), "shapes [N, O] and [N, T, A], N and T above 0")
    if isinstance(simulator, BuiltinSimulator):
        found = _compiled_replay(simulator.env.without_noise(), jnp.asarray(start), jnp.asarray(action))
        return jax.tree.map(np.asarray, found)  # type: ignore[no-any-return]
    return _stepped(simulator, lambda t, obs: action[:, t], start, action.shape[1], None)


@jax.jit
def _compiled_replay(env: Any, start: jax.Array, action: jax.Array) -> Trajectory:
    """`replay_actions` of a `BuiltinSimulator`'s environment `without_noise`. It has no terminals: every action is taken."""
    unused = jax.random.key(0)  # the environment has no noise

    def one(start: jax.Array, actions: jax.Array) -> Trajectory:
        def advance(obs: jax.Array, action: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
            next_obs, reward, discount = env.step(unused, obs, action)
            return next_obs, (obs, reward, discount)

        last, (obs, reward, discount) = jax.lax.scan(advance, start, actions)
        return Trajectory(obs, actions, reward, discount, valid_steps(discount, end_known=True), last)

    return jax.vmap(one)(start, action)


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


def _stepped(
    simulator: StatefulSimulator,
    act: Callable[[int, np.ndarray], Any],
    start: np.ndarray,
    length: int,
    rng: np.random.Generator | None,
) -> Trajectory:
    """Trajectories [N, T] from `start` [N, O] under the actions [N, A] of `act(step, obs [N, O])`, cut to [-1, 1]."""
    with quiet_mujoco(), answering(simulator.info.env_id):
        states = simulator.begin(start, rng)
        obs, going, rows = start, np.ones(len(start), bool), []
        for t in range(length):
            action = np.clip(np.asarray(act(t, obs)), -1.0, 1.0)
            controls = to_env_action(simulator.info, action)
            next_obs, reward, discount = obs.copy(), np.zeros(len(obs), np.float32), np.ones(len(obs), np.float32)
            for i in np.flatnonzero(going):  # `act` gets all N at every step, so that a compiled shape stays
                next_obs[i], reward[i], terminated = checked_outcome(obs[i], simulator.advance(states[i], controls[i]))
                discount[i] = 1.0 - terminated
            going = going & (discount > 0)
            rows.append((obs, action, reward, discount))
            obs = next_obs
    columns: list[Any] = [np.stack(column, axis=1) for column in zip(*rows, strict=True)]
    mask: Any = np.asarray(valid_steps(jnp.asarray(columns[3]), end_known=True))
    end: Any = obs
    return Trajectory(columns[0], columns[1], columns[2], columns[3], mask, end)
