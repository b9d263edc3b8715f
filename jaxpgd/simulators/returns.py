"""Evaluation: returns of policies in the environment of a dataset."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpgd.dataset import DatasetInfo, to_env_action
from jaxpgd.envs.builtin import builtin_environment
from jaxpgd.errors import check
from jaxpgd.simulators.compiled_returns import Returns, check_modes, rollout_returns, seeds_of
from jaxpgd.simulators.environments import (
    environment_spec,
    evaluated_in,
    is_builtin,
    require_environment,
    seeded_numpy,
)
from jaxpgd.simulators.vector import DrawsInSteps, Environments, processes_for
from jaxpgd.types import Policy

__all__ = ["Returns", "evaluate", "require_environment"]

Watch = Callable[[int, int, int, int], None]  # step, largest number of steps, episodes that ended, all episodes


def evaluate(
    key: Array,
    policy: Policy,
    info: DatasetInfo,
    *,
    episodes: int,
    horizon: int | None = None,
    processes: int = 0,
    watch: Watch | None = None,
    gamma: np.ndarray | None = None,
) -> Returns:
    """Undiscounted returns [S, episodes], lengths and successes of S policies. All episodes are stepped together.

    `policy` has a leading seed axis S on its parameters (for a single policy: `jax.tree.map(lambda x: x[None], policy)`). Its
    mode acts, in the environment of the dataset's reference returns. `horizon` cuts episodes before the environment's limit.
    An episode is a success if the environment reports one (`info["success"]` or `info["is_success"]`) at any step.
    `processes` step Gymnasium environments (0: one per available core, a single one for short evaluations); their number does
    not change results. `watch` is called after each of their steps with the step, the largest number of steps, the number of
    episodes that have ended, and the number of all episodes. With discount factors `gamma` [S] there are the discounted returns
    as well; they change no other result. Raises InputError if the dataset names no environment, if it
    cannot be made, or if `policy` has no axis S; EnvironmentFailure if an environment raises an exception.
    """
    check(episodes > 0, "episodes", episodes, "a number above 0")
    check(horizon is None or horizon > 0, "horizon", horizon, "a number above 0, or None for the environment's limit")
    check(processes >= 0, "processes", processes, "a number not below 0")
    require_environment(info)
    info = evaluated_in(info)
    if is_builtin(info):
        own = builtin_environment(info.env_id)
        most = None if horizon is None else min(horizon, own.horizon)
        factors = None if gamma is None else jnp.asarray(gamma, jnp.float32)
        found: Returns = jax.tree.map(np.asarray, rollout_returns(key, own, policy, episodes, most, factors))
        return found
    steps = steps_of(info, horizon, "horizon")
    processes = processes_for(seeds_of(policy) * episodes, steps, processes)
    try:
        return _evaluate_gymnasium(key, policy, info, episodes, steps, processes, watch, gamma)
    except DrawsInSteps:
        return _evaluate_gymnasium(key, policy, info, episodes, steps, 1, watch, gamma)


def steps_of(info: DatasetInfo, horizon: int | None, field: str) -> int:
    """The largest number of steps of an episode: the smaller of the environment's limit and `horizon` (0 or None: no horizon).

    Raises InputError naming `field` if there is neither.
    """
    info = evaluated_in(info)
    limit = builtin_environment(info.env_id).horizon if is_builtin(info) else environment_spec(info).max_episode_steps
    check(bool(horizon) or limit is not None, field, horizon, "a number of steps",
          f"{info.env_id} has no step limit of its own.")  # fmt: skip
    return min(n for n in (horizon, limit) if n)


@jax.jit
def act(policy: Policy, obs: Array) -> Array:
    """Mode actions [S, E, A] of S policies (leading axis on the leaves) at obs [S, E, O]."""
    action: Array = jax.vmap(lambda p, o: jax.vmap(p.mode)(o))(policy, obs)
    return action


def _on_host(policy: Policy) -> Policy:
    """The policy on the host's CPU, if JAX may use it, so that a step needs no kernel launch and no transfer."""
    if jax.default_backend() == "cpu":
        return policy
    try:
        moved: Policy = jax.device_put(policy, jax.local_devices(backend="cpu")[0])
        return moved
    except RuntimeError:  # JAX_PLATFORMS names only the accelerator
        return policy


def _evaluate_gymnasium(
    key: Array,
    policy: Policy,
    info: DatasetInfo,
    episodes: int,
    horizon: int,
    processes: int,
    watch: Watch | None,
    gamma: np.ndarray | None,
) -> Returns:
    seeds = seeds_of(policy)
    count = seeds * episodes
    start_seeds = np.asarray(jax.random.randint(key, (count,), 0, 2**31 - 1)).tolist()
    returns, discounted, lengths = np.zeros(count), np.zeros(count), np.zeros(count, np.int64)
    going, reached, reported = np.ones(count, bool), np.zeros(count, bool), False
    cut, factor = np.ones(count, bool), np.ones(count)
    rate = np.zeros(count) if gamma is None else np.repeat(np.asarray(gamma, np.float64), episodes)
    with Environments(info, count, processes) as envs, seeded_numpy(start_seeds[0]):
        obs = start = envs.reset(start_seeds)
        check_modes(policy, obs.shape[-1], len(info.action_low))
        host_policy = _on_host(policy)
        for step in range(1, horizon + 1):
            action = np.asarray(act(host_policy, obs.reshape(seeds, episodes, -1))).reshape(count, -1)
            scaled = to_env_action(info, action).astype(envs.action_type)
            obs, reward, ended, terminal, success, reports = envs.step(scaled, going)
            returns += np.where(going, reward, 0.0)
            discounted += np.where(going, factor * reward, 0.0)
            factor *= rate
            lengths += going
            reported |= reports
            reached |= success
            cut &= ~terminal
            going &= ~ended
            if watch is not None:
                watch(step, horizon, int(count - going.sum()), count)
            if not going.any():
                break
    table = lambda values: values.reshape(seeds, episodes, *values.shape[1:])
    return Returns(
        returns=table(returns), lengths=table(lengths), successes=table(reached) if reported else None, start=table(start),
        cut=table(cut), discounted=None if gamma is None else table(discounted),
    )  # fmt: skip
