"""Two samples compared by what tells them apart: the classifier two-sample test, and discounted returns."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxpgd.errors import check
from jaxpgd.metrics.dynamics_error import steps_taken
from jaxpgd.networks.mlp import MLP
from jaxpgd.types import PyTree, Trajectory

FOLDS = 5  # blocks of rows by default: the least number of rows
_HIDDEN = (64, 64)
_BATCH, _UPDATES, _VALIDATE_EVERY = 64, 400, 20
_LEARNING_RATE, _WEIGHT_DECAY = 1e-3, 1e-2
_GROUPS = 32  # of consecutive pairs, whose spread gives the standard error
_CONSTANT = 1e-6  # a feature whose deviation is below this share of max(1, |mean|) is constant


def classifier_test(key: Array, x: np.ndarray, y: np.ndarray, *, folds: int = FOLDS, limit: int = 1024) -> dict[str, float]:
    """How well a network tells x [N, F] from y [M, F] (classifier two-sample test; Lopez-Paz & Oquab, arXiv 1610.06545).

    `classifier_accuracy` is that on rows which the network was not trained on: 0.5 for two samples of one distribution, 1 for
    samples that it tells apart without error. `classifier_accuracy_se` is its standard error.

    Both samples are thinned at random to the same size, at most `limit`, and keep their order. They are cut into `folds` blocks
    of consecutive rows, each tested by a network with two layers of 64 units that is trained by AdamW on the other blocks but
    one. The weights with the lowest loss on that one are kept: nothing is chosen by the rows that are tested. Features are
    standardised by the rows of training. Rows that depend on each other, such as windows that overlap, should follow each
    other: they are then tested by a network that has seen few of them.
    Raises InputError if the sizes do not fit.
    """
    x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
    check(x.ndim == y.ndim == 2 and x.shape[1] == y.shape[1], "x, y", (x.shape, y.shape), "shapes [N, F] and [M, F]")
    check(folds > 2, "folds", folds, "at least 3: of training, validation and test")
    size = min(len(x), len(y), limit) // folds
    check(size > 0, "x, y", (len(x), len(y)), f"at least {folds} rows each")
    key_x, key_y, key_folds = jax.random.split(key, 3)
    rows = np.stack([_thin(key_x, x, folds * size), _thin(key_y, y, folds * size)])
    blocks = jnp.asarray(rows.reshape(2, folds, size, -1).swapaxes(0, 1))
    right = np.asarray(_cross_validated(jax.random.split(key_folds, folds), blocks), np.float64)
    # of pairs, one row of each: what a network gains by preferring one of the samples it loses in the other
    groups = [group.mean() for group in np.array_split(right.mean(axis=1).ravel(), min(_GROUPS, folds * size))]
    return {
        "classifier_accuracy": float(right.mean()),
        "classifier_accuracy_se": float(np.std(groups, ddof=1) / np.sqrt(len(groups))),
    }


def _thin(key: Array, x: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(x[np.sort(np.asarray(jax.random.permutation(key, len(x))[:size]))])


@jax.jit
def _cross_validated(keys: Array, blocks: Array) -> Array:
    """Whether each row [K, 2, B] of K blocks [K, 2, B, F] is told right by a network that has not seen its block: 0 or 1."""

    def fold(key: Array, index: Array) -> Array:
        turned = jnp.roll(blocks, -index, axis=0)
        train = turned[2:].swapaxes(0, 1).reshape(2, -1, blocks.shape[-1])
        mean, std = train.mean(axis=(0, 1)), train.std(axis=(0, 1))
        std = jnp.where(std < _CONSTANT * jnp.maximum(1.0, jnp.abs(mean)), 1.0, std)
        return _told_right(key, *((rows - mean) / std for rows in (train, turned[1], turned[0])))

    return jax.vmap(fold)(keys, jnp.arange(len(blocks)))


def _told_right(key: Array, train: Array, validation: Array, test: Array) -> Array:
    """Whether each test row [2, B] is told right, 0 or 1. The sets are standardised, [2, rows, F]: those of x, then of y."""
    network = MLP((*_HIDDEN, 1), init_kind="lecun_normal")
    optimizer = optax.adamw(_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)

    def logits(params: PyTree, rows: Array) -> Array:
        found: Array = network.apply(params, rows)  # type: ignore[assignment]
        return found[..., 0]

    def loss(params: PyTree, rows: Array) -> Array:
        """Mean cross entropy, where a logit above 0 says y."""
        of_x, of_y = logits(params, rows)
        return (jax.nn.softplus(of_x).mean() + jax.nn.softplus(-of_y).mean()) / 2

    def update(carry: tuple[PyTree, PyTree], index: Array) -> tuple[tuple[PyTree, PyTree], None]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, train[:, index]), state, params)
        return (optax.apply_updates(params, updates), state), None

    def chunk(carry: tuple[PyTree, ...], indices: Array) -> tuple[tuple[PyTree, ...], None]:
        params, state, best, lowest = carry
        (params, state), _ = jax.lax.scan(update, (params, state), indices)
        found = loss(params, validation)
        best = jax.tree.map(lambda new, old: jnp.where(found < lowest, new, old), params, best)
        return (params, state, best, jnp.minimum(found, lowest)), None

    key_init, key_batches = jax.random.split(key)
    shape = (_UPDATES // _VALIDATE_EVERY, _VALIDATE_EVERY, min(_BATCH, train.shape[1]))
    indices = jax.random.randint(key_batches, shape, 0, train.shape[1])
    params = network.init(key_init, test[0, 0])
    carry = (params, optimizer.init(params), params, loss(params, validation))
    (_, _, best, _), _ = jax.lax.scan(chunk, carry, indices)
    of_x, of_y = logits(best, test)
    return jnp.stack([of_x < 0, of_y >= 0]).astype(jnp.float32)


def window_features(trajectory: Trajectory) -> np.ndarray:
    """Trajectories [N, T] as rows [N, F] for `classifier_test`.

    Observations, actions, rewards and whether the trajectory has ended, by step, and the changes of the observations from step
    to step, in which errors of the dynamics are large. What a trajectory holds after its first terminal, or after a cut that is
    padded, has no meaning: its last observation is repeated there, with actions and rewards 0. Terminals are flags in real and
    sampled trajectories alike, so that the rounding of a sampled flag gives nothing away.
    """
    chex.assert_rank([trajectory.obs, trajectory.action], 3)
    taken = steps_taken(trajectory)
    index = np.minimum(np.arange(taken.shape[1]), taken.sum(axis=1, keepdims=True) - 1)
    obs = np.take_along_axis(np.asarray(trajectory.obs, np.float32), index[..., None], axis=1)
    action = np.where(taken[..., None], np.asarray(trajectory.action), 0.0)
    reward = np.where(taken, np.asarray(trajectory.reward), 0.0)[..., None]
    ended = np.cumsum(np.asarray(trajectory.discount) == 0, axis=1)[..., None] > 0
    steps = np.concatenate([obs, action, reward, ended | ~taken[..., None]], axis=-1)
    return np.concatenate([part.reshape(len(taken), -1) for part in (steps, np.diff(obs, axis=1))], axis=-1, dtype=np.float32)


def discounted_returns(trajectory: Trajectory, gamma: float) -> np.ndarray:
    """Sum of gamma^t r_t over the steps [T] of each trajectory up to its end, [N]."""
    reward = np.where(steps_taken(trajectory), np.asarray(trajectory.reward, np.float64), 0.0)
    return np.asarray(reward @ gamma ** np.arange(reward.shape[1]))
