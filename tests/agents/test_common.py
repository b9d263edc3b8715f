"""Shared pieces of the agents against optax, SciPy and arithmetic."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.stats import norm

from jaxpgd.agents import common


def test_adam_step_is_optax_adam_with_traced_settings():
    params = {"w": jnp.array([1.0, -2.0, 3.0])}
    settings = [(0.1, 1e-5), (0.02, 1e-2)]

    def run(lr, eps):
        p, state = params, common.adam_init(params)
        for i in range(3):
            p, state = common.adam_step({"w": jnp.array([0.3, -1e-3, 2.0]) * (i + 1)}, state, p, lr, eps)
        return p["w"]

    out = jax.jit(jax.vmap(run))(*map(jnp.array, zip(*settings, strict=True)))
    for (lr, eps), got in zip(settings, out, strict=True):
        optimiser = optax.adam(lr, eps=eps)
        p, state = params, optimiser.init(params)
        for i in range(3):
            updates, state = optimiser.update({"w": jnp.array([0.3, -1e-3, 2.0]) * (i + 1)}, state)
            p = optax.apply_updates(p, updates)
        np.testing.assert_allclose(got, p["w"], rtol=1e-5)


def test_polyak_by_hand():
    out = common.polyak({"a": jnp.array([1.0, 0.0])}, {"a": jnp.array([3.0, -4.0])}, 0.25)
    np.testing.assert_allclose(out["a"], [1.5, -1.0])


def test_gaussian_log_prob_sums_over_dimensions_whatever_the_shape_of_the_variance():
    x, mean = jnp.array([[0.1, 2.0], [-1.0, 0.5]]), jnp.array([0.2, 0.3])
    expected = norm(np.asarray(mean), 0.6).logpdf(x).sum(-1)
    for variance in (jnp.array(0.36), jnp.full(2, 0.36)):
        np.testing.assert_allclose(common.gaussian_log_prob(x, mean, variance), expected, rtol=1e-5)


def test_clip_by_norm_is_optax_clipping_with_a_traced_limit():
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}
    clip = jax.jit(common.clip_by_norm)
    for limit in (0.5, 5.0, 7.0):
        expected, _ = optax.clip_by_global_norm(limit).update(grads, optax.EmptyState())
        chex.assert_trees_all_close(clip(grads, limit), expected, rtol=1e-6)
    chex.assert_trees_all_equal(clip(grads, 0.0), grads)  # 0: none
    zero = jax.tree.map(jnp.zeros_like, grads)
    chex.assert_trees_all_equal(clip(zero, 1.0), zero)
