"""Distances between two samples of windows or states: sliced Wasserstein distance, density and coverage."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpgd.errors import check


def sliced_wasserstein(
    key: Array,
    x: np.ndarray,
    y: np.ndarray,
    *,
    projections: int = 256,
    order: int = 1,
    x_weights: np.ndarray | None = None,
    y_weights: np.ndarray | None = None,
) -> float:
    """Sliced Wasserstein distance of samples x [N, F] and y [M, F], in the units of one feature.

    The one-dimensional W_p (`order` p, 1 or 2) along random unit directions, averaged as (mean W_p^p)^(1/p) (Bonneel et al.
    2015, Sliced and Radon Wasserstein Barycenters). Pass standardised tokens of windows, flattened: a projection on a unit
    direction then has unit variance on average, so that the result is in standard deviations and does not grow with F. W1 is
    the default because a few extreme windows dominate W2. The sizes may differ. `x_weights` [N] and `y_weights` [M] weight the
    samples and need not be normalised. Each one-dimensional distance is exact. Two samples of one distribution do not give 0
    but a floor that falls as 1/sqrt(N): compare with two halves of the real windows, at equal sizes.
    Raises InputError if the sizes do not fit.
    """
    x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
    check(x.ndim == y.ndim == 2 and x.shape[1] == y.shape[1], "x, y", (x.shape, y.shape), "shapes [N, F] and [M, F]")
    check(len(x) > 0 and len(y) > 0, "x, y", (x.shape, y.shape), "at least one row each")
    check(order in (1, 2), "order", order, "1 or 2")
    wx, wy = _normalised(x_weights, len(x), "x_weights"), _normalised(y_weights, len(y), "y_weights")
    directions = np.array(jax.random.normal(key, (x.shape[1], projections)))
    directions /= np.linalg.norm(directions, axis=0)
    pairs = zip((x @ directions).T, (y @ directions).T, strict=True)
    return float(np.mean([_wasserstein_power(a, b, wx, wy, order) for a, b in pairs]) ** (1 / order))


def _normalised(weights: np.ndarray | None, size: int, name: str) -> np.ndarray:
    if weights is None:
        return np.full(size, 1.0 / size)
    weights = np.asarray(weights, np.float64)
    check(weights.shape == (size,) and bool((weights >= 0).all()) and weights.sum() > 0, name, weights.shape,
          f"{size} numbers not below 0, some above")  # fmt: skip
    return np.asarray(weights / weights.sum())


def _wasserstein_power(x: np.ndarray, y: np.ndarray, wx: np.ndarray, wy: np.ndarray, order: int) -> float:
    """W_p^p of two weighted one-dimensional samples: both quantile functions are constant between the merged levels.

    `scipy.stats.wasserstein_distance` has the weighted W_1 only, not W_2.
    """
    i, j = np.argsort(x), np.argsort(y)
    levels_x, levels_y = np.cumsum(wx[i]), np.cumsum(wy[j])
    levels = np.sort(np.concatenate([levels_x, levels_y]))
    mass = np.diff(levels, prepend=0.0)
    middle = levels - mass / 2
    at_x = np.minimum(np.searchsorted(levels_x, middle), len(x) - 1)
    at_y = np.minimum(np.searchsorted(levels_y, middle), len(y) - 1)
    return float(np.sum(mass * np.abs(x[i][at_x] - y[j][at_y]).astype(np.float64) ** order))


def coverage(key: Array, real: np.ndarray, synthetic: np.ndarray, *, k: int = 5, limit: int = 2000) -> dict[str, float]:
    """Density and coverage of `synthetic` [M, F] with respect to `real` [N, F] (standardised states or windows).

    Around each real point lies a ball that reaches to its k-th nearest other real point (Naeem et al. 2020, Reliable Fidelity
    and Diversity Metrics). `coverage` is the share of balls that contain a synthetic point (about 1 - 2^-k for two samples of
    one distribution). `density` is the number of balls around a synthetic point, divided by k (about 1, and less if synthetic
    points lie off the data). Both samples are thinned at random to the same size, at most `limit`, because coverage depends on
    the sizes. Raises InputError unless there are more than k points.
    """
    real, synthetic = np.asarray(real, np.float32), np.asarray(synthetic, np.float32)
    size = min(len(real), len(synthetic), limit)
    check(size > k, "k", k, f"less than the number of points {size}")
    first, second = jax.random.split(key)
    real, synthetic = _thin(first, real, size), _thin(second, synthetic, size)
    radius = np.sort(_distances(real, real), axis=1)[:, k]  # column 0 is the point itself
    inside = _distances(real, synthetic) <= radius[:, None]
    return {"density": float(inside.sum() / (k * size)), "coverage": float(inside.any(axis=1).mean())}


def _thin(key: Array, x: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(x[np.asarray(jax.random.permutation(key, len(x))[:size])])


@jax.jit
def _squared(a: Array, b: Array) -> Array:
    return jnp.sum(a**2, 1)[:, None] + jnp.sum(b**2, 1) - 2 * jnp.matmul(a, b.T, precision="highest")


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    centre = a.mean(axis=0)  # distances do not change, and rounding errors are smaller
    return np.asarray(np.sqrt(np.maximum(np.asarray(_squared(a - centre, b - centre)), 0.0)))
