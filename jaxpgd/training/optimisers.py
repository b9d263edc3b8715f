"""Muon beside Adam, and weights averaged with a power function: what denoiser training adds to optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from jaxpgd.types import PyTree

# a, b, c of X <- a X + (b X X^T + c (X X^T)^2) X, as published; an array: optax keeps it in the state, in single precision
_NEWTON_SCHULZ = np.array([[3.4445, -4.7750, 2.0315]] * 5, np.float32)
_RMS = 0.2  # root mean square of a step for learning rate 1, about that of Adam's (arXiv 2502.16982, section 2.2)


def muon_beside_adam(side: int) -> optax.GradientTransformation:
    """Muon for the kernels [O, I] of a U-Net's blocks with min(O, I) <= `side`, Adam for all other parameters.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): Nesterov momentum, of which five Newton-Schulz steps
    bring all singular values near 1. Its steps are scaled by 0.2 sqrt(max(O, I)), which makes them as large as Adam's, so that
    both take the same learning rate (Liu et al., arXiv 2502.16982, section 2.2). As `optax.scale_by_adam`, it returns steps
    for learning rate 1 that are to be subtracted.
    """
    label = lambda path, x: "muon" if _in_block(path) and x.ndim == 2 and min(x.shape) <= side else "adam"
    numbers = lambda kernels: jax.tree.map(lambda _: MuonDimensionNumbers(reduction_axis=1, output_axis=0), kernels)
    # one row a step: optax then scans over the steps, which compiles and runs faster than its unrolled loop
    muon = optax.chain(scale_by_muon(_NEWTON_SCHULZ, weight_dimension_numbers=numbers), optax.stateless(_as_large_as_adam))
    return optax.partition(
        {"muon": muon, "adam": optax.scale_by_adam()}, lambda params: jax.tree_util.tree_map_with_path(label, params)
    )


def _in_block(path: tuple[jax.tree_util.DictKey, ...]) -> bool:
    return any("Block" in str(part.key) for part in path)


def _as_large_as_adam(steps: PyTree, _: PyTree) -> PyTree:
    """An orthogonal [O, I] has root mean square 1 / sqrt(max(O, I))."""
    return jax.tree.map(lambda x: _RMS * max(x.shape) ** 0.5 * x, steps)


def power_average_decay(count: Array, width: Array | float) -> Array:
    """Decay beta [] of the `count`-th step (from 1) of an average whose weights grow as a power t^gamma of training time t.

    beta(t) = (1 - 1/t)^(gamma + 1) (EDM2, arXiv 2312.02696, section 3.1). The standard deviation of these weights over time is
    `width` (the paper's sigma_rel, in (0, 0.28]) times t, at every t: no length of training has to be known. The first step
    replaces what was there.
    """
    # by the logarithm of 1 - 1/t, which single precision does not round to that of 1
    return jnp.exp((power_of_width(width) + 1.0) * jnp.log1p(-1.0 / count.astype(jnp.float32)))


def power_of_width(width: Array | float) -> Array:
    """gamma [] of `power_average_decay`: the largest root of width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))."""
    # as a cubic in y = gamma + 7/3: y^3 - p y + q = 0, with three real roots for widths up to 0.288
    t = 1.0 / jnp.square(jnp.maximum(jnp.asarray(width, jnp.float32), 1e-4))
    p, q = t + 1.0 / 3.0, 4.0 / 3.0 * t + 2.0 / 27.0
    angle = jnp.arccos(jnp.clip(-1.5 * q / p * jnp.sqrt(3.0 / p), -1.0, 1.0))
    return 2.0 * jnp.sqrt(p / 3.0) * jnp.cos(angle / 3.0) - 7.0 / 3.0
