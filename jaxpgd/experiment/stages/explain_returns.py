"""Why agents return what they do: errors of their values, and their actions that are out of the data's distribution."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpgd.dataset import Dataset, DatasetInfo
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.stages.prepare import Prepared, stage_key
from jaxpgd.metrics.action_support import ood_actions
from jaxpgd.metrics.value_error import value_error
from jaxpgd.simulators.returns import Returns
from jaxpgd.types import Policy, Value

_BATCH = 256  # states at which policies act at once: some sample many actions for each


def explain(config: Config, prepared: Prepared, policy: Policy, value: Value | None, found: Returns) -> dict[str, np.ndarray]:
    """Why S policies reach the returns `found` in an evaluation: `ood_actions` [S] and, with a value, `value_error` [S].

    The evaluation discounts as `value` does.
    """
    errors = {} if value is None else {"value_error": value_errors(policy, value, found, prepared.dataset.info)}
    return {"ood_actions": ood_shares(config, prepared, policy)} | errors


def discount_of(value: Value | None) -> np.ndarray | None:
    """What an evaluation of agents with this value discounts by; None for those without critics."""
    return None if value is None else np.asarray(value.gamma)


def value_errors(policy: Policy, value: Value, found: Returns, info: DatasetInfo) -> np.ndarray:
    """The value error [S] of S agents by the episodes of their evaluation, in the units of the dataset's rewards."""
    values = np.asarray(_values(policy, value, jnp.asarray(found.start, jnp.float32)))
    return value_error(values, found.discounted, found.lengths, found.cut, np.asarray(value.gamma),
                       scale=info.reward_scale, shift=info.reward_shift)  # fmt: skip


def ood_shares(config: Config, prepared: Prepared, policy: Policy) -> np.ndarray:
    """The share of out-of-distribution actions [S] of S policies at states of the dataset: the same states for all arms."""
    data = prepared.dataset
    act = lambda obs: np.asarray(_actions(policy, jnp.asarray(obs)))
    return ood_actions(stage_key(config, "ood-actions"), data.obs, data.action, episode_of(data), act)


def episode_of(data: Dataset) -> np.ndarray:
    """The episode [M] of every transition."""
    return np.repeat(np.arange(data.episodes), data.lengths())


@jax.jit
def _values(policy: Policy, value: Value, obs: Array) -> Array:
    """Values [S, E] of S agents at obs [S, E, O], with the actions that the environment takes of them."""

    def one(policy: Policy, value: Value, obs: Array) -> Array:
        return value(obs, jnp.clip(policy.mode(obs), -1.0, 1.0))

    found: Array = jax.vmap(lambda p, v, o: jax.vmap(lambda obs: one(p, v, obs))(o))(policy, value, obs)
    return found


@jax.jit
def _actions(policy: Policy, obs: Array) -> Array:
    """Mode actions [S, N, A] of S policies at obs [N, O]."""
    found: Array = jax.vmap(lambda p: jax.lax.map(p.mode, obs, batch_size=_BATCH))(policy)
    return found
