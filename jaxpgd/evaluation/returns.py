"""Returns of policies in the environment that a dataset comes from."""

import jax
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from jax import Array

from jaxpgd.data.dataset import DatasetInfo, to_env_action
from jaxpgd.envs.builtin import builtin_environment
from jaxpgd.errors import check
from jaxpgd.evaluation.environments import (
    environment_spec,
    evaluated_in,
    flatten_obs,
    is_builtin,
    make_environment,
    require_environment,
    seeded_numpy,
)
from jaxpgd.evaluation.rollout import Returns, check_modes, rollout_returns, seeds_of
from jaxpgd.types import Policy

__all__ = ["Returns", "evaluate", "require_environment"]


def evaluate(key: Array, policy: Policy, info: DatasetInfo, *, episodes: int, horizon: int | None = None) -> Returns:
    """Undiscounted returns [S, episodes], lengths and successes of S policies, all episodes stepped together.

    `policy` has a leading seed axis S on its parameters (of one policy: `jax.tree.map(lambda x: x[None], policy)`); its mode
    acts, in the environment that the dataset's references belong to. `horizon` cuts episodes earlier than the environment's
    own limit. An episode is a success where the environment says so (`info["success"]`) at any of its steps. Raises
    InputError where the dataset names no environment or it cannot be made, and where `policy` has no such axis.
    """
    check(episodes > 0, "episodes", episodes, "a number above 0")
    check(horizon is None or horizon > 0, "horizon", horizon, "a number above 0, or None for the environment's limit")
    require_environment(info)
    info = evaluated_in(info)
    if is_builtin(info):
        result = rollout_returns(key, builtin_environment(info.env_id), policy, episodes, horizon)
        return Returns(returns=np.asarray(result.returns), lengths=np.asarray(result.lengths))
    limit = environment_spec(info).max_episode_steps
    check(horizon is not None or limit is not None, "horizon", horizon, "a number of steps",
          f"{info.env_id} has no step limit of its own.")  # fmt: skip
    steps = min(n for n in (horizon, limit) if n is not None)
    return _evaluate_gymnasium(key, policy, info, episodes, steps)


@jax.jit
def act(policy: Policy, obs: Array) -> Array:
    """Mode actions [S, E, A] of S policies (leading axis on the leaves) at obs [S, E, O]."""
    return jax.vmap(lambda p, o: jax.vmap(p.mode)(o))(policy, obs)


def _evaluate_gymnasium(key: Array, policy: Policy, info: DatasetInfo, episodes: int, horizon: int) -> Returns:
    seeds = seeds_of(policy)
    count = seeds * episodes
    start_seeds = np.asarray(jax.random.randint(key, (count,), 0, 2**31 - 1)).tolist()
    envs = SyncVectorEnv([lambda: make_environment(info)] * count, autoreset_mode=AutoresetMode.NEXT_STEP)
    returns, lengths, alive = np.zeros(count), np.zeros(count, np.int64), np.ones(count, bool)
    reached, reported = np.zeros(count, bool), False
    try:
        with seeded_numpy(start_seeds[0]):
            obs, _ = envs.reset(seed=start_seeds)
            check_modes(policy, flatten_obs(info, obs).shape[-1], len(info.action_low))
            for _ in range(horizon):
                flat = flatten_obs(info, obs)
                action = np.asarray(act(policy, flat.reshape(seeds, episodes, -1))).reshape(count, -1)
                scaled = to_env_action(info, action).astype(envs.action_space.dtype)
                obs, reward, terminated, truncated, infos = envs.step(scaled)
                # an environment that is done resets at its next step and goes on: it stays out of the sums from here
                returns += np.where(alive, reward, 0.0)
                lengths += alive
                reported |= "success" in infos
                reached |= alive & np.asarray(infos.get("success", False), bool)
                alive &= ~(terminated | truncated)
                if not alive.any():
                    break
    finally:
        envs.close()
    table = lambda values: values.reshape(seeds, episodes)
    return Returns(returns=table(returns), lengths=table(lengths), successes=table(reached) if reported else None)
