"""Whether the actions of policies are among those of a dataset: distances to nearest neighbours, without a model."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpgd.errors import check

LEVEL = 0.95  # quantile of the data's own distances beyond which an action is out of distribution
_BATCH = 256  # pairs whose distances are in memory at once
_CONSTANT = 1e-6  # an entry whose deviation is below this share of max(1, |mean|) is constant


def ood_actions(
    key: Array,
    obs: Array | np.ndarray,
    action: Array | np.ndarray,
    episode: np.ndarray,
    act: Callable[[np.ndarray], np.ndarray],
    *,
    limit: int = 4000,
) -> np.ndarray:
    """Share of the actions of S policies [S] that are out of the distribution of a dataset's pairs of state and action.

    The dataset has obs [M, O], actions [M, A] in [-1, 1] and the episode [M] of each; `act(obs [N, O])` are the policies'
    actions [S, N, A]. N transitions are drawn, and N others as references, N the smaller of `limit` and M / 2. The distance of
    a pair (s, a) is that to its nearest neighbour among the references of other episodes, in units of the standard deviations
    of the entries of s and a. The action of a policy at s is out of distribution where its distance exceeds the 0.95 quantile
    of the distances of the data's own actions at the same N states, which therefore have a share of 0.05. An action that is
    nearer to the data than the data's pairs are to each other is not told apart. Pairs of an only episode may be neighbours.
    Raises InputError for less than two transitions.
    """
    count = min(limit, len(obs) // 2)
    check(count > 0, "obs", len(obs), "at least two transitions")
    drawn = np.asarray(jax.random.permutation(key, len(obs))[: 2 * count])
    group = np.asarray(episode)[drawn]
    group = group if len(np.unique(group)) > 1 else np.arange(2 * count)
    states = np.asarray(obs[drawn], np.float32)
    pairs = np.concatenate([states, np.asarray(action[drawn], np.float32)], axis=1)
    std = pairs.std(axis=0)
    std = np.where(std < _CONSTANT * np.maximum(1.0, np.abs(pairs.mean(axis=0))), 1.0, std)
    chosen = np.clip(np.asarray(act(states[:count]), np.float32), -1.0, 1.0)
    asked = [pairs[:count], *(np.concatenate([states[:count], own], axis=1) for own in chosen)]
    distance = nearest(np.stack(asked) / std, group[:count], pairs[count:] / std, group[count:])
    distance = distance[:, np.isfinite(distance[0])]  # without pairs whose episode has all references
    return np.asarray((distance[1:] > np.quantile(distance[0], LEVEL)).mean(axis=1))


def nearest(x: np.ndarray, group: np.ndarray, reference: np.ndarray, reference_group: np.ndarray) -> np.ndarray:
    """Euclidean distance [K, N] of x [K, N, F] to the nearest of the references [R, F] of another group; inf without one.

    `group` [N] and `reference_group` [R] are numbers. The references are compared in batches that bound the memory.
    """
    centre = reference.mean(axis=0)  # distances do not change, and rounding errors are smaller
    rows = jnp.asarray(x - centre, jnp.float32).reshape(-1, x.shape[-1])
    groups = jnp.tile(jnp.asarray(group), x.shape[0])
    found = _nearest(rows, groups, jnp.asarray(reference - centre, jnp.float32), jnp.asarray(reference_group))
    return np.asarray(found).reshape(x.shape[:2])


@jax.jit
def _nearest(rows: Array, groups: Array, reference: Array, reference_group: Array) -> Array:
    squares = jnp.sum(reference**2, axis=1)

    def one(item: tuple[Array, Array]) -> Array:
        row, group = item
        compared = squares - 2 * jnp.matmul(reference, row, precision="highest")  # squared distances, less |row|^2
        compared = jnp.where(reference_group == group, jnp.inf, compared)
        best = compared.argmin()
        return jnp.where(compared[best] < jnp.inf, jnp.linalg.norm(row - reference[best]), jnp.inf)

    found: Array = jax.lax.map(one, (rows, groups), batch_size=_BATCH)
    return found
